# The two commands a newcomer needs:  make quickstart  and  make test
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
STORE := quickstart.sqlite
LENGTHS := quickstart-lengths.json
PAGE := quickstart.html

.PHONY: quickstart test lint format docs clean help

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(INSTALLED)  ## Install, then say which encoder fits the documents that lie here
	@echo "Reading the documentation of this project and of the packages it installed, and measuring BERT,"
	@echo "Longformer and Nystromformer on this machine for about five minutes. Results stay in $(STORE)."
	@$(BIN)/tippingpoint lengths README.md CHANGELOG.md docs "$(VENV)/lib/**/*.md" "$(VENV)/lib/**/*.rst" \
		--modality text --output $(LENGTHS) >/dev/null
	@$(BIN)/tippingpoint recommend $(LENGTHS) --objective latency --switch --budget 5m --store $(STORE)
	@$(BIN)/tippingpoint report $(STORE) --lengths $(LENGTHS) --output $(PAGE)

test: lint  ## Check style and types, run every test
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(INSTALLED)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## Write the generated page docs/cli.md
	$(BIN)/python docs/write_cli.py

clean:  ## Remove what these commands made
	rm -rf $(VENV) $(STORE) $(LENGTHS) $(PAGE) build dist .pytest_cache .ruff_cache .hypothesis

# Versions are pinned by constraints.txt. torch comes first and by exact version, so that a CPU build is taken
# where one lies ready, and nothing later may replace it.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

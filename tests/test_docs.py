"""Documentation is tested: what the pages say runs, and what the command line says is on the page."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tippingpoint import __all__ as public_names
from tippingpoint.analysis.tipping_point import VERDICTS
from tippingpoint.measurement import FAILURE_KINDS
from tippingpoint.models.catalog import ARCHITECTURES, VARIANTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_the_command_line_page_is_what_the_help_says() -> None:
    done = subprocess.run(
        [sys.executable, "docs/write_cli.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_names_the_two_commands_on_its_first_screen() -> None:
    first_screen = "\n".join(README.splitlines()[:25])
    assert "make quickstart" in first_screen
    assert "make test" in first_screen


def test_readme_python_runs_as_written(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    # The same lines with the smallest models and the shortest lengths: a test checks that they run, not speed.
    code = "\n".join(blocks)
    code = code.replace('"base"', '"tiny"').replace("8192", "256").replace("budget_s=120", "budget_s=5")
    (tmp_path / "readme.py").write_text(code)
    done = subprocess.run([sys.executable, "readme.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def told(shown: str, printed: str) -> bool:
    """Whether a page shows what a command prints; `...` stands for anything, and spaces are as wide as they are."""
    parts = [r"\s+".join(map(re.escape, part.split())) for part in shown.split("...")]
    return re.search(r"[\s\S]*?".join(parts), printed) is not None


def test_the_page_on_adding_a_variant_runs_as_written_and_shows_what_is_printed(tmp_path: Path) -> None:
    page = (ROOT / "docs/adding-a-variant.md").read_text()
    assert page.count("\n") < 60
    project, site = tmp_path / "project", tmp_path / "site"
    project.mkdir()
    for name, code in re.findall(r"```\w+ (\S+)\n(.*?)```", page, flags=re.DOTALL):
        (project / name).write_text(code)
        # Tests of the package stand beside it.
        assert code == (ROOT / "tests/plugin_package" / name).read_text()
    (console,) = re.findall(r"```console\n(.*?)```", page, flags=re.DOTALL)
    # The same commands with nothing fetched, a folder of their own to install into, and no time for good numbers.
    offline = f"--no-deps --no-index --no-build-isolation --disable-pip-version-check --quiet --target {site}"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for command, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", console, flags=re.MULTILINE):
        words = shlex.split(command.replace("pip install", f"pip install {offline}"))
        words += ["--budget", "0.5s", "--target", "50%"] if words[1] == "profile" else []
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert told(shown, done.stdout), done.stdout
        assert not told(shown + "not printed", done.stdout)


def test_the_glossary_explains_every_verdict_and_failure() -> None:
    glossary = (ROOT / "docs/glossary.md").read_text()
    for word in (*VERDICTS, *FAILURE_KINDS):
        assert f"`{word}`" in glossary


def test_the_readme_names_every_architecture_and_variant() -> None:
    for name in (*ARCHITECTURES, *VARIANTS):
        assert f"`{name}" in README


def test_every_public_name_can_be_imported_and_has_a_docstring() -> None:
    import tippingpoint

    for name in public_names:
        value = getattr(tippingpoint, name)
        assert name.startswith("__") or value.__doc__, name


def test_the_python_form_of_the_readme_uses_public_names_only() -> None:
    for name in re.findall(r"\btp\.([A-Za-z_]+)", README):
        assert name in public_names

"""Documentation is tested: what the pages say runs, and what the command line says is on the page."""

from __future__ import annotations

import re
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

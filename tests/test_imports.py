"""Imports point one way, and what a laptop needs to read results does without PyTorch."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import tippingpoint

ROOT = Path(tippingpoint.__file__).parent

# Lower parts never import higher ones. The parts of one rank may import each other.
RANKS = (
    {"errors"},
    {"units", "stages", "yaml_files", "endings", "clock"},
    {"workload", "intervals", "machine"},
    {"measurement"},
    {"attention"},
    {"models"},
    {"data", "store", "device_profiles", "analysis", "report"},
    {"profiling"},
    {"study"},
    {"cli", "__main__"},
)
RANK = {part: rank for rank, parts in enumerate(RANKS) for part in parts}
TORCH_FREE = {
    "errors",
    "units",
    "stages",
    "yaml_files",
    "clock",
    "endings",
    "workload",
    "intervals",
    "machine",
    "measurement",
    "data",
    "store",
    "device_profiles",
    "analysis",
    "report",
}
# What describes models without building them, and what of it is meant for others.
TABLES = {
    "catalog",
    "architecture",
    "components",
    "flops",
    "own",
    "text",
    "speech",
    "vision",
    "reuse_plan",
    "map_overlaps",
}
OFFERED = {"catalog", "architecture", "components", "reuse_plan", "map_overlaps"}


def imported(tree: ast.Module, module: str) -> set[str]:
    """Return the full names a module imports from the package, wherever in it the import stands."""
    package = module.split(".")
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level] if node.level else [])
            source = ".".join(filter(None, [start, node.module]))
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "tippingpoint"}


def violations(source: str, module: str) -> list[str]:
    """Return what is wrong with the imports of one module of the package, in words."""
    part = module.split(".")[1]
    wrong = []
    for name in sorted(imported(ast.parse(source), module)):
        _, target, *rest = [*name.split("."), ""]
        if target in ("__version__", ""):
            continue
        if target not in RANK:
            wrong.append(f"{module} imports {name}, which is no part of the package")
        elif RANK[target] > RANK[part]:
            wrong.append(f"{module} imports {name}, which stands above it")
        elif part in TORCH_FREE and (target == "attention" or (target == "models" and rest[0] not in OFFERED)):
            wrong.append(f"{module} imports {name}, which needs PyTorch")
    return wrong


def modules() -> dict[str, Path]:
    """Every module of the package by name; the package's own face, which may import anything, is left out."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts != ("__init__",):
            found[".".join(("tippingpoint", *parts))] = path
    return found


def test_every_part_of_the_package_has_its_place_in_the_order():
    assert {name.split(".")[1] for name in modules()} <= set(RANK)


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module):
    assert violations(modules()[module].read_text(), module) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("tippingpoint.attention.local", "from tippingpoint.models.build import build", "stands above it"),
        ("tippingpoint.units", "import tippingpoint.workload", "stands above it"),
        ("tippingpoint.profiling.worker", "def f():\n    from tippingpoint.study import run", "stands above it"),
        (
            "tippingpoint.profiling.worker",
            "if TYPE_CHECKING:\n    from tippingpoint.cli.app import x",
            "stands above it",
        ),
        ("tippingpoint.models.text", "from ..profiling import device", "stands above it"),
        ("tippingpoint.store", "from tippingpoint import study", "stands above it"),
        ("tippingpoint.analysis.scaling", "from tippingpoint.models import swap", "needs PyTorch"),
        ("tippingpoint.report.page", "from tippingpoint.models.build import build", "needs PyTorch"),
        ("tippingpoint.data.text", "from tippingpoint.attention import local_attention", "needs PyTorch"),
        ("tippingpoint.measurement", "from tippingpoint.models.catalog import VARIANTS", "stands above it"),
        ("tippingpoint.report.page", "from tippingpoint import utils", "is no part of the package"),
    ],
)
def test_an_import_that_points_the_wrong_way_is_caught(module, source, wrong):
    (found,) = violations(source, module)
    assert found.startswith(f"{module} imports tippingpoint.")
    assert found.endswith(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tippingpoint.profiling.environment", "from tippingpoint import __version__"),
        ("tippingpoint.models.build", "from tippingpoint.attention.local import local_attention\nimport torch"),
        ("tippingpoint.analysis.scaling", "from tippingpoint.models.catalog import ARCHITECTURES"),
        (
            "tippingpoint.report.page",
            "from tippingpoint.analysis import scaling\nfrom tippingpoint.store import Store",
        ),
        ("tippingpoint.cli.app", "from tippingpoint.study.run import run_study\nfrom . import output"),
    ],
)
def test_an_import_that_points_the_right_way_is_not(module, source):
    assert violations(source, module) == []


BLOCKED = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def import_without_torch(*names: str) -> subprocess.CompletedProcess[str]:
    """Import modules in a fresh interpreter in which PyTorch and the Transformers library cannot be imported."""
    return subprocess.run([sys.executable, "-c", BLOCKED, *names], capture_output=True, text=True, check=False)


def torch_free_modules() -> list[str]:
    found = ["tippingpoint"]
    for module in modules():
        _, part, *rest = module.split(".")
        if part in {*TORCH_FREE, "cli"} or (part == "models" and rest[0] in TABLES):
            found.append(module.removesuffix(".__init__"))
    return found


def test_reports_recommendations_and_the_command_line_import_without_torch():
    names = torch_free_modules()
    assert {"tippingpoint.measurement", "tippingpoint.data", "tippingpoint.models.catalog"} <= set(names)
    assert all(importlib.util.find_spec(name) for name in names)
    result = import_without_torch(*names)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["tippingpoint.attention.local", "tippingpoint.models.build"])
def test_a_module_that_needs_torch_is_found_out(name):
    result = import_without_torch(name)
    assert result.returncode == 1
    assert "ImportError: torch was imported" in result.stderr

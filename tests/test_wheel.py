"""The wheel works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and unpack it where an installer would put it."""
    dist = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = dist.glob("*.whl")
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-m", "tippingpoint", *arguments],
        cwd=installed.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_carries_licence_and_type_marker(installed: Path) -> None:
    assert (installed / "tippingpoint/py.typed").exists()
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))
    assert (installed / "tippingpoint/device_profiles/h100.yaml").exists()
    assert {each.name for each in (installed / "tippingpoint/report/templates").iterdir()} == {
        "page.html",
        "page.css",
        "page.js",
    }
    assert not (installed / "tests").exists()


def test_the_wheel_measures_outside_the_checkout(installed: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-c", "import tippingpoint; print(tippingpoint.__file__)"],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(installed) in where.stdout, "the checkout was imported, not the wheel"
    done = run(installed, "profile", "bert@local:window=8", "--lengths", "64", "--size", "tiny", "--budget", "1s")
    assert done.returncode == 0, done.stderr
    assert "bert@local:window=8" in done.stdout


def test_the_entry_point_is_declared(installed: Path) -> None:
    (points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "tippingpoint = tippingpoint.cli:run" in points.read_text()

import os
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from processes import needs_proc
from tippingpoint import __version__
from tippingpoint.machine import Environment
from tippingpoint.models import catalog
from tippingpoint.profiling import environment, zygote
from tippingpoint.profiling.environment import (
    device_uuid,
    package_version,
    read_environment,
    software,
    summarize_build,
)
from tippingpoint.profiling.process import WorkerProcess

SHOWN = """PyTorch built with:
  - GCC 13.3
  - C++ Version: 202002
  - Intel(R) oneAPI Math Kernel Library Version 2024.2-Product Build 20240605 for Intel(R) 64
  - Intel(R) MKL-DNN v3.12.0 (Git Hash 80afa71049cd69a3df32adcccb623b12cd7baa22)
  - OpenMP 201511 (a.k.a. OpenMP 4.5)
  - LAPACK is enabled (usually provided by MKL)
  - CPU capability usage: AVX512
  - CUDA Runtime 12.8
  - CuDNN 91.0.2
  - Build settings: BLAS_INFO=mkl, BUILD_TYPE=Release, USE_CUDA=0,
"""

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a checkout of its own, with one commit."""
    folder = tmp_path / "src" / "tippingpoint"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return folder


@needs_proc
def test_two_worker_processes_tell_the_same_environment():
    with WorkerProcess("cpu", 1) as first, WorkerProcess("cpu", 1) as second:
        assert first.environment == second.environment
        assert first.environment.fingerprint == second.environment.fingerprint


def test_what_computing_depends_on_is_told_and_fits_into_a_line():
    told = read_environment("cpu", 3)
    assert told.threads == 3
    assert dict(told.libraries).keys() >= {"numpy", "tokenizers", "safetensors"}
    assert told.build
    assert len(told.build) < 200
    assert dict(told.thread_settings)["interop_threads"].isdigit()
    assert told.device_memory_bytes == 0
    assert told.tf32 == ()
    assert told.tippingpoint.startswith(__version__)


def test_an_environment_is_told_where_the_system_tells_nothing(monkeypatch, tmp_path):
    """As on macOS, which has no /proc and no /sys."""
    silent = {
        name: (lambda answer: lambda: answer(tmp_path))(getattr(environment, name))
        for name in ("caches", "cpu_model", "governor", "virtualization", "pinned_cores")
    }
    for name, answer in silent.items():
        monkeypatch.setattr(environment, name, answer)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    told = read_environment("cpu", 1)
    assert (told.caches, told.governor, told.virtualization, told.affinity) == ("", "", "", ())
    assert told.cpu_model


def test_variables_that_steer_threads_are_told_and_others_are_not(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("KMP_AFFINITY", "compact")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setenv("HOME_OF_OMP_FANS", "here")
    settings = dict(read_environment("cpu", 1).thread_settings)
    assert settings["OMP_NUM_THREADS"] == "7"
    assert settings["KMP_AFFINITY"] == "compact"
    assert settings["OPENBLAS_NUM_THREADS"] == "1"
    assert "HOME_OF_OMP_FANS" not in settings
    other = read_environment("cpu", 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert read_environment("cpu", 1).fingerprint != other.fingerprint


def test_git_is_asked_once_for_a_process_and_its_children(monkeypatch):
    software.cache_clear()
    asked: list[tuple[str, ...]] = []
    original = environment._git

    def spy(folder: Path, *arguments: str) -> str | None:
        asked.append(arguments)
        return original(folder, *arguments)

    monkeypatch.setattr(environment, "_git", spy)
    first = read_environment("cpu", 1)
    after_first = len(asked)
    assert after_first > 0
    assert read_environment("cpu", 1) == first
    assert len(asked) == after_first


def test_what_workers_are_forked_from_finds_out_the_software_before_any_worker_is_forked(monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(transformers.utils.logging, "set_verbosity_error", lambda: None)
    monkeypatch.setattr(transformers.utils.logging, "disable_progress_bar", lambda: None)
    monkeypatch.setattr(catalog, "ARCHITECTURES", {})
    software.cache_clear()
    zygote.preload()
    assert software.cache_info().currsize == 1


def test_the_summary_of_a_build_names_versions_and_instructions():
    assert summarize_build(SHOWN) == (
        "MKL 2024.2, oneDNN 3.12.0, CUDA 12.8, cuDNN 91.0.2, OpenMP 201511, BLAS mkl, AVX512"
    )
    assert summarize_build("PyTorch built with magic") == ""


@needs_git
def test_in_a_checkout_the_version_has_the_commit(package):
    commit = git(package, "rev-parse", "--short=10", "HEAD")
    assert package_version(package, "1.2.3") == f"1.2.3+g{commit}"


@needs_git
def test_changed_and_new_files_of_the_package_make_it_dirty_and_others_do_not(package, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    clean = package_version(package, "1.2.3")
    assert not clean.endswith(".dirty")
    (package / "__init__.py").write_text("changed = True\n")
    assert package_version(package, "1.2.3") == f"{clean}.dirty"
    (package / "__init__.py").write_text("")
    assert package_version(package, "1.2.3") == clean
    (package / "more.py").write_text("")
    assert package_version(package, "1.2.3") == f"{clean}.dirty"


@needs_git
def test_a_package_installed_inside_someones_repository_has_only_its_version(package, tmp_path):
    installed = tmp_path / ".venv" / "lib" / "site-packages" / "tippingpoint"
    nested = tmp_path / "vendored" / "src" / "tippingpoint"
    for folder in (installed, nested):
        shutil.copytree(package, folder)
        assert package_version(folder, "1.2.3") == "1.2.3"


@needs_git
def test_a_checkout_without_a_commit_has_only_its_version(tmp_path):
    folder = tmp_path / "src" / "tippingpoint"
    folder.mkdir(parents=True)
    git(tmp_path, "init", "--quiet")
    assert package_version(folder, "1.2.3") == "1.2.3"


@needs_git
def test_the_variables_of_a_git_hook_do_not_name_the_checkout(package, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    git(elsewhere, "init", "--quiet")
    expected = package_version(package, "1.2.3")
    monkeypatch.setenv("GIT_DIR", str(elsewhere / ".git"))
    assert package_version(package, "1.2.3") == expected != "1.2.3"


def test_without_git_the_version_stands_alone(package, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
    assert package_version(package, "1.2.3") == "1.2.3"


def test_git_that_hangs_is_given_up(package, monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bin")
    (folder / "git").write_text("#!/bin/sh\nexec sleep 30\n")
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(environment, "_GIT_TIMEOUT_S", 0.05)
    assert package_version(package, "1.2.3") == "1.2.3"


def test_the_cpu_has_no_uuid():
    assert device_uuid("cpu") == ""


def test_a_gpus_environment_tells_driver_memory_and_rounding(monkeypatch):
    torch = pytest.importorskip("torch")

    class Properties:
        name = "Imaginary GPU"
        total_memory = 80 * 2**30
        uuid = "1234-5678"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(environment, "nvidia_driver", lambda: "570.86.15")
    told = read_environment("cuda:1", 1)
    assert told.device_name == "Imaginary GPU"
    assert told.driver == "CUDA 12.8, driver 570.86.15"
    assert told.device_memory_bytes == 80 * 2**30
    assert device_uuid("cuda:1") == "GPU-1234-5678"
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert "matmul" not in read_environment("cuda", 1).tf32
        torch.set_float32_matmul_precision("high")
        assert "matmul" in read_environment("cuda", 1).tf32
    finally:
        torch.set_float32_matmul_precision(precision)


def test_every_field_of_an_environment_is_filled_by_the_reader(monkeypatch):
    """A field that a later version adds and nobody fills would be recorded as its default for ever."""
    given: set[str] = set()

    def spy(**values: object) -> Environment:
        given.update(values)
        return Environment(**values)  # type: ignore[arg-type]

    monkeypatch.setattr(environment, "Environment", spy)
    read_environment("cpu", 1)
    assert given == {field.name for field in fields(Environment)}

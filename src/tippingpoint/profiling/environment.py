"""The machine and software a measurement is made with: only what stays the same between two runs."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from tippingpoint import __version__
from tippingpoint.machine import Environment
from tippingpoint.profiling.device import total_memory
from tippingpoint.profiling.hardware import (
    caches,
    cpu_model,
    governor,
    nvidia_driver,
    pinned_cores,
    usable_cores,
    virtualization,
)

_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = ("numpy", "safetensors", "tokenizers")
# Set while this process holds a place that it was given: on which of the machine's cores it is held, is chance.
HELD_VARIABLE = "TIPPINGPOINT_HELD"
_THREAD_SETTING = re.compile(r"(OMP|MKL|KMP|GOMP)_\w+|OPENBLAS_NUM_THREADS")
# What to look for in PyTorch's own account of how it was built, and what to call it.
_BUILD = (
    ("MKL ", r"Math Kernel Library Version ([\d.]+)"),
    ("oneDNN ", r"MKL-DNN v([\d.]+)"),
    ("CUDA ", r"CUDA Runtime ([\d.]+)"),
    ("cuDNN ", r"CuDNN ([\d.]+)"),
    ("OpenMP ", r"OpenMP (\d+)"),
    ("BLAS ", r"BLAS_INFO=(\w+)"),
    ("", r"CPU capability usage: (\S+)"),
)
_GIT_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """Versions, which no process of a run can change; fields as in `Environment`."""

    torch: str
    transformers: str
    tippingpoint: str
    cpu_capability: str
    libraries: tuple[tuple[str, str], ...]
    build: str


@cache
def software() -> Software:
    """Return the software that runs.

    Computed once: the zygote asks, which starts git, and the workers that are forked from it find the answer.
    """
    import torch
    import transformers

    return Software(
        torch=str(torch.__version__),
        transformers=transformers.__version__,
        tippingpoint=package_version(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        libraries=_libraries(),
        build=summarize_build(torch.__config__.show()),
    )


def read_environment(device: str, threads: int) -> Environment:
    """Return the environment of this process for work on `device`.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        threads: CPU threads in use.
    """
    import torch

    known = software()
    device_name, driver, device_memory_bytes, tf32 = "CPU", "", 0, ()
    if device != "cpu":
        properties = torch.cuda.get_device_properties(torch.device(device))
        device_name, device_memory_bytes = properties.name, properties.total_memory
        driver = ", driver ".join(filter(None, [f"CUDA {torch.version.cuda}", nvidia_driver()]))
        tf32 = _tf32()
    return Environment(
        device_name=device_name,
        cpu_model=cpu_model(),
        cores=usable_cores(),
        threads=threads,
        memory_bytes=total_memory(),
        platform=f"{platform.system()} {platform.machine()}",
        python=".".join(map(str, sys.version_info[:3])),
        torch=known.torch,
        transformers=known.transformers,
        tippingpoint=known.tippingpoint,
        cpu_capability=known.cpu_capability,
        driver=driver,
        float32_matmul_precision=torch.get_float32_matmul_precision(),
        affinity=() if HELD_VARIABLE in os.environ else pinned_cores(),
        caches=caches(),
        governor=governor(),
        virtualization=virtualization(),
        libraries=known.libraries,
        build=known.build,
        thread_settings=_thread_settings(),
        device_memory_bytes=device_memory_bytes,
        tf32=tf32,
    )


def device_uuid(device: str) -> str:
    """Return the UUID of a GPU, by which the driver knows it whatever CUDA numbers it; empty for the CPU."""
    if device == "cpu":
        return ""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(torch.device(device)).uuid}"


def package_version(package: Path = _PACKAGE, version: str = __version__) -> str:
    """Return the version, with the commit where the package lies in a checkout of its own.

    "0.1.0+g1a2b3c4d5e", and "0.1.0+g1a2b3c4d5e.dirty" where the package's files differ from the commit. A
    package that was installed into an environment inside someone's repository is not that repository's.

    Args:
        package: Folder of the package.
        version: What the package says of itself.
    """
    checkout = package.parents[1]
    if package.parent.name != "src" or _git(checkout, "rev-parse", "--show-prefix") != "":
        return version
    commit = _git(checkout, "rev-parse", "--short=10", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--", f"src/{package.name}")
    if not commit or changes is None:
        return version
    return f"{version}+g{commit}{'.dirty' if changes else ''}"


def summarize_build(text: str) -> str:
    """Return how PyTorch was built, in a line, from what `torch.__config__.show()` tells in many."""
    found = ((name, re.search(pattern, text)) for name, pattern in _BUILD)
    return ", ".join(f"{name}{match[1]}" for name, match in found if match)


def _libraries() -> tuple[tuple[str, str], ...]:
    found = []
    for name in _LIBRARIES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _thread_settings() -> tuple[tuple[str, str], ...]:
    import torch

    variables = sorted((name, value) for name, value in os.environ.items() if _THREAD_SETTING.fullmatch(name))
    return (*variables, ("interop_threads", str(torch.get_num_interop_threads())))


def _tf32() -> tuple[str, ...]:
    """Return where CUDA may round float32 products to TF32.

    By the settings that newer versions have: reading the older flags fails once anyone has used the newer ones.
    """
    import torch

    settings = (
        ("matmul", torch.backends.cuda.matmul.fp32_precision),
        # the module is an object at run time, which its type does not show
        ("cudnn", torch.backends.cudnn.conv.fp32_precision),  # pyright: ignore[reportAttributeAccessIssue]
    )
    return tuple(name for name, precision in settings if precision == "tf32")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says, or None where it fails or is not there.

    Inside a hook git's own variables name another repository; they are left out.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

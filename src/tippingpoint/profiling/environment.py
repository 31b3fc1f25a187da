"""The machine and software a measurement is made with."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from tippingpoint import __version__
from tippingpoint.measurement import Environment
from tippingpoint.profiling.device import total_memory


def usable_cores() -> int:
    """Return the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Return the CPU's own name, or the architecture where it does not say."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_environment(device: str, threads: int) -> Environment:
    """Return the environment of this process for work on `device`.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        threads: CPU threads in use.
    """
    import torch
    import transformers

    device_name, driver = "CPU", ""
    if device != "cpu":
        properties = torch.cuda.get_device_properties(torch.device(device))
        device_name = properties.name
        driver = f"CUDA {torch.version.cuda}"
    return Environment(
        device_name=device_name,
        cpu_model=cpu_model(),
        cores=usable_cores(),
        threads=threads,
        memory_bytes=total_memory(),
        platform=f"{platform.system()} {platform.machine()}",
        python=".".join(map(str, sys.version_info[:3])),
        torch=torch.__version__,
        transformers=transformers.__version__,
        tippingpoint=__version__,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        driver=driver,
        float32_matmul_precision=torch.get_float32_matmul_precision(),
    )

"""The machine: what stays the same between two runs, what changes from block to block, and how fast it can be."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields

from tippingpoint.units import format_bytes, format_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The machine and software a measurement was made with; only what stays the same between two runs.

    Attributes:
        device_name: The GPU's own name, or "CPU".
        cpu_model: The CPU's own name.
        cores: Cores the measuring process may use.
        threads: CPU threads it computes with.
        memory_bytes: Main memory.
        platform: Operating system and instruction set.
        python: Version.
        torch: Version.
        transformers: Version.
        tippingpoint: Version, and the commit where it runs from a checkout.
        cpu_capability: Instructions that PyTorch's own kernels use.
        driver: Of the GPU, and CUDA.
        float32_matmul_precision: PyTorch's setting; "highest" is true float32.
        affinity: Cores the process was pinned to, in order; empty where it was not.
        caches: Sizes by level, such as "L1d 48 KiB, L2 2 MiB, L3 105 MiB".
        governor: Of the CPU's frequency; empty where the system does not say.
        virtualization: "kvm", "docker" and the like; empty on bare metal.
        libraries: Versions of libraries that computing depends on, by name.
        build: How PyTorch was built: MKL, oneDNN, BLAS, instructions.
        thread_settings: Environment variables that steer threads, and PyTorch's inter-operator threads.
        device_memory_bytes: Of the GPU; 0 on the CPU.
        tf32: Where CUDA may round float32 products to TF32: "matmul", "cudnn", both or neither.
    """

    device_name: str
    cpu_model: str
    cores: int
    threads: int
    memory_bytes: int
    platform: str
    python: str
    torch: str
    transformers: str
    tippingpoint: str
    cpu_capability: str = ""
    driver: str = ""
    float32_matmul_precision: str = "highest"
    affinity: tuple[int, ...] = ()
    caches: str = ""
    governor: str = ""
    virtualization: str = ""
    libraries: tuple[tuple[str, str], ...] = ()
    build: str = ""
    thread_settings: tuple[tuple[str, str], ...] = ()
    device_memory_bytes: int = 0
    tf32: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits; equal for two runs that may be compared.

        Fields at their default are left out, so that a field which a later version adds leaves the fingerprints
        of earlier results as they were.
        """
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        told = {name: value for name, value in told.items() if value != _DEFAULTS[name]}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]

    def differences(self, other: Environment) -> list[tuple[str, str, str]]:
        """Return what is unlike in two environments: name of the field, its value here, its value there."""
        return [
            (field.name, str(getattr(self, field.name)), str(getattr(other, field.name)))
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]

    def __str__(self) -> str:
        return (
            f"{self.device_name}, {self.threads} threads on {self.cpu_model} ({self.cores} cores, "
            f"{format_bytes(self.memory_bytes)}), torch {self.torch}, transformers {self.transformers}, "
            f"{self.platform}"
        )


_DEFAULTS = {field.name: field.default for field in fields(Environment)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What the machine did while a block was timed; None is what could not be read here.

    Attributes:
        load: One-minute load average when the block began.
        others_s: CPU seconds that other processes took meanwhile, in steps of the kernel's tick (mostly 10 ms).
        steal_s: CPU seconds that other virtual machines took meanwhile, in the same steps.
        cores_s: CPU seconds that all cores of the machine had meanwhile, idle ones included, in the same steps.
        clock_hz: Clock of the GPU's multiprocessors, or the mean over the CPU's cores, when the block ended.
        temperature_c: Of the GPU or the CPU's package when the block ended, in degrees Celsius.
        throttled: Whether heat, power or a container's quota slowed the device during the block.
    """

    load: float | None = None
    others_s: float | None = None
    steal_s: float | None = None
    cores_s: float | None = None
    clock_hz: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """The fastest this machine was seen to be, with the threads and in the dtype of a workload.

    Attributes:
        flops_per_s: Of a large matrix product (a multiply-add is 2).
        bytes_per_s: Read and written, of a copy far larger than the caches.
    """

    flops_per_s: float
    bytes_per_s: float

    def __str__(self) -> str:
        return (
            f"{format_count(self.flops_per_s)}FLOP/s of matrix products, {format_bytes(self.bytes_per_s)}/s of memory"
        )

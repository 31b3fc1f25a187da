"""What another machine can do: peaks from a data sheet or from `tippingpoint doctor`, read from YAML.

A profile looks like this:

    name: NVIDIA H100 SXM 80 GB
    source: "https://... (datasheet)"
    kind: datasheet                  # or measured
    flops_per_s: {float32: 67.0e12, bfloat16: 989.4e12}   # dense; a multiply-add is 2
    bytes_per_s: 3.35e12
    memory_bytes: 80.0e9
    note: optional

Those beside this module are shipped. No PyTorch here.
"""

from __future__ import annotations

import dataclasses
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from tippingpoint.errors import InputError, unknown
from tippingpoint.machine import Peaks
from tippingpoint.units import format_bytes, format_count
from tippingpoint.workload import DTYPES, check_choice
from tippingpoint.yaml_files import read_yaml

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DeviceProfile:
    """Peaks of a machine, and where they come from.

    Attributes:
        name: The machine's own.
        source: A document or its address; for measured ones, what measured them.
        kind: "datasheet" or "measured".
        flops_per_s: Dense matrix products by dtype (a multiply-add is 2).
        bytes_per_s: Read and written, of the device's memory.
        memory_bytes: Of the device.
        note: What the reader should know.
    """

    name: Annotated[str, Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]
    kind: Literal["datasheet", "measured"]
    flops_per_s: Annotated[dict[str, float], Field(min_length=1)]
    bytes_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    memory_bytes: Annotated[int, Field(gt=0)]
    note: str = ""

    @field_validator("flops_per_s")
    @classmethod
    def _check_rates(cls, rates: dict[str, float]) -> dict[str, float]:
        for dtype, rate in rates.items():
            check_choice("dtype", dtype, DTYPES)
            if not 0 < rate < float("inf"):
                raise InputError(f"the rate in {dtype} must be positive, got {rate:g}")
        return rates

    def peaks(self, dtype: str) -> Peaks:
        """Return both peaks in a dtype.

        Raises:
            InputError: If the profile does not tell that dtype.
        """
        if dtype not in self.flops_per_s:
            raise InputError(
                f"the profile of {self.name} tells no rate in {dtype}; it has {', '.join(self.flops_per_s)}"
            )
        return Peaks(flops_per_s=self.flops_per_s[dtype], bytes_per_s=self.bytes_per_s)

    def __str__(self) -> str:
        rates = ", ".join(f"{format_count(rate)}FLOP/s in {dtype}" for dtype, rate in self.flops_per_s.items())
        return (
            f"{self.name}: {rates}, {format_bytes(self.bytes_per_s)}/s, {format_bytes(self.memory_bytes)} "
            f"({self.kind}: {self.source})"
        )


_KEYS = tuple(field.name for field in dataclasses.fields(DeviceProfile))


def shipped_profiles() -> tuple[str, ...]:
    """Return the names of the profiles that come with the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_profile(name: str | PathLike[str]) -> DeviceProfile:
    """Return a shipped profile by name, or the one in a YAML file.

    Raises:
        InputError: If there is neither, the file is no YAML, or a key is unknown, missing or wrong; the message
            names the key.
    """
    path = _FOLDER / f"{name}.yaml" if str(name) in shipped_profiles() else Path(name)
    if not path.suffix and not path.exists():
        raise unknown("device profile", str(name), [*shipped_profiles(), "a YAML file"])
    content = read_yaml(path, "device profile", f"; expected a YAML file or one of {', '.join(shipped_profiles())}")
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold keys: {', '.join(_KEYS)}")
    try:
        return TypeAdapter(DeviceProfile).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "unexpected_keyword_argument":
            raise InputError(f"{path}: unknown key {place!r}; expected one of {', '.join(_KEYS)}") from error
        raise InputError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}") from error


def write_profile(profile: DeviceProfile, path: str | PathLike[str]) -> None:
    """Write a profile that `load_profile` reads.

    Raises:
        InputError: If the file cannot be written.
    """
    fields = {key: value for key, value in dataclasses.asdict(profile).items() if value != ""}
    try:
        Path(path).write_text(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the device profile {str(path)!r}: {error.strerror or error}") from error

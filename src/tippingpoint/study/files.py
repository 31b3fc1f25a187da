"""Study files (YAML): checked against a schema, turned into a frozen specification."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tippingpoint.errors import InputError, TippingPointError
from tippingpoint.models.components import Label, parse_patterns
from tippingpoint.study.presets import COMPARISONS, PRESETS
from tippingpoint.units import parse_duration, parse_fraction
from tippingpoint.workload import METRICS, PHASES, Study, Subject, check_affinity

_Subject = Annotated[Subject, BeforeValidator(Subject.parse)]
_Duration = Annotated[float, BeforeValidator(parse_duration)]
_Fraction = Annotated[float, BeforeValidator(parse_fraction)]


class StudyFile(BaseModel):
    """What a study file may say; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=False)

    name: str
    modality: str
    baselines: list[_Subject] = Field(min_length=1)
    variants: list[_Subject] = Field(min_length=1)
    lengths: tuple[float, float]
    metrics: list[str] = list(METRICS)
    phases: list[str] = list(PHASES)
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    size: str = "base"
    compile: bool = False
    affinity: list[int] | None = None
    batch_size: int = 1
    batch_budget: float | None = None
    padded: bool = False
    budget: _Duration = 300.0
    precision: _Fraction = 0.1
    target: _Fraction = 0.02
    repeats: int = 1
    screening: bool = True
    whole_range: bool = False
    about: str = ""

    def study(self) -> Study:
        """Return the study as a frozen specification."""
        fields = self.model_dump()
        fields["budget_s"] = fields.pop("budget")
        fields["compiled"] = fields.pop("compile")
        fields["affinity"] = None if self.affinity is None else check_affinity(self.affinity)
        for name in ("baselines", "variants", "metrics", "phases"):
            fields[name] = tuple(getattr(self, name))
        return Study(**fields)


def read_yaml(path: str | PathLike[str], what: str, hint: str = "") -> Any:
    """Return what a YAML file holds: plain data, from which no code runs.

    Args:
        path: The file.
        what: What it is for, for the error message: "study".
        hint: What else to say where it cannot be read.

    Raises:
        InputError: If it cannot be read, or is no YAML.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the {what} {str(path)!r} ({reason}){hint}") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


def load_components(path: str | PathLike[str]) -> dict[str, Label]:
    """Return a person's own names of a model's parts, from a YAML file; see `parse_patterns`.

    Raises:
        InputError: If the file cannot be read, is no YAML or does not hold names.
    """
    try:
        return parse_patterns(read_yaml(path, "names of components"))
    except InputError as error:
        raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error


def load_study(path: str | PathLike[str]) -> Study:
    """Return the study a YAML file describes.

    Raises:
        InputError: If the file cannot be read, is no YAML, or a key is unknown or wrong; the message gives
            the path to the key.
    """
    path = Path(path)
    content = read_yaml(path, "study", f"; expected a YAML file or one of {', '.join((*PRESETS, *COMPARISONS))}")
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold keys such as name, modality, baselines, variants, lengths")
    try:
        return StudyFile.model_validate(content).study()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        known = ", ".join(StudyFile.model_fields)
        if first["type"] == "extra_forbidden":
            raise InputError(f"{path}: unknown key {place!r}; expected one of {known}") from error
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path}: {place}: {message}") from error
    except TippingPointError as error:
        raise InputError(f"{path}: {error}") from error

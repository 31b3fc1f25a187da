"""Study files (YAML): checked against a schema, turned into a frozen specification.

A study file is data, of whomever it comes: code that it names runs only for a person who says so.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError

from tippingpoint.errors import InputError, TippingPointError
from tippingpoint.models.components import Label, parse_patterns
from tippingpoint.models.own import is_own
from tippingpoint.study.presets import COMPARISONS, PRESETS
from tippingpoint.units import parse_duration, parse_fraction
from tippingpoint.workload import METRICS, PHASES, Place, Study, Subject, check_affinity
from tippingpoint.yaml_files import read_yaml

_Subject = Annotated[Subject, BeforeValidator(Subject.parse)]
_Duration = Annotated[float, BeforeValidator(parse_duration)]
# Of the two ways to write a device.
_TAGS = ("a name", "some places")
_Fraction = Annotated[float, BeforeValidator(parse_fraction)]


class PlaceFile(BaseModel):
    """A kind of machine that a study asks for; see `tippingpoint.workload.Place`."""

    model_config = ConfigDict(extra="forbid", strict=False)

    kind: str
    cores: int | None = None
    resources: dict[str, float] = {}
    share_socket: bool = False

    def place(self) -> Place:
        """Return it as a frozen specification."""
        return Place(**{**self.model_dump(), "resources": tuple(self.resources.items())})


# One place or several, or a name; told apart beforehand, so that an error is about what was meant.
_Device = Annotated[
    Annotated[str, Tag("a name")] | Annotated[list[PlaceFile], Field(min_length=1), Tag("some places")],
    Discriminator(lambda value: "a name" if isinstance(value, str) else "some places"),
    BeforeValidator(lambda value: [value] if isinstance(value, dict) else value),
]


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
    device: _Device = "cpu"
    apart: bool | None = None
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
        places = () if isinstance(self.device, str) else tuple(each.place() for each in self.device)
        fields["device"] = "cpu" if places else self.device  # places say it themselves
        fields["places"] = places
        # Who asks for kinds of machine means to have many of them.
        fields["apart"] = bool(places) if self.apart is None else self.apart
        for name in ("baselines", "variants", "metrics", "phases"):
            fields[name] = tuple(getattr(self, name))
        return Study(**fields)


def load_components(path: str | PathLike[str]) -> dict[str, Label]:
    """Return a person's own names of a model's parts, from a YAML file; see `parse_patterns`.

    Raises:
        InputError: If the file cannot be read, is no YAML or does not hold names.
    """
    try:
        return parse_patterns(read_yaml(path, "names of components"))
    except InputError as error:
        raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error


def load_study(path: str | PathLike[str], *, trust_code: bool = False) -> Study:
    """Return the study a YAML file describes.

    Args:
        path: The file.
        trust_code: Whether its subjects may be `package.module:callable`, code that runs when they are measured.

    Raises:
        InputError: If the file cannot be read, is no YAML, a key is unknown or wrong (the message gives the path to
            the key), or it names code that was not allowed.
    """
    path = Path(path)
    content = read_yaml(path, "study", f"; expected a YAML file or one of {', '.join((*PRESETS, *COMPARISONS))}")
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold keys such as name, modality, baselines, variants, lengths")
    try:
        study = StudyFile.model_validate(content).study()
        if not trust_code:
            _refuse_code(study)
        return study
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in _TAGS)
        known = ", ".join(StudyFile.model_fields)
        if first["type"] == "extra_forbidden":
            raise InputError(f"{path}: unknown key {place!r}; expected one of {known}") from error
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path}: {place}: {message}") from error
    except TippingPointError as error:
        raise InputError(f"{path}: {error}") from error


def _refuse_code(study: Study) -> None:
    """Raise the error that says what code a study would run, if it would run any."""
    named = [str(subject) for subject in study.subjects if is_own(subject.architecture)]
    if named:
        raise InputError(
            f"it names code to import and call ({', '.join(named)}), which runs with your rights; if you trust the "
            "file and that code, allow it by --trust-code (trust_code=True)"
        )

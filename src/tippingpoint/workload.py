"""What to measure: frozen specifications, and the grammar that names a subject.

Constructing one touches nothing outside: names are checked against the catalogue where they are used.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tippingpoint.errors import InputError, unknown

PHASES = ("inference", "training")
DTYPES = ("float32", "bfloat16", "float16")
SIZES = ("base", "small", "tiny")
METRICS = ("latency", "throughput", "peak_memory")
# What a profile can show beside them: not compared, because it is counted and not measured, or because it takes
# seconds for each number.
PROFILE_METRICS = (*METRICS, "flops", "energy")

OptionValue = bool | int | float | str

_GRAMMAR = "ARCHITECTURE[@VARIANT[:key=value,...][+VARIANT...]], such as bert@local:window=128"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_ARCHITECTURE = re.compile(r"[^\s@]+")
_VALUE = re.compile(r"[^\s,+@=:]+")
_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")
# What places ask for by other fields, or not at all; and less of it than a cluster can count.
_RESERVED = ("cpu", "gpu", "memory", "object_store_memory")
_LEAST_AMOUNT = 1e-4
# CPU cores that start a GPU's kernels, where nothing else is said: as many as small machines with a GPU have.
_HOST_CORES = 4


def _parse_value(text: str) -> OptionValue:
    if text in ("true", "false"):
        return text == "true"
    # Python takes 0_1 for the number 1; here it is a text.
    for kind in () if "_" in text else (int, float):
        try:
            value = kind(text)
            if math.isfinite(value):
                return value
        except (ValueError, OverflowError):
            continue
    return text


def _print_value(value: OptionValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True)
class Variant:
    """A self-attention to put into an architecture: a name and its options, in alphabetical order."""

    name: str
    options: tuple[tuple[str, OptionValue], ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(f"a variant's name must be a word, got {self.name!r}; expected {_GRAMMAR}")
        keys = [key for key, _ in self.options]
        for key, value in self.options:
            if not _NAME.fullmatch(key):
                raise InputError(
                    f"option names of variant {self.name!r} must be words, got {key!r}; expected {_GRAMMAR}"
                )
            if not _VALUE.fullmatch(_print_value(value)):
                raise InputError(
                    f"the value of {self.name}:{key} must be free of spaces and of the characters , + @ = :, "
                    f"got {value!r}; expected {_GRAMMAR}"
                )
            if _parse_value(_print_value(value)) != value:
                raise InputError(f"the value of {self.name}:{key} cannot be written in a subject: {value!r}")
        if len(set(keys)) != len(keys):
            raise InputError(
                f"variant {self.name!r} was given an option twice: {', '.join(keys)}; expected {_GRAMMAR}"
            )
        object.__setattr__(self, "options", tuple(sorted(self.options)))

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Return the variant written as `NAME[:key=value,...]`.

        Raises:
            InputError: If the text does not follow the grammar.
        """
        name, colon, rest = text.partition(":")
        options = []
        for pair in rest.split(",") if colon else ():
            key, equals, value = pair.partition("=")
            if not equals or not key or not value:
                raise InputError(f"expected key=value after {name!r}, got {pair!r}; the whole is written {_GRAMMAR}")
            options.append((key, _parse_value(value)))
        return cls(name, tuple(options))

    def __str__(self) -> str:
        options = ",".join(f"{key}={_print_value(value)}" for key, value in self.options)
        return f"{self.name}:{options}" if options else self.name


@dataclass(frozen=True, slots=True)
class Subject:
    """An architecture and the variants put into it; `bert`, `bert@eager`, `hubert@local:window=50`.

    The architecture is a name of the catalogue, a folder that holds a checkpoint, a hub id, or
    `package.module:callable`.
    """

    architecture: str
    variants: tuple[Variant, ...] = ()

    def __post_init__(self) -> None:
        if not _ARCHITECTURE.fullmatch(self.architecture):
            raise InputError(
                f"an architecture's name must be free of spaces and of @, got {self.architecture!r}; "
                f"a subject is written {_GRAMMAR}"
            )
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise InputError(f"subject {self} names a variant twice; expected {_GRAMMAR}")

    @classmethod
    def parse(cls, text: str | Subject) -> Subject:
        """Return the subject that `text` names.

        Raises:
            InputError: If the text does not follow the grammar, saying what was expected.
        """
        if isinstance(text, Subject):
            return text
        if not isinstance(text, str):
            raise InputError(f"a subject must be a text, got {type(text).__name__}; it is written {_GRAMMAR}")
        architecture, at, rest = text.partition("@")
        if at and not rest:
            raise InputError(f"a variant must follow '@' in {text!r}; a subject is written {_GRAMMAR}")
        return cls(architecture, tuple(Variant.parse(part) for part in rest.split("+")) if at else ())

    @property
    def plain(self) -> Subject:
        """The same architecture with its own attention."""
        return Subject(self.architecture)

    def __str__(self) -> str:
        variants = "+".join(str(variant) for variant in self.variants)
        return f"{self.architecture}@{variants}" if variants else self.architecture

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Let pydantic read and write a subject as its text (pydantic is imported only where it is used)."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


def check_choice(what: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`.

    Raises:
        InputError: Otherwise, naming the nearest choices.
    """
    choices = tuple(choices)
    if value not in choices:
        raise unknown(what, str(value), choices)
    return value


def check_length(value: object) -> float:
    """Return `value` as a length.

    Raises:
        InputError: If it is no number, not finite or not positive.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"a length must be a number, got {value!r}")
    if value <= 0:
        raise InputError(f"a length must be positive, got {value!r}")
    return value


def check_count(what: str, value: object) -> int:
    """Return `value` if it is a whole number of at least 1.

    Raises:
        InputError: Otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{what} must be a whole number of at least 1, got {value!r}")
    return value


def check_affinity(cores: Iterable[object]) -> tuple[int, ...]:
    """Return cores in order, each once.

    Raises:
        InputError: If there is none, or one is no whole number of at least 0.
    """
    found = tuple(cores)
    if not found or any(isinstance(core, bool) or not isinstance(core, int) or core < 0 for core in found):
        raise InputError(f"affinity must be at least one number of a core, such as 0 or 3, got {found!r}")
    return tuple(sorted({core for core in found if isinstance(core, int)}))


@dataclass(frozen=True, slots=True, init=False)
class Workload:
    """One thing to measure: a subject at one length, batch size, phase, device, dtype and thread count.

    Args:
        subject: What runs, as text or `Subject`.
        length: Input length in the modality's native unit (tokens; seconds of audio; image side in pixels).
        batch_size: Sequences per call, all of that length.
        phase: "inference" (forward, no gradient) or "training" (forward, loss, backward, optimizer step).
        device: "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" or "float16"; training in a lower precision is autocast over float32
            weights.
        threads: CPU threads; None takes every core the process may use when it is measured.
        size: "base" (the published Base shapes), "small" or "tiny" (quick looks and tests).
        compiled: Whether the model goes through `torch.compile` first.
        affinity: Cores to pin the measuring process to; None leaves it where the system puts it.
        layers: Depth of the model, where it is not that of its size.
        width: Hidden size of the model, where it is not that of its size; heads keep their dimension and the
            feed-forward part its ratio.
        padded: Whether one sequence of a batch is a little shorter than the others and padded to them: what a mask
            costs depends on there being padding, and hardly on how much of it.

    Raises:
        InputError: If a field is not legal by itself. Whether the subject can take the length is checked
            where the catalogue is known.
    """

    subject: Subject
    length: float
    # These defaults are for records of earlier versions, which lack the later fields; the constructor has its own.
    batch_size: int = 1
    phase: str = "inference"
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None
    size: str = "base"
    compiled: bool = False
    affinity: tuple[int, ...] | None = None
    layers: int | None = None
    width: int | None = None
    padded: bool = False

    def __init__(
        self,
        subject: Subject | str,
        length: float,
        *,
        batch_size: int = 1,
        phase: str = "inference",
        device: str = "cpu",
        dtype: str = "float32",
        threads: int | None = None,
        size: str = "base",
        compiled: bool = False,
        affinity: Iterable[int] | None = None,
        layers: int | None = None,
        width: int | None = None,
        padded: bool = False,
    ) -> None:
        fields = {
            "subject": Subject.parse(subject),
            "length": length,
            "batch_size": batch_size,
            "phase": phase,
            "device": device,
            "dtype": dtype,
            "threads": threads,
            "size": size,
            "compiled": compiled,
            "affinity": None if affinity is None else tuple(affinity),
            "layers": layers,
            "width": width,
            "padded": padded,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        # Apart from __init__, because pydantic calls this one only.
        if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", str(self.device)):
            raise InputError(f"unknown device {self.device!r}; expected cpu, cuda or cuda:N")
        check_length(self.length)
        check_count("batch_size", self.batch_size)
        check_choice("phase", self.phase, PHASES)
        check_choice("dtype", self.dtype, DTYPES)
        if self.threads is not None:
            check_count("threads", self.threads)
        check_choice("size", self.size, SIZES)
        for name in ("layers", "width"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.affinity is not None:
            object.__setattr__(self, "affinity", check_affinity(self.affinity))
        if self.padded and self.batch_size == 1:
            raise InputError("a batch of one sequence has no padding; give a larger batch_size, or leave padded out")
        if self.dtype == "float16" and self.device == "cpu":
            raise InputError("float16 needs a CUDA device; use float32 or bfloat16 on the CPU")

    @property
    def shape(self) -> str:
        """The model's shape in words: its size, and its layers and width where they are others."""
        other = (("layers", self.layers), ("wide", self.width))
        return ", ".join([self.size, *(f"{number} {name}" for name, number in other if number is not None)])

    @property
    def manner(self) -> str:
        """How it runs where that is not plainly, as words that go behind others: ", compiled", ", padded"."""
        return ", compiled" * self.compiled + ", padded" * self.padded

    @property
    def columns(self) -> dict[str, Any]:
        """How it runs and on what, as the columns that all flat rows of results have of it."""
        names = ("device", "dtype", "threads", "size", "layers", "width", "compiled", "padded")
        return {name: getattr(self, name) for name in names}

    @property
    def any_batch(self) -> Workload:
        """The same at the smallest batch size it can have: what those share that differ by their batch size alone."""
        return self.replace(batch_size=2 if self.padded else 1)

    def replace(self, **changes: Any) -> Workload:
        """Return a copy with some fields changed."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Workload(**{**fields, **changes})

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} threads"
        pinned = "" if self.affinity is None else f", on cores {','.join(map(str, self.affinity))}"
        return (
            f"{self.subject} at length {self.length:g}, batch {self.batch_size}, {self.phase}, "
            f"{self.device} {self.dtype}{threads}{'' if self.shape == 'base' else f', {self.shape}'}"
            f"{self.manner}{pinned}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a comparison asks of a machine: a kind of device, held by one measurement at a time.

    Args:
        kind: "cpu"; "cuda" for any GPU; or a part of the GPU's name, such as "H100".
        cores: CPU cores to measure with, all of one socket; 4 beside a GPU, where nothing else is said.
        resources: What else a node of a cluster must offer, by the names the cluster has for it.
        share_socket: Whether GPUs of one socket may be measured at the same time. It is faster and less quiet:
            what the processor does for one of them, the other may feel.

    Raises:
        InputError: If a field is not legal.
    """

    kind: str
    cores: int | None = None
    resources: tuple[tuple[str, float], ...] = ()
    share_socket: bool = False

    def __post_init__(self) -> None:
        if not _KIND.fullmatch(self.kind):
            raise InputError(
                f"the kind of a device must be cpu, cuda or a part of a GPU's name such as H100, got {self.kind!r}"
            )
        if self.cores is not None:
            check_count("cores", self.cores)
        elif self.device == "cpu":
            raise InputError("a device of kind cpu needs its number of cores, such as {kind: cpu, cores: 8}")
        else:
            object.__setattr__(self, "cores", _HOST_CORES)
        if self.share_socket and self.device == "cpu":
            raise InputError("measurements on CPU cores never share a socket; leave share_socket out")
        for name, amount in self.resources:
            if not _KIND.fullmatch(name) or name.lower() in _RESERVED:
                raise InputError(
                    f"a resource must be one of the cluster's own, got {name!r}; `cores` and `kind` are apart"
                )
            if not _LEAST_AMOUNT <= amount < math.inf:
                raise InputError(f"a resource needs an amount of at least {_LEAST_AMOUNT:g}, got {name}: {amount!r}")
        object.__setattr__(self, "resources", tuple(sorted(self.resources)))
        # One kind, however it is written.
        kind = self.kind.lower() if self.kind.lower() in ("cpu", "cuda") else self.kind.upper()
        object.__setattr__(self, "kind", kind)

    @property
    def device(self) -> str:
        """The device to measure on, "cpu" or "cuda"."""
        return "cpu" if self.kind.lower() == "cpu" else "cuda"

    def __str__(self) -> str:
        many = "s" if self.cores != 1 else ""
        kind = {"cpu": f"{self.cores} CPU core{many}", "cuda": "any GPU"}.get(self.kind, self.kind)
        return " with ".join([kind, *(f"{amount:g} {name}" for name, amount in self.resources)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A set of comparisons with a budget; the search decides which lengths are worth measuring.

    Args:
        name: How the results are labelled in a store.
        modality: "text", "speech" or "vision".
        baselines: Vanilla subjects; each variant is held against each of them.
        variants: Efficient subjects.
        lengths: Shortest and longest length to consider, in the native unit.
        metrics: Any of "latency", "throughput", "peak_memory".
        phases: Any of "inference", "training".
        device: See `Workload`.
        places: The kinds of machine that it asks for, each of which gets a part of the study; none takes the machine
            at hand. A place settles the device, and the threads where nothing else is said.
        apart: Whether each pair is searched by itself in each phase, with its share of the budget, so that many can
            be measured at once. Together, subjects share sessions, and pairs share their baseline.
        dtype: See `Workload`.
        threads: See `Workload`.
        size: See `Workload`.
        compiled: See `Workload`.
        affinity: See `Workload`.
        batch_size: Sequences per call for latency and peak memory.
        batch_budget: Instead of it, how much a call may hold in the native unit (tokens, seconds): as many sequences
            of a length as fit, one at least.
        padded: Whether batches of several sequences hold padding; see `Workload`.
        budget_s: Time to spend on measuring, in seconds; of all machines together, where there are several.
        precision: A tipping point is refined until its 95 % interval reaches no further than this share of the
            length to either side (0.1 is 10 %).
        target: A block of timing ends when the 95 % interval's half-width is below this share.
        repeats: How many fresh processes of each subject are timed at each length.
        screening: Whether shallow models may tell where to measure; nothing of theirs is reported.
        whole_range: Whether costs are of interest at every length, and not only where pairs tip.
        about: What it compares and why so, in a sentence or two, for the reader of its results.
    """

    name: str
    modality: str
    baselines: tuple[Subject, ...]
    variants: tuple[Subject, ...]
    lengths: tuple[float, float]
    metrics: tuple[str, ...] = METRICS
    phases: tuple[str, ...] = PHASES
    device: str = "cpu"
    places: tuple[Place, ...] = ()
    apart: bool = False
    dtype: str = "float32"
    threads: int | None = None
    size: str = "base"
    compiled: bool = False
    affinity: tuple[int, ...] | None = None
    batch_size: int = 1
    batch_budget: float | None = None
    padded: bool = False
    budget_s: float = 300.0
    precision: float = 0.1
    target: float = 0.02
    repeats: int = 1
    screening: bool = True
    whole_range: bool = False
    about: str = ""

    def __post_init__(self) -> None:
        if not self.baselines or not self.variants:
            raise InputError("a study needs at least one baseline and one variant")
        both = set(self.baselines) & set(self.variants)
        if both:
            raise InputError(f"{', '.join(map(str, both))} is both a baseline and a variant")
        low, high = (check_length(value) for value in self.lengths)
        if low >= high:
            raise InputError(f"the shortest length must be below the longest, got {low:g} and {high:g}")
        for metric in self.metrics:
            check_choice("metric", metric, METRICS)
        for phase in self.phases:
            check_choice("phase", phase, PHASES)
        check_count("repeats", self.repeats)
        if self.batch_budget is not None and not self.batch_budget > 0:
            raise InputError(f"the budget of a batch must be positive, got {self.batch_budget!r}")
        if self.places and self.affinity is not None:
            raise InputError("a study names either cores to pin to or kinds of device to find; leave one out")
        if len(set(self.places)) < len(self.places):
            raise InputError(f"a study asks twice for the same place: {', '.join(map(str, self.places))}")
        if self.places:
            object.__setattr__(self, "device", self.places[0].device)
        for place in self.places:
            if self.threads is not None and place.cores is not None and self.threads > place.cores:
                raise InputError(
                    f"{self.threads} threads are more than the {place.cores} cores of {place}; give it more cores, "
                    "or leave threads out"
                )
        if not self.metrics or not self.phases:
            raise InputError("a study needs at least one metric and one phase")
        self.workload(self.baselines[0], low, self.phases[0])

    @property
    def place(self) -> Place | None:
        """The kind of machine that it asks for, if it asks for one kind alone."""
        return self.places[0] if len(self.places) == 1 else None

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Baselines, then variants."""
        return tuple(dict.fromkeys(self.baselines + self.variants))

    def batch_size_at(self, length: float) -> int:
        """Return the sequences per call at a length."""
        return self.batch_size if self.batch_budget is None else max(1, int(self.batch_budget // length))

    def workload(self, subject: Subject, length: float, phase: str) -> Workload:
        """Return the study's workload for a subject at a length."""
        batch_size = self.batch_size_at(length)
        return Workload(
            subject,
            length,
            batch_size=batch_size,
            padded=self.padded and batch_size > 1,
            phase=phase,
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
            size=self.size,
            compiled=self.compiled,
            affinity=self.affinity,
        )

    def replace(self, **changes: Any) -> Study:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

"""What a store lacks for an answer, and the command that would measure it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from tippingpoint.analysis.tipping_point import TippingPoint
from tippingpoint.analysis.winners import Race
from tippingpoint.measurement import Outcome
from tippingpoint.models.catalog import ARCHITECTURES, VARIANTS, architecture_of, is_vanilla
from tippingpoint.workload import Subject, Workload

# A search needs room: from the shortest length to so many times as long, where a single one was measured.
_REACH = 8
# What to hold against what, where a store has one side alone: usual encoders, and the variant that fits most of them.
_VANILLA = {"text": "bert", "speech": "hubert", "vision": "vit"}
_EFFICIENT = {"text": "longformer", "speech": "hubert@local", "vision": "swinv2"}
_LOCAL = {"text": "local:window=128", "speech": "local:window=50", "vision": "local:window=128"}


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that a store cannot answer.

    Attributes:
        text: What it is, in a sentence without its end.
        command: What would measure it, ready for a shell; empty where no command would.
    """

    text: str
    command: str = ""

    def __str__(self) -> str:
        return f"{self.text}; `{self.command}` would measure it" if self.command else self.text


def unknown_here(subjects: Sequence[Subject]) -> Missing:
    """Return that subjects of architectures that are not installed here are left out."""
    named = ", ".join(sorted({subject.architecture for subject in subjects}))
    return Missing(f"what was measured of {named} is left out: no such architecture is installed here")


def missing_partner(outcomes: Sequence[Outcome], setting: Workload, store: str, label: str) -> Missing:
    """Return what a setting lacks in which nobody competes: a variant, or a vanilla subject.

    Args:
        outcomes: Of one setting; at least one.
        setting: What its workloads share.
        store: Path of the store.
        label: Of the run.
    """
    subjects = tuple(dict.fromkeys(outcome.workload.subject for outcome in outcomes))
    row = architecture_of(subjects[0])
    vanilla = [subject for subject in subjects if is_vanilla(subject)]
    named = ", ".join(map(str, subjects))
    if vanilla:
        local = VARIANTS["local"]
        variant = f"{row.name}@{_LOCAL[row.modality]}" if row.takes(local) else _EFFICIENT[row.modality]
        pair, what = (vanilla[0], variant), f"only {named} was measured, and no variant beside it"
    else:
        own = next((s.plain for s in subjects if s.architecture in ARCHITECTURES and is_vanilla(s.plain)), None)
        pair = (own or _VANILLA[row.modality], subjects[0])
        what = f"{named} was measured, and no vanilla subject to hold it against"
    return Missing(f"{what} ({_where(setting)})", _find(pair, outcomes, setting, store, label))


def missing_of_pair(
    race: Race, baseline: Subject, variant: Subject, found: Sequence[TippingPoint], store: str, label: str
) -> Missing | None:
    """Return what a pair lacks; None if all its verdicts are there.

    Args:
        race: Whose outcomes there are.
        baseline: The subject to beat.
        variant: The subject that may be better.
        found: Its tipping points, by metric.
        store: Path of the store.
        label: Of the run.
    """
    setting = race.workload if race.seen else race.outcomes[0].workload
    mine = [outcome for outcome in race.outcomes if outcome.workload.subject in (baseline, variant)]
    command = _find((baseline, variant), mine, setting, store, label)
    if not any(point.points for point in found):
        text = f"{baseline} and {variant} were never measured in one session ({_where(setting)})"
        return Missing(text, command)
    # Memory has no noise that more measuring would take away: what is undecided there is alike.
    metrics = [p.metric for p in found if p.verdict == "undecided" and p.metric != "peak_memory"]
    if not metrics:
        return None
    text = f"{variant} against {baseline} is undecided in {' and '.join(metrics)} ({_where(setting)})"
    return Missing(text, command if metrics == ["latency"] else f"{command} --metric {','.join(metrics)}")


def _where(setting: Workload) -> str:
    return f"{setting.phase}, batch {setting.batch_size}, {setting.device} {setting.dtype}, {setting.shape}"


def _find(
    pair: Sequence[Subject | str], outcomes: Sequence[Outcome], setting: Workload, store: str, label: str
) -> str:
    """Return a `find` of a pair over the lengths that were measured, in the same setting."""
    lengths = [outcome.workload.length for outcome in outcomes]
    low, high = min(lengths), max(lengths)
    words = ["tippingpoint", "find", *map(str, pair)]
    words += ["--lengths", f"{low:g}:{high if high > low else _REACH * low:g}"]
    options = {
        "--phase": (setting.phase, "inference"),
        "--batch-sizes": (setting.batch_size, 1),
        "--device": (setting.device, "cpu"),
        "--dtype": (setting.dtype, "float32"),
        "--threads": (setting.threads if setting.device == "cpu" else None, None),
        "--size": (setting.size, "base"),
        "--affinity": (",".join(map(str, setting.affinity or ())), ""),
        "--label": (label, ""),
    }
    for option, (value, default) in options.items():
        if value != default:
            words.append(f"{option}={value}")
    words += ["--compile"] * setting.compiled + ["--padded"] * setting.padded
    # Names of a stranger's store are quoted: the line may be copied into a shell.
    return shlex.join([*words, "--store", store])

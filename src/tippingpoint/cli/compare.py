"""`tippingpoint compare`: a new run of the same workloads held against an old one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tippingpoint.cli.options import Json, Subjects, names
from tippingpoint.errors import AnswerError, InputError

if TYPE_CHECKING:
    from tippingpoint.store import StoredSession


def command(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="File of results.")],
    new: Annotated[
        Path | None, typer.Argument(metavar="NEW", help="File to hold against it; without one, see --labels.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="OLD,NEW", help="Labels of runs (or first digits of environments), such as before,after."
        ),
    ] = None,
    environments: Annotated[
        str | None,
        typer.Option(metavar="OLD,NEW", help="First digits of each side's environment, where it has several."),
    ] = None,
    threshold: Annotated[str, typer.Option(help="What differs by less is the same.")] = "3%",
    metric: Annotated[
        str, typer.Option(help="Comma-separated: latency, throughput, peak_memory.")
    ] = "latency,throughput,peak_memory",
    subject: Subjects = None,
    phase: Annotated[str | None, typer.Option(help="Comma-separated: inference, training; both by default.")] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(help="Exit with 1 if anything is: comma-separated slower, larger, moved, undecided, failing."),
    ] = None,
    details: Annotated[bool, typer.Option("--details", help="Also list workloads that only one side has.")] = False,
    json: Json = False,
) -> None:
    """Hold a new run against an old one: what became faster or smaller, and which tipping points moved.

    A ratio is new over old. "faster" and "slower" mean that its whole 95 % interval is beyond the threshold,
    "same" that it lies within it, "undecided" neither. The sides were not timed side by side, so drift of the
    machine between them counts as a difference: measure both with --repeats 3 or more, at different times, and
    the intervals see it. With --fail-on, slower also means that what was measured before fails now.

    Example: tippingpoint compare before.sqlite after.sqlite
    """
    from tippingpoint.analysis.changes import describe, say_overall
    from tippingpoint.analysis.compare import ALARMS, compare
    from tippingpoint.analysis.selection import Selection
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.report.compare import changes_tables, moves_table, sides_lines
    from tippingpoint.units import parse_fraction
    from tippingpoint.workload import METRICS, PHASES

    metrics = names(metric, "metric", METRICS)
    alarms = names(fail_on, "verdict to fail on", tuple(ALARMS)) if fail_on is not None else ()
    share = parse_fraction(threshold)
    chosen = Selection(subjects=tuple(subject or ()), phases=names(phase, "phase", PHASES) if phase else ())
    sides, called = _sides(old, new, _two(labels, "--labels"), _two(environments, "--environments"))
    before, after = (
        [outcome for session in chosen.of(sessions, name) for outcome in session.outcomes]
        for sessions, name in zip(sides, called, strict=True)
    )
    answer = compare(before, after, names=called, metrics=metrics, threshold=share)
    if json:
        show_json(answer)
    else:
        show(*sides_lines(answer), *(f"warning: {warning}" for warning in answer.warnings))
        for table in changes_tables(answer):
            show("", table)
        if answer.tipping_points:
            show("", moves_table(answer.tipping_points))
        show("", *(f"{one.metric.replace('_', ' ')}: {say_overall(one)}" for one in answer.overall))
        for side in (answer.old, answer.new) if details else ():
            show(*(f"only in {side.name}: {describe(workload)}" for workload in side.alone))
        show(*(f"note: {note}" for note in answer.notes))
    found = answer.alarms(alarms)
    for line in found:
        progress(line)
    if found:
        raise AnswerError(f"--fail-on {','.join(alarms)}: {len(found)} of them, named above")


def _two(text: str | None, option: str) -> tuple[str, str] | None:
    """Return the two parts of OLD,NEW.

    Raises:
        InputError: If there are not two.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(parts):
        raise InputError(f"{option} must be OLD,NEW, got {text!r}")
    return parts[0], parts[1]


def _sides(
    old: Path, new: Path | None, labels: tuple[str, str] | None, environments: tuple[str, str] | None
) -> tuple[list[list[StoredSession]], tuple[str, str]]:
    """Return the sessions of both sides, and what the sides are called.

    Raises:
        InputError: If nothing tells the two sides apart, or a label or environment is unknown.
        StoreError: If a store cannot be read.
    """
    from tippingpoint.analysis.selection import of_environment, side
    from tippingpoint.store import Store

    sides = []
    for path in (old, new or old):
        with Store(path, create=False) as opened:
            sides.append(opened.sessions())
    if new is None and labels is None and environments is None:
        told = ", ".join(dict.fromkeys(session.label or "(none)" for session in sides[0])) or "(none)"
        raise InputError(
            f"one store was given: name a second one, or two of its labels with --labels OLD,NEW (it has {told}), or "
            "two of its environments with --environments OLD,NEW (see `tippingpoint show`)"
        )
    called = [str(old), str(new or old)]
    for pair, choose in ((labels, side), (environments, of_environment)):
        if pair:
            sides = [choose(sessions, name) for sessions, name in zip(sides, pair, strict=True)]
            called = [f"{name} {chosen}" for name, chosen in zip(called, pair, strict=True)]
    return sides, (called[0], called[1])

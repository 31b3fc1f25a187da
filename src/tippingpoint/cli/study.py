"""`tippingpoint study`: a preset or a study file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tippingpoint.cli.options import Affinity, Json, Label, StorePath, cores, names

if TYPE_CHECKING:
    from tippingpoint.analysis.breakdown import Breakdown
    from tippingpoint.analysis.winners import Race
    from tippingpoint.measurement import Failure
    from tippingpoint.store import Store
    from tippingpoint.study.run import StudyResult
    from tippingpoint.workload import Study


# Seconds of rounds for each subject that is broken down.
_BREAKDOWN_S = 5.0


def command(
    study: Annotated[
        str, typer.Argument(metavar="PRESET|FILE", help="text, speech, vision, compression, reuse, or a YAML file.")
    ],
    modality: Annotated[
        str | None, typer.Option(help="Of compression and reuse: text (by default), speech or vision.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Time to spend on measuring, such as 90s or 5m.")] = None,
    size: Annotated[str | None, typer.Option(help="base, small or tiny.")] = None,
    phase: Annotated[str | None, typer.Option(help="Comma-separated: inference, training.")] = None,
    metric: Annotated[str | None, typer.Option(help="Comma-separated: latency, throughput, peak_memory.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; on a cluster also a kind, such as H100.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 (CUDA).")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    affinity: Affinity = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile", help="Run models through torch.compile first.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Stop timing when the 95 % interval is within this share.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Fresh processes of each subject to time at each length.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="How far a tipping point's 95 % interval may reach to either side.")
    ] = None,
    screening: Annotated[
        bool | None, typer.Option(help="Let models of 2 and 4 layers tell where to measure (no number is theirs).")
    ] = None,
    breakdown: Annotated[
        bool | None,
        typer.Option(
            help="Afterwards break every subject down at the longest length that all were measured at; reuse does."
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw speed-ups against length into this file: .svg, .png, .pdf or .html."),
    ] = None,
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="Let a study file's subjects be package.module:callable, which runs code."),
    ] = False,
    apart: Annotated[
        bool | None,
        typer.Option(
            "--apart/--together",
            help="Search each pair by itself in each phase, so that many can be measured at once; --together shares "
            "the baseline. A file that asks for kinds of machine means --apart.",
        ),
    ] = None,
    on: Annotated[str, typer.Option(help="Where to measure: local, or ray (a cluster).")] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT. [default: the one here]"),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="On a cluster: no more measurements at once than this.")] = None,
    wait: Annotated[
        str, typer.Option(help="On a cluster: how long to wait for a machine while none is there.")
    ] = "10m",
    store: StorePath = Path("tippingpoint.sqlite"),
    label: Label = "",
    json: Json = False,
) -> None:
    """Compare baselines with efficient variants and find where each tips.

    Results are kept in the store as they are made; the same command goes on where it was interrupted, and a
    larger budget refines what is there. With several variants, their speed-ups are shown side by side, and at which
    lengths each is the fastest and the smallest.

    On a Ray cluster (`--on ray`) every comparison goes to the kind of device that it asks for, and has it to itself.

    Example: tippingpoint study text --size tiny --budget 30s
    """
    from tippingpoint.analysis.nodes import disagreements
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.errors import AnswerError, InputError
    from tippingpoint.models.groups import REUSE
    from tippingpoint.report.figures import check_path
    from tippingpoint.report.speed_up import draw
    from tippingpoint.store import Store
    from tippingpoint.study.run import resolve_study, run_study
    from tippingpoint.units import format_items, parse_duration, parse_fraction
    from tippingpoint.workload import METRICS, PHASES, check_choice, check_count

    check_choice("place to run", on, ("local", "ray"))
    if on == "local" and (address or slots is not None):
        raise InputError("--address and --slots are for a cluster; add --on ray, or leave them out")
    if slots is not None:
        check_count("--slots", slots)
    found = _named(study, modality, trust_code)
    changes = {
        "budget_s": budget and parse_duration(budget) / len(found),
        "precision": precision and parse_fraction(precision),
        "size": size,
        "phases": phase and names(phase, "phase", PHASES),
        "metrics": metric and names(metric, "metric", METRICS),
        "device": device,
        "dtype": dtype,
        "threads": threads,
        "affinity": cores(affinity),
        "compiled": compile_,
        "target": target and parse_fraction(target),
        "repeats": repeats,
        "screening": screening,
        "apart": apart,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    if on == "ray":
        if breakdown:
            raise InputError("--breakdown is not for a cluster; run `tippingpoint breakdown` on a machine of it")
        studies = [resolve_study(_placed(each, changes)) for each in found]
    else:
        if changes.keys() & {"device", "affinity"}:
            # Who names a device means that one, whatever kinds a file asks for.
            changes["places"] = ()
        studies = [resolve_study(each.replace(**changes)) for each in found]
    if figure:
        check_path(figure)
    missing: tuple[str, ...] = ()
    with Store(store) as opened:
        if on == "ray":
            results, missing = _run_on_ray(studies, opened, label, address, slots, parse_duration(wait))
        else:
            results = [run_study(each, opened, label=label, progress=progress) for each in studies]
        if not json:
            for result in results:
                _show(result, store)
        if on == "ray":
            for each in disagreements([each for each in opened.sessions() if label in ("", each.label)]):
                (progress if json else show)(f"note: {each}")
        wants_parts = breakdown or (breakdown is None and studies[0].name == REUSE)
        if wants_parts and on == "ray":
            progress("note: nothing is broken down on a cluster; run `tippingpoint breakdown` on a machine of it")
        elif wants_parts:
            for result in results:
                found = _break_down(result, opened, label)
                if not json:
                    _show_breakdowns(found)
    if json:
        show_json(results[0] if len(results) == 1 else results)
    if figure:
        drawn = [metric_ for metric_ in ("latency", "peak_memory") if metric_ in studies[0].metrics]
        for file in draw([race for result in results for race in _races(result)], drawn, figure):
            progress(f"drew {file}")
    if missing:
        raise AnswerError(
            f"{format_items(len(missing), 'comparison')} could not be measured, the same command tries again: "
            f"{'; '.join(missing)}"
        )


def _placed(study: Study, changes: dict[str, Any]) -> Study:
    """Return a study as it is to be run on a cluster: with the kind of machine that it asks for.

    Args:
        study: As a preset or a file has it.
        changes: What options say; a device may be the name of a kind.

    Raises:
        InputError: If it says too little, or something that is no kind.
    """
    from tippingpoint.errors import InputError
    from tippingpoint.workload import Place

    changes = dict(changes)
    device = changes.pop("device", None)
    changed = study.replace(**changes, **({} if device is None else {"places": (), "device": "cpu"}))
    if changed.places and device is None:
        return changed
    kind = device or changed.device
    if kind.startswith("cuda:"):
        raise InputError(f"on a cluster nobody knows which GPU is {kind}; name a kind, such as H100, or cuda for any")
    if kind == "cpu" and changed.threads is None:
        raise InputError("on a cluster say how many CPU cores to measure with: --threads, or `device:` in the file")
    return changed.replace(places=(Place(kind=kind, cores=changed.threads),))


def _run_on_ray(
    studies: list[Study], store: Store, label: str, address: str | None, slots: int | None, wait_s: float
) -> tuple[list[StudyResult], tuple[str, ...]]:
    """Measure studies on a Ray cluster; return what was found, and what is missing."""
    from tippingpoint.cli.output import progress
    from tippingpoint.study.coordinate import run_on_cluster
    from tippingpoint.study.launch_ray import RayCluster

    for study in studies:
        if not study.apart and len(study.baselines) * len(study.variants) > 1:
            progress(f"note: study {study.name} keeps its pairs on one machine; --apart spreads them over many")
    with RayCluster(address) as cluster:
        found = run_on_cluster(
            studies, store, cluster, label=label, progress=progress, most_slots=slots, wait_s=wait_s
        )
    return list(found.results), found.missing


def _named(name: str, modality: str | None, trust_code: bool) -> tuple[Study, ...]:
    """Return the studies of a preset, or that of a file.

    Raises:
        InputError: If there is no such preset or file, or it is of another modality.
    """
    from tippingpoint.errors import InputError
    from tippingpoint.study.files import load_study
    from tippingpoint.study.presets import COMPARISONS, preset

    found = preset(name, modality) or (load_study(name, trust_code=trust_code),)
    if modality not in (None, found[0].modality):
        raise InputError(
            f"{name!r} is a study of {found[0].modality}; --modality goes with {' and '.join(COMPARISONS)}, got "
            f"{modality!r}"
        )
    return found


def _races(result: StudyResult) -> tuple[Race, ...]:
    from tippingpoint.analysis.winners import Contest, races_of

    study = result.study
    contest = Contest(study.baselines, study.variants)
    return races_of(result.outcomes, contest, study.phases, study.batch_size, study.batch_budget)


def _show(result: StudyResult, store: Path) -> None:
    """Print what a study found, and what is missing."""
    from tippingpoint.cli.output import show
    from tippingpoint.report.speed_up import speed_up_table, winners_table
    from tippingpoint.report.tables import measurements_table, notes, tipping_points_table
    from tippingpoint.units import format_seconds

    about = (f"study {result.study.name}: {result.study.about}",) if result.study.about else ()
    show(f"{result.environment}", *about, "")
    for kind in result.study.phases:
        show(measurements_table(result.outcomes, result.study.subjects, kind), "")
    if len(result.study.variants) > 1:
        for race in _races(result):
            show(speed_up_table(race), "", winners_table(race), "")
    show(tipping_points_table(result.tipping_points), "")
    for line in notes(result.tipping_points):
        show(f"note: {line}")
    if not result.complete:
        show(
            f"note: the budget of {format_seconds(result.study.budget_s)} ended first; the same command with a "
            "larger --budget measures longer inputs and narrows the intervals"
        )
    show(f"results are in {store}")


def _break_down(result: StudyResult, store: Store, label: str) -> list[Breakdown | Failure]:
    """Break every subject down at the longest length that all were measured at, and keep what is found.

    Where that is not possible, say why.
    """
    from tippingpoint.cli.output import progress
    from tippingpoint.measurement import Measurement
    from tippingpoint.profiling.breakdown import breakdown

    study, phase = result.study, result.study.phases[0]
    if study.compiled:
        progress("note: compiled models have no parts to tell apart, so nothing is broken down")
        return []
    measured = [
        {
            outcome.workload.length
            for outcome in result.outcomes
            if isinstance(outcome, Measurement)
            and (outcome.workload.subject, outcome.workload.phase) == (subject, phase)
        }
        for subject in study.subjects
    ]
    shared = set.intersection(*measured)
    if not shared:
        progress("note: no length was measured with every subject, so none is broken down; try a larger --budget")
        return []
    workloads = [study.workload(subject, max(shared), phase) for subject in study.subjects]
    found = []
    for workload in workloads:
        found.append(breakdown(workload, budget_s=_BREAKDOWN_S, progress=progress))
        store.add_breakdowns(found[-1:], label=label)
    return found


def _show_breakdowns(outcomes: list[Breakdown | Failure]) -> None:
    """Print the parts of subjects beside each other."""
    from tippingpoint.analysis.breakdown import Breakdown
    from tippingpoint.cli.output import show
    from tippingpoint.report.breakdown import breakdown_lines, subjects_table

    found = [outcome for outcome in outcomes if isinstance(outcome, Breakdown)]
    if found:
        show("", subjects_table(found), "")
    for line in breakdown_lines(outcomes):
        show(line)

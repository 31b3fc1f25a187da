"""How far off is a prediction at four times the longest length it was fitted to? About 25 minutes on two cores.

    python benchmarks/extrapolation.py [--store extrapolation.sqlite] [--only bert,hubert] [--budget 10]

Text and speech subjects are measured side by side at lengths up to 1,024 positions and at 4,096. Rates are fitted to
the short lengths alone, work is counted with shallow models at up to 2,560 positions, and each prediction is printed
beside what was measured, with its interval and error; below, the median absolute error. Measurements that the store
has from this environment are not made again, so that a second run only counts and fits. Let nothing else run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tippingpoint import Measurement, Store, Subject, Workload
from tippingpoint.analysis.scaling import CountedCall, Extent, cache_bytes, fit_scaling
from tippingpoint.models.catalog import architecture_of, check_subject
from tippingpoint.profiling.device import now
from tippingpoint.profiling.process import WorkerProcess
from tippingpoint.profiling.session import Effort, measure_together, resolve_workload
from tippingpoint.study.predict import count_work, fastest, length_of
from tippingpoint.units import format_percent, format_seconds

SUBJECTS = {
    "text": ("bert", "bert@eager", "bert@local:window=128", "longformer", "nystromformer"),
    "speech": ("hubert", "hubert@local:window=50"),
}
SHORT = (128, 256, 384, 512, 640, 768, 896, 1024)
LONG = 4096


def say(line: str) -> None:
    """Print progress."""
    print(line, file=sys.stderr, flush=True)


def measure(subjects: Sequence[Subject], store: Store, environment: str, effort: Effort) -> None:
    """Measure what the store lacks, one session for each length."""
    row = architecture_of(subjects[0])
    for positions in (*SHORT, LONG):
        known = found(store, environment)
        workloads = [resolve_workload(Workload(subject, length_of(row, positions))) for subject in subjects]
        missing = [workload for workload in workloads if (workload.subject, workload.length) not in known]
        if not missing:
            continue
        say(f"{positions} positions: {', '.join(str(workload.subject) for workload in missing)}")
        begin = now()
        outcomes = measure_together(missing, effort=effort, progress=lambda line: say(f"    {line}"))
        store.add(outcomes, study="extrapolation", seconds=now() - begin)
        for outcome in outcomes:
            if not isinstance(outcome, Measurement):
                say(f"    could not be measured: {outcome}")


def found(store: Store, environment: str) -> dict[tuple[Subject, float], Measurement]:
    """Return the store's measurements by subject and length, the latest each."""
    return {
        (outcome.workload.subject, outcome.workload.length): outcome
        for outcome in store.outcomes(environment=environment)
        if isinstance(outcome, Measurement)
    }


def predict(subject: Subject, measured: Sequence[Measurement], extent: Extent) -> list[dict[str, object]]:
    """Fit to the short lengths and return one row for each long one."""
    layers = architecture_of(subject).layers("base")
    short = [one for one in measured if one.positions <= max(SHORT)]
    counts = [call.count(extent.cache_bytes) for one in short if (call := CountedCall.of(one, layers))]
    model = fit_scaling(counts, [one.latency_s for one in short], fastest([one.peaks for one in short if one.peaks]))
    rows = []
    for one in measured:
        if one.positions <= max(SHORT):
            continue
        count = extent.at(one.executed_positions, layers)
        seconds = model.seconds(count)
        reach = math.exp(model.log_half_width(count.positions))
        peak = one.memory.peak_bytes if one.memory else None
        rows.append(
            {
                "subject": str(subject),
                "positions": one.positions,
                "fitted_lengths": len(model.measured),
                "predicted_s": seconds,
                "interval_s": [seconds / reach, seconds * reach],
                "measured_s": one.latency_s,
                "error": seconds / one.latency_s - 1,
                "hold_out_error": model.median_error,
                "memory_error": count.peak_bytes / peak - 1 if count.peak_bytes and peak else None,
                "shares": model.shares(count),
            }
        )
    return rows


def report(rows: Sequence[dict]) -> None:
    """Print each prediction beside what was measured, and the median absolute error."""
    print(f"fitted to at most {max(SHORT):,} positions, predicted at {LONG:,}")
    for row in rows:
        low, high = row["interval_s"]
        memory = "" if row["memory_error"] is None else f", peak memory {row['memory_error']:+.1%}"
        print(
            f"    {row['subject']:<24} predicted {format_seconds(row['predicted_s'])} "
            f"(95 % {format_seconds(low)} to {format_seconds(high)}), measured {format_seconds(row['measured_s'])}: "
            f"{row['error']:+.1%}{'' if low <= row['measured_s'] <= high else ', outside the interval'}; "
            f"hold-out {format_percent(row['hold_out_error'])} of {row['fitted_lengths']} lengths{memory}"
        )
    print(f"median absolute error: {format_percent(float(np.median([abs(row['error']) for row in rows])))}")
    inside = sum(row["interval_s"][0] <= row["measured_s"] <= row["interval_s"][1] for row in rows)
    print(f"intervals that hold what was measured: {inside} of {len(rows)}")


def main() -> None:
    """Measure, fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("extrapolation.sqlite"))
    parser.add_argument("--only", help="comma-separated subjects; all by default")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of timed rounds at each length")
    parser.add_argument("--repeats", type=int, default=1, help="processes of each subject at each length")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    only = set(options.only.split(",")) if options.only else {name for names in SUBJECTS.values() for name in names}
    effort = Effort(budget_s=options.budget, repeats=options.repeats, timeout_s=1800)
    rows = []
    with Store(options.store) as store:
        probe = resolve_workload(Workload("bert", 128))
        assert probe.threads is not None
        with WorkerProcess("cpu", probe.threads) as worker:
            environment = worker.environment.fingerprint
        for names in SUBJECTS.values():
            subjects = [check_subject(Subject.parse(name)) for name in names if name in only]
            if not subjects:
                continue
            measure(subjects, store, environment, effort)
            for subject in subjects:
                measured = [one for (of, _), one in found(store, environment).items() if of == subject]
                if measured:
                    cache = cache_bytes(measured[0].environment, "cpu")
                    rows += predict(subject, measured, Extent(count_work(measured[0].workload, say), cache))
    report(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

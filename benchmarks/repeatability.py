"""How far apart are repeated answers, and what does pairing buy? Runs for about 20 minutes; let nothing else run.

    python benchmarks/repeatability.py [--runs 10] [--budget 15] [--repeats 3]

`bert` is held against `bert@local:window=128` at 1,024 tokens in several independent runs, once in paired,
interleaved rounds and once unpaired: each subject in a session of its own, for as long. For both the ratio of each
run is printed with its 95 % interval, the spread of the ratios (90th over 10th percentile), and how many of the
intervals hold the pooled value.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from tippingpoint import Measurement, Workload
from tippingpoint.analysis.comparison import ComparisonPoint, comparison_points
from tippingpoint.intervals import center_replicates, interval
from tippingpoint.measurement import Outcome
from tippingpoint.profiling.session import Effort, measure_together

LENGTH = 1024
BASELINE, VARIANT = (Workload(subject, LENGTH) for subject in ("bert", "bert@local:window=128"))


def measured(outcome: Outcome) -> Measurement:
    """Return the outcome, or end."""
    if not isinstance(outcome, Measurement):
        raise SystemExit(f"could not be measured: {outcome}")
    return outcome


def paired(effort: Effort) -> tuple[float, float, float]:
    """Return the log-ratio of one paired session and its interval."""
    outcomes = [measured(outcome) for outcome in measure_together([BASELINE, VARIANT], effort=effort)]
    first, second = (outcome.workload.subject for outcome in outcomes)
    (point,) = comparison_points(outcomes, first, second, metric="latency", phase="inference")
    return _log(point)


def unpaired(effort: Effort) -> tuple[float, float, float]:
    """Return the log-ratio of two sessions, one after the other, and its interval."""
    both = []
    for seed, workload in enumerate((BASELINE, VARIANT)):
        (outcome,) = measure_together([workload], effort=effort)
        logs = np.log(measured(outcome).per_call_s)
        both.append(center_replicates(logs, measured(outcome).processes, seed=seed))
    difference = both[0] - both[1]
    return float(np.median(difference)), *interval(difference)


def _log(point: ComparisonPoint) -> tuple[float, float, float]:
    low, high = point.interval
    return float(np.log(point.ratio)), float(np.log(low)), float(np.log(high))


def report(name: str, runs: list[tuple[float, float, float]]) -> None:
    """Print every run's ratio and what they have in common."""
    centers = np.array([center for center, _, _ in runs])
    pooled = float(np.median(centers))
    low, high = np.percentile(centers, [10, 90])
    holding = sum(left <= pooled <= right for _, left, right in runs)
    print(f"\n{name}: {len(runs)} runs of {BASELINE.subject} over {VARIANT.subject} at {LENGTH} tokens")
    for center, left, right in runs:
        print(f"    {np.exp(center):.4f}  (95 % {np.exp(left):.4f} to {np.exp(right):.4f})")
    print(
        f"    spread p90/p10 {np.exp(high - low):.4f}; pooled {np.exp(pooled):.4f}, held by {holding} of "
        f"{len(runs)} intervals; median half-width {np.median([(r - left) / 2 for _, left, r in runs]):.2%}"
    )


def main() -> None:
    """Alternate paired and unpaired runs, then print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--budget", type=float, default=15.0, help="seconds of timed rounds in one run")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each subject in one run")
    parser.add_argument("--paired-only", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the ratios to this file")
    options = parser.parse_args()
    effort = Effort(target=1e-4, budget_s=options.budget, repeats=options.repeats)
    # Unpaired, each of the two sessions has half the time, so that both ways cost the same.
    half = Effort(target=1e-4, budget_s=options.budget / 2, repeats=options.repeats)
    runs: dict[str, list[tuple[float, float, float]]] = {"paired": [], "unpaired": []}
    for number in range(options.runs):
        print(f"run {number + 1} of {options.runs}", file=sys.stderr, flush=True)
        runs["paired"].append(paired(effort))
        if not options.paired_only:
            runs["unpaired"].append(unpaired(half))
    for name, found in runs.items():
        if found:
            report(name, found)
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Is the search right, and what does it cost? Hundreds of searches on simulated machines whose truth is planted.

    python benchmarks/search_simulation.py --searches 600 --page docs/search_simulation.md

Each machine has its own costs, and noise of every kind that shared machines have: heavy tails, spikes, processes that
differ, a speed that wanders. The search runs on it as it does on a real one: the same `next_step`, the same rounds,
the same intervals; only the clock is simulated. For each kind of truth the table says how often the verdict was
wrong, how often the 95 % interval held the planted tipping point, how wide it was, and what the search cost beside an
even grid of lengths, each measured as well, that has just as many of them as it needs for an interval as narrow.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# The simulated machine is that of the tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from synthetic import Machine, Noise  # pyright: ignore[reportMissingImports]
from tippingpoint.analysis.tipping_point import TippingPoint, tipping_point
from tippingpoint.models.catalog import architecture_of
from tippingpoint.study.run import resolve_study
from tippingpoint.study.search import Step
from tippingpoint.workload import Study, Subject

LOW, HIGH = 128, 16384
BERT, LOCAL, LONGFORMER = (Subject.parse(text) for text in ("bert", "bert@local:window=128", "longformer"))
NOISE = Noise(spread=0.03, tails=3.0, spikes=0.05, processes=0.007, drift=0.02)
GRIDS = (4, 6, 8, 12, 16, 24, 32, 48, 64)
BUDGET_S = 600.0


@dataclass(frozen=True)
class Truth:
    """What is planted: costs in seconds by executed positions, and what a right answer is."""

    kind: str
    variant: Subject
    baseline_s: Callable[[float], float]
    variant_s: Callable[[float], float]

    def ratio(self, length: float) -> float:
        """Log-ratio at a length."""
        ours = self.variant_s(architecture_of(self.variant).executed_positions(length))
        return math.log(self.baseline_s(length) / ours)

    @property
    def length(self) -> int:
        """The last length at which the variant is not ahead."""
        return max((length for length in range(LOW, HIGH + 1) if self.ratio(length) <= 0), default=LOW)

    def verdicts(self, found: TippingPoint) -> tuple[str, ...]:
        """Return the verdicts that are right up to the longest length that was measured."""
        if self.kind == "never":
            return ("never",)
        if self.kind == "always":
            return ("always",)
        if found.points and found.measured_range[1] < self.length:
            return ("never", "undecided")
        # A staircase, or two crossings of which only the last one lies where it was measured, may look like one.
        return ("crosses", "several crossings")


def draw_truth(kind: str, generator: np.random.Generator) -> Truth:
    """Return a truth of a kind, with its own numbers."""
    # Seconds for a position in the layers without attention, as on a few cores.
    rate = 10 ** generator.uniform(-4.3, -2.7)
    # Positions at which attention costs as much as the rest; how much dearer the variant is at first.
    share, dearer = generator.uniform(800, 5000), generator.uniform(1.15, 2.0)
    quadratic = lambda n: rate * (20 + n * (1 + n / share))  # noqa: E731
    linear = lambda n: rate * (25 + dearer * n)  # noqa: E731
    if kind == "never":
        return Truth(kind, LOCAL, lambda n: rate * (20 + n * (1 + n / 60_000)), lambda n: rate * (30 + 1.4 * n))
    if kind == "always":
        return Truth(kind, LOCAL, quadratic, lambda n: rate * (15 + 0.9 * n))
    if kind == "crosses":
        return Truth(kind, LOCAL, quadratic, linear)
    if kind == "staircase":
        steep = generator.uniform(1.2, 1.8)
        return Truth(kind, LONGFORMER, quadratic, lambda n: rate * (25 + steep * n))
    # A kernel that is slow around some length: the variant wins, loses again, and wins for good.
    where, height = generator.uniform(math.log(900), math.log(2500)), generator.uniform(0.35, 0.6)
    bump = lambda n: math.exp(height * math.exp(-0.5 * ((math.log(n) - where) / 0.3) ** 2))  # noqa: E731
    return Truth(kind, LOCAL, lambda n: rate * (20 + n * (1 + n / 12_000)), lambda n: rate * (15 + 0.9 * n) * bump(n))


KINDS = ("crosses", "staircase", "several crossings", "always", "never")


def study_of(truth: Truth, precision: float) -> Study:
    """Return the study that searches for a truth."""
    return resolve_study(
        Study(
            name="simulated",
            modality="text",
            baselines=(BERT,),
            variants=(truth.variant,),
            lengths=(LOW, HIGH),
            metrics=("latency",),
            phases=("inference",),
            threads=2,
            budget_s=BUDGET_S,
            precision=precision,
        )
    )


def answer(machine: Machine, truth: Truth) -> TippingPoint:
    """Return what follows from all that a machine has measured."""
    return tipping_point(machine.known.outcomes, BERT, truth.variant, metric="latency", phase="inference")


def width(found: TippingPoint) -> float:
    """Return the logarithm of the interval's upper end over its lower end; infinite without one."""
    return math.log(found.interval[1] / found.interval[0]) if found.interval else math.inf


@dataclass(frozen=True)
class Found:
    """What one search said, and cost."""

    kind: str
    verdict: str
    right: bool
    covered: bool | None
    width: float
    error: float
    seconds: float
    sessions: int
    grid_seconds: float | None = None
    grid_reach_seconds: float | None = None
    again: bool | None = None


def search(kind: str, seed: int, precision: float, grids: bool) -> Found:
    """Run one search, and where asked the grids beside it."""
    truth = draw_truth(kind, np.random.default_rng([seed, *kind.encode()]))
    costs = {BERT: truth.baseline_s, truth.variant: truth.variant_s}
    study = study_of(truth, precision)
    machine = Machine(study, costs, noise=NOISE, seed=seed)
    machine.finish()
    found = answer(machine, truth)
    second = Machine(study, costs, noise=NOISE, seed=seed + 10_000)
    second.finish()
    repeated = answer(second, truth)
    has = found.interval is not None and truth.kind not in ("always", "never")
    low, high = found.interval or (0.0, 0.0)
    # Whole tokens: an interval that ends within the last one that loses holds it.
    covered = low - 1 <= truth.length <= high + 1 if has else None
    grid_seconds = reach_seconds = None
    if grids and has:
        grid_seconds = _grid_seconds(truth, study, costs, width(found), HIGH, seed)
        reach_seconds = _grid_seconds(truth, study, costs, width(found), found.measured_range[1], seed)
    again = None
    if has and repeated.interval:
        # Two honest intervals of one thing overlap.
        again = repeated.interval[0] <= high and low <= repeated.interval[1]
    return Found(
        kind,
        found.verdict,
        found.verdict in (*truth.verdicts(found), "undecided"),
        covered,
        width(found) if has else math.nan,
        abs(math.log(found.length / truth.length)) if has and found.length else math.nan,
        machine.spent_s,
        len(machine.sessions),
        grid_seconds,
        reach_seconds,
        again,
    )


def _grid_seconds(
    truth: Truth, study: Study, costs: dict[Subject, Callable[[float], float]], target: float, reach: float, seed: int
) -> float:
    """Return seconds of the coarsest even grid whose interval is as narrow, as a rule; of the finest if none is.

    A single grid may be lucky, so that the median of three counts.
    """
    seconds = math.nan
    for count in GRIDS:
        machines = [Machine(study, costs, noise=NOISE, seed=seed + 20_000 + 100 * count + n) for n in range(3)]
        for machine in machines:
            for length in np.geomspace(LOW, reach, count):
                subjects = (BERT, truth.variant)
                machine.run(Step("inference", round(length), subjects, None, (None, None), "growing", study.target))
        seconds = statistics.median(machine.spent_s for machine in machines)
        if statistics.median(width(answer(machine, truth)) for machine in machines) <= target:
            break
    return seconds


def rows(found: Iterable[Found]) -> list[tuple[str, ...]]:
    """Return rows of the table, one for each kind and one for all."""
    found = list(found)
    table = []
    for kind in (*KINDS, "all"):
        those = [one for one in found if kind in ("all", one.kind)]
        if not those:
            continue
        held = [one.covered for one in those if one.covered is not None]
        widths = [one.width for one in those if not math.isnan(one.width)]
        errors = [one.error for one in those if not math.isnan(one.error)]
        ratios = [one.grid_seconds / one.seconds for one in those if one.grid_seconds]
        near = [one.grid_reach_seconds / one.seconds for one in those if one.grid_reach_seconds]
        again = [one.again for one in those if one.again is not None]
        table.append(
            (
                kind,
                str(len(those)),
                f"{100 * (1 - statistics.mean(one.right for one in those)):.1f} %",
                f"{100 * statistics.mean(one.verdict == 'undecided' for one in those):.1f} %",
                f"{100 * statistics.mean(held):.1f} %" if held else "-",
                f"+-{100 * (math.exp(statistics.median(widths) / 2) - 1):.1f} %" if widths else "-",
                f"{100 * statistics.median(errors):.1f} %" if errors else "-",
                f"{100 * statistics.mean(again):.1f} %" if again else "-",
                f"{statistics.median(one.seconds for one in those):.0f} s",
                f"{statistics.median(one.sessions for one in those):.0f}",
                f"{statistics.median(ratios):.1f}" if ratios else "-",
                f"{statistics.median(near):.1f}" if near else "-",
            )
        )
    return table


HEADER = (
    "truth",
    "searches",
    "wrong verdict",
    "undecided",
    "interval holds truth",
    "interval (median)",
    "error (median)",
    "repeat overlaps",
    "cost (median)",
    "sessions",
    "even grid costs",
    "grid up to the same length",
)


PAGE = """# Simulated searches

{searches} searches for tipping points that were planted, to a precision of {precision:g} %, between 128 and 16,384
tokens, within 10 simulated minutes each. Written by `python benchmarks/search_simulation.py --page`;
[searching.md](searching.md) says what is simulated.

{table}

- *wrong verdict*: the answer is certain, and false for the lengths that were measured. *undecided* is not wrong.
- *interval holds truth*: of the searches that found a tipping point, the share whose 95 % interval holds the planted
  one: the last length, in whole tokens, at which the variant is not ahead.
- *repeat overlaps*: the same search, made again on the same machine with other noise, gives an overlapping interval.
- *even grid costs* (of {grids} searches): how many times as long as the search an even grid of lengths takes,
  on the logarithmic scale over the whole range, each length measured to 2 % and evaluated with the same curve,
  when it has as many lengths as it needs for an interval as narrow (the median of three grids counts). *grid up
  to the same length* is the same for a grid that knows beforehand how far to go: it ends at the longest length
  that the search measured.
"""


def markdown(table: Iterable[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [HEADER, tuple("---" for _ in HEADER), *table]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Simulate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--searches", type=int, default=600, help="how many, of all kinds together")
    parser.add_argument("--grids", type=int, default=120, help="for how many of them grids are simulated too")
    parser.add_argument("--precision", type=float, default=0.05)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--page", type=Path, help="write the table into this page as well")
    options = parser.parse_args()
    jobs = [
        (options.kinds[number % len(options.kinds)], number, options.precision, number < options.grids)
        for number in range(options.searches)
    ]
    with ProcessPoolExecutor(options.processes) as pool:
        found = list(pool.map(search, *zip(*jobs, strict=True), chunksize=4))
    text = markdown(rows(found))
    print(text)
    if options.page:
        numbers = {
            "searches": options.searches,
            "precision": 100 * options.precision,
            "grids": sum(one.grid_seconds is not None for one in found),
        }
        options.page.write_text(PAGE.format(table=text, **numbers))


if __name__ == "__main__":
    main()

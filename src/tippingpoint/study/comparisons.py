"""The parts of a study that are searched one after the other, or at once on several machines."""

from __future__ import annotations

from tippingpoint.study.search import pairs
from tippingpoint.workload import Study


def comparisons(study: Study) -> tuple[Study, ...]:
    """Return the searches that a study consists of, each with its share of the budget.

    Args:
        study: With subjects resolved.

    Returns:
        The study itself, if its subjects are measured together; else a study for each pair in each phase. What one
        of them measures is nothing to the others, so they give the same rows in whatever order they are run.
    """
    if not study.apart:
        return (study,)
    cells = [(pair, phase) for phase in study.phases for pair in pairs(study)]
    return tuple(
        study.replace(
            baselines=(baseline,), variants=(variant,), phases=(phase,), budget_s=study.budget_s / len(cells)
        )
        for (baseline, variant), phase in cells
    )

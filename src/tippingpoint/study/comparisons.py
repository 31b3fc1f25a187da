"""The parts of a study that are searched one after the other, or at once on several machines."""

from __future__ import annotations

from tippingpoint.study.search import pairs
from tippingpoint.workload import Study


def comparisons(study: Study) -> tuple[Study, ...]:
    """Return the searches that a study consists of, each with its share of the budget.

    Args:
        study: With subjects resolved.

    Returns:
        A study for each kind of place; and, if pairs are searched apart, for each pair in each phase. What one of
        them measures is nothing to the others, so they give the same rows in whatever order they are run.
    """
    whole = [(study.baselines, study.variants, study.phases)]
    cells = [((b,), (v,), (phase,)) for phase in study.phases for b, v in pairs(study)] if study.apart else whole
    places = [(place,) for place in study.places] or [()]
    return tuple(
        study.replace(
            places=place,
            threads=study.threads or (place[0].cores if place else None),
            baselines=baselines,
            variants=variants,
            phases=phases,
            budget_s=study.budget_s / (len(places) * len(cells)),
        )
        for baselines, variants, phases in cells
        for place in places
    )

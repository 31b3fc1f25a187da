"""One side of a comparison: its outcomes by the workload that they can be held against, in one environment."""

from __future__ import annotations

from collections.abc import Iterable

from tippingpoint.errors import InputError
from tippingpoint.measurement import Environment, Measurement, Outcome, is_best_batch, is_look
from tippingpoint.workload import Workload


class Side:
    """One side, its outcomes by the workload they can be held against.

    Args:
        name: What it is called in messages.
        outcomes: Oldest first; looks with shallow models are left out.

    Attributes:
        outcomes_of: For each workload, its outcomes; those at a best batch size are apart.
    """

    def __init__(self, name: str, outcomes: tuple[Outcome, ...]) -> None:
        self.name = name
        # Looks chose what to measure; they are too rough to be compared.
        self.outcomes = tuple(outcome for outcome in outcomes if not is_look(outcome))
        self.outcomes_of: dict[Workload, list[Outcome]] = {}
        self._at_best: dict[Workload, list[Measurement]] = {}
        for outcome in self.outcomes:
            if not is_best_batch(outcome):
                self.outcomes_of.setdefault(_key(outcome), []).append(outcome)
            elif isinstance(outcome, Measurement):
                # A failure in trying a larger batch stands where the best one was measured.
                self._at_best.setdefault(_key(outcome).any_batch, []).append(outcome)

    @property
    def environment(self) -> Environment:
        """The one environment it has, after `of_one_environment`."""
        return self.outcomes[-1].environment

    def of_one_environment(self, keys: Iterable[Workload]) -> Side:
        """Return what was measured in the environment of these workloads.

        Raises:
            InputError: If they have several.
        """
        found = {o.environment.fingerprint: o.environment for key in keys for o in self.outcomes_of[key]}
        if len(found) > 1:
            told = "; ".join(f"{fingerprint}: {environment}" for fingerprint, environment in found.items())
            raise InputError(
                f"{self.name} was measured in {len(found)} environments, and unlike ones are never put together; "
                f"choose one for each side with --environments OLD,NEW out of {told}"
            )
        (only,) = found
        return Side(self.name, tuple(o for o in self.outcomes if o.environment.fingerprint == only))

    def measured(self, metric: str) -> dict[Workload, list[Measurement]]:
        """Return the measurements that tell a metric, by workload; for throughput the key is its `any_batch`."""
        if metric == "throughput":
            found = dict(self._at_best)
            for key, tried in self.measured("latency").items():
                # Where larger batches were tried and did not pay, the measurement itself is at the best one.
                at_best = [measurement for measurement in tried if measurement.batch_curve]
                if at_best:
                    found.setdefault(key.any_batch, at_best)
            return found
        measured = {
            key: [o for o in found if isinstance(o, Measurement) and (o.memory or metric != "peak_memory")]
            for key, found in self.outcomes_of.items()
        }
        return {key: found for key, found in measured.items() if found}


def _key(outcome: Outcome) -> Workload:
    # Threads and pinning are part of the environment, and a side has one environment.
    return outcome.workload.replace(threads=None, affinity=None)

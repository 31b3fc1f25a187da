"""What a choice must keep, such as `peak_memory<=4GiB`, and what it can be chosen by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tippingpoint.analysis.workload_cost import PERCENTILES, Estimate
from tippingpoint.errors import InputError
from tippingpoint.units import format_bytes, format_rate, format_seconds, parse_bytes, parse_duration
from tippingpoint.workload import METRICS, check_choice

# Latency alone is the mean as an objective, and the 95th percentile as a constraint.
OBJECTIVES = (*METRICS, *(f"latency_p{percent}" for percent in PERCENTILES))
_CONSTRAINT = re.compile(r"\s*([a-z_0-9]+)\s*(<=|>=)\s*(.+?)\s*")


def measured_metric(name: str) -> str:
    """Return the metric that must be measured for an objective or a constraint: "latency" for its percentiles."""
    return "latency" if name.startswith("latency") else name


def show_value(name: str, value: float) -> str:
    """Return a value of an objective in words; throughput as the time that an item takes."""
    return format_bytes(value) if name == "peak_memory" else format_seconds(value)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A bound that a subject must keep, such as `peak_memory<=4GiB`; SI units inside.

    Latency of an item is held at the 95th percentile of the items (`latency_p50` and `latency_p99` at theirs),
    throughput over all of them (items per second), peak memory in the batch that needs most.
    """

    metric: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Return the constraint written as `latency<=200ms`, `peak_memory<=4GiB` or `throughput>=5`.

        Raises:
            InputError: If the text does not follow the grammar.
        """
        expected = (
            "expected latency<=DURATION (or latency_p50, latency_p99), peak_memory<=SIZE or "
            "throughput>=ITEMS_PER_SECOND"
        )
        match = _CONSTRAINT.fullmatch(text)
        if not match:
            raise InputError(f"cannot read the constraint {text!r}; {expected}")
        metric, sign, value = match.groups()
        check_choice("constraint", metric, OBJECTIVES)
        if sign != (">=" if metric == "throughput" else "<="):
            raise InputError(f"the constraint {text!r} bounds the wrong side; {expected}")
        return cls.of(metric, value)

    @classmethod
    def of(cls, metric: str, value: str | float) -> Constraint:
        """Return the constraint on `metric`, from "4GiB", "200ms" or a plain number."""
        check_choice("constraint", metric, OBJECTIVES)
        if metric == "peak_memory":
            return cls(metric, parse_bytes(value))
        if metric != "throughput":
            return cls(metric, parse_duration(value))
        try:
            bound = float(value)
        except ValueError:
            bound = 0.0
        if not 0 < bound < float("inf"):
            raise InputError(f"a throughput must be a positive number of items per second, got {value!r}")
        return cls(metric, bound)

    def _seen(self, draws: Mapping[str, np.ndarray]) -> Estimate | None:
        name = "latency_p95" if self.metric == "latency" else self.metric
        if name not in draws:
            return None
        found = Estimate.of(draws[name])
        if self.metric != "throughput":
            return found
        return Estimate(1 / found.value, 1 / found.high, 1 / found.low)

    def broken(self, draws: Mapping[str, np.ndarray]) -> str | None:
        """Return why the constraint is not kept, with what was seen; None if it is.

        Args:
            draws: What a subject costs, as `workload_cost.draws` returns it; throughput in seconds for an item.
        """
        found = self._seen(draws)
        if found is None:
            return f"{self} could not be checked"
        kept = found.value >= self.bound if self.metric == "throughput" else found.value <= self.bound
        return None if kept else f"{self} is not kept ({self._show(found.value)})"

    def in_doubt(self, draws: Mapping[str, np.ndarray]) -> bool:
        """Whether the bound lies within the 95 % interval of what was seen."""
        found = self._seen(draws)
        return found is not None and found.low < self.bound < found.high

    def _show(self, value: float) -> str:
        return f"{format_rate(value)} items/s" if self.metric == "throughput" else show_value(self.metric, value)

    def __str__(self) -> str:
        if self.metric == "peak_memory":
            return f"peak memory at most {self._show(self.bound)}"
        if self.metric == "throughput":
            return f"throughput at least {self._show(self.bound)}"
        percent = self.metric.removeprefix("latency").removeprefix("_p") or "95"
        return f"latency at the {percent}th percentile at most {self._show(self.bound)}"


def first_broken(constraints: Iterable[Constraint], draws: Mapping[str, np.ndarray]) -> str | None:
    """Return the first constraint that is not kept, with what was seen; None if all are."""
    return next((why for constraint in constraints if (why := constraint.broken(draws))), None)

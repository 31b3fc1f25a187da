"""What `tippingpoint predict` prints: estimates, what each rests on, and where the time is predicted to go."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from tippingpoint.analysis.prediction import CostEstimate, Prediction
from tippingpoint.analysis.scaling import COMPONENTS
from tippingpoint.models.catalog import architecture_of
from tippingpoint.report.records import plain
from tippingpoint.report.tables import plain_table, positions_text
from tippingpoint.units import format_bytes, format_count, format_length, format_percent, format_seconds

# An interval that reaches further than this factor to either side says nothing.
_USELESS = 10
_STYLES = {"measured": "green", "interpolated": "", "extrapolated": "yellow"}


def prediction_tables(prediction: Prediction) -> list[Table]:
    """Return the tables: cost, shares of the components, and the other machine where there is one."""
    tables = [_cost_table(prediction), _share_table(prediction)]
    return [*tables, _roofline_table(prediction)] if prediction.profile else tables


def _cost_table(prediction: Prediction) -> Table:
    workload = prediction.workload
    table = plain_table(
        f"Cost, {workload.phase}, {workload.device} {workload.dtype}, {workload.shape}, batch {workload.batch_size}",
        "length",
        "subject",
        "basis",
        "positions",
        "latency",
        "95 %",
        "peak memory",
        "FLOPs",
        left=3,
    )
    for one in prediction.estimates:
        low, high = one.latency_interval_s
        table.add_row(
            *_begin(one),
            Text(one.basis, style=_STYLES[one.basis]),
            positions_text(one),
            format_seconds(one.latency_s),
            "wider than tenfold" if high > _USELESS**2 * low else f"{format_seconds(low)} to {format_seconds(high)}",
            "" if one.peak_bytes is None else format_bytes(one.peak_bytes),
            format_count(one.flops),
        )
    return table


def _share_table(prediction: Prediction) -> Table:
    shown = [name for name in COMPONENTS if any(one.shares.get(name) for one in prediction.estimates)]
    table = plain_table("Predicted share of the time", "length", "subject", *shown, left=2)
    for one in prediction.estimates:
        table.add_row(*_begin(one), *(format_percent(one.shares.get(name, 0.0)) for name in shown))
    return table


def _roofline_table(prediction: Prediction) -> Table:
    assert prediction.profile is not None, "asked for only with a profile"
    table = plain_table(
        f"Roofline estimate, {prediction.profile.name}, {prediction.workload.dtype}",
        "length",
        "subject",
        "at least",
        "if as well used as here",
        "memory",
        left=2,
    )
    fits = {True: "fits", False: "does not fit", None: ""}
    for one in prediction.estimates:
        if one.roofline:
            table.add_row(
                *_begin(one),
                format_seconds(one.roofline.latency_s),
                format_seconds(one.roofline.scaled_s),
                fits[one.roofline.fits],
            )
    return table


def _begin(one: CostEstimate) -> tuple[str, str]:
    return format_length(one.length, architecture_of(one.subject).unit), str(one.subject)


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction for JSON, with the hold-out errors and each answer as a sentence."""
    record = plain(prediction)
    for name, model in prediction.models.items():
        record["models"][name]["median_error"] = model.median_error
        record["models"][name]["components"] = list(COMPONENTS)
    for point, answer in zip(record["tipping_points"], prediction.tipping_points, strict=True):
        point["answer"] = answer.answer
    return record

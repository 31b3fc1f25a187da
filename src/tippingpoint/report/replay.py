"""What `tippingpoint replay` prints: what real batches took, beside what was predicted for them."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from tippingpoint.analysis.replay import Replay, Replayed
from tippingpoint.analysis.workload_cost import PERCENTILES, Estimate
from tippingpoint.report.records import plain
from tippingpoint.report.tables import plain_table
from tippingpoint.units import format_bytes, format_percent, format_seconds

# What the prediction promises.
CLOSE = 0.1


def replay_tables(replay: Replay) -> list[Table]:
    """Return the tables: time beside its prediction, and latency of an item and memory beside theirs."""
    return [_time_table(replay), _latency_table(replay)]


def _time_table(replay: Replay) -> Table:
    table = plain_table(
        f"Seconds for 1,000 items ({replay.phase}, {replay.device} {replay.dtype}, {replay.size}, {replay.batching})",
        "subject",
        "batches",
        "items",
        "observed",
        "95 %",
        "predicted",
        "95 %",
        "difference",
        "95 %",
    )
    for each in replay.subjects:
        row: list[str | Text] = [str(each.subject), f"{len(each.batches):,}", f"{each.items.sum():,.0f}"]
        if each.per_1000_s is None:
            table.add_row(*row, Text(_failed(each), "red"))
            continue
        row += _shown(each.per_1000_s)
        if each.difference is None:
            row.append("none")
        else:
            predicted = each.predicted_per_1000_s
            row += ["in part", ""] if predicted is None else _shown(predicted)
            row += [_off(each.difference.value), _off_interval(each.difference)]
        table.add_row(*row)
    return table


def _latency_table(replay: Replay) -> Table:
    table = plain_table(
        "Latency of an item, and peak memory: observed / predicted",
        "subject",
        *(f"p{percent}" for percent in PERCENTILES),
        "peak memory",
    )
    for each in replay.subjects:
        cells = []
        for percent in PERCENTILES:
            observed, predicted = each.latency_s(percent), each.predicted_latency_s(percent)
            cells.append(_pair(*(None if s is None else format_seconds(s) for s in (observed, predicted))))
        peak = None if each.peak_bytes is None else format_bytes(each.peak_bytes)
        predicted_peak = None if each.predicted_peak is None else format_bytes(each.predicted_peak.value)
        table.add_row(str(each.subject), *cells, _pair(peak, predicted_peak))
    return table


def remarks(replay: Replay) -> list[str]:
    """Return what to know about a replay: why it ended, padding, failures, notes, warnings, what really ran."""
    epoch = f"{replay.epoch_batches:,} batch{'es' * (replay.epoch_batches != 1)}"
    lines = [
        f"{replay.data.count:,} items {replay.batching.describe(replay.data.unit)} are {epoch}, of which "
        f"{format_percent(replay.padded)} is padding; {replay.stop_reason}"
    ]
    for each in replay.subjects:
        lines += _verdict(each)
        if each.failure:
            lines.append(f"failed: {each.subject} after {len(each.samples):,} batches: {each.failure.message}")
        lines += [f"{each.subject}: attention ran as {each.attention}"] if each.attention else []
        lines += [f"{each.subject}: {note}" for note in each.notes]
        lines += [f"warning: {each.subject}: {warning}" for warning in each.warnings]
    return [*lines, *(f"note: {note}" for note in replay.notes)]


def _verdict(each: Replayed) -> list[str]:
    if each.difference is None or each.typical_difference is None or each.priced is None:
        return []
    close = abs(each.difference.value) <= CLOSE
    count = len(each.batches)
    where = "" if each.priced.all() else f" on {each.priced.sum():,} of {count:,} batches"
    return [
        f"{each.subject}: the prediction is {'' if close else 'not '}within {format_percent(CLOSE)} of what was "
        f"observed{where} ({_off(each.difference.value)}; for a batch in the middle {_off(each.typical_difference)})",
        *_machine(each),
    ]


def _machine(each: Replayed) -> list[str]:
    if each.slowdown is None or each.difference_as_fast is None:
        return []
    return [
        f"{each.subject}: a length that was measured took {each.slowdown:.2f} times as long as then, run between the "
        f"batches; without that, a batch in the middle is off by {_off(each.difference_as_fast)}"
    ]


def replay_record(replay: Replay) -> dict[str, Any]:
    """Return a replay as plain data, with the statistics that follow from its samples."""
    names = ("batching", "phase", "device", "dtype", "size", "environment", "epoch_batches", "padded", "stop_reason")
    record = {name: plain(getattr(replay, name)) for name in names}
    return {
        **record,
        "batching": str(replay.batching),
        "data": plain(replay.data),
        "fingerprint": replay.environment.fingerprint,
        "subjects": [_subject_record(each) for each in replay.subjects],
        "notes": list(replay.notes),
    }


def _subject_record(each: Replayed) -> dict[str, Any]:
    prices = [] if each.prices is None else [float(one) for one in _middle(each)]
    priced = [] if each.priced is None else each.priced.tolist()
    return {
        "subject": str(each.subject),
        "status": each.failure.kind if each.failure else "ok",
        "failure": plain(each.failure),
        "per_1000_s": plain(each.per_1000_s),
        "predicted_per_1000_s": plain(each.predicted_per_1000_s),
        "difference": plain(each.difference),
        "typical_difference": each.typical_difference,
        "slowdown": each.slowdown,
        "difference_as_fast": each.difference_as_fast,
        "latency_s": {f"p{percent}": each.latency_s(percent) for percent in PERCENTILES},
        "predicted_latency_s": {f"p{percent}": each.predicted_latency_s(percent) for percent in PERCENTILES},
        "peak_bytes": each.peak_bytes,
        "memory_method": each.memory_method,
        "predicted_peak_bytes": plain(each.predicted_peak),
        "attention": each.attention,
        "notes": list(each.notes),
        "warnings": list(each.warnings),
        "batches": [plain(batch) for batch in each.batches],
        "samples": [plain(sample) for sample in each.samples],
        "anchors": [plain(sample) for sample in each.anchors],
        "priced": priced,
        "predicted_s": prices,
    }


def _middle(each: Replayed) -> Any:
    import numpy as np

    return np.median(each.prices, axis=0) if each.prices is not None else []


def _failed(each: Replayed) -> str:
    return each.failure.kind.replace("_", " ") if each.failure else "not run"


def _shown(estimate: Estimate) -> list[str]:
    return [
        format_seconds(estimate.value),
        " to ".join(format_seconds(end) for end in estimate.interval),
    ]


def _off(difference: float) -> str:
    return f"{100 * difference:+.1f} %"


def _off_interval(difference: Estimate) -> str:
    return f"{100 * difference.low:+.1f} to {_off(difference.high)}"


def _pair(observed: str | None, predicted: str | None) -> str:
    return f"{observed or 'none'} / {predicted or 'none'}"

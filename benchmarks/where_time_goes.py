"""Break the presets' subjects and groups of shared maps down, and draw them: what docs/where-time-goes.md quotes.

    python benchmarks/where_time_goes.py --output docs/where-time-goes
    python benchmarks/where_time_goes.py --only speech --size tiny --budget 1

Writes a figure for each set and one JSON file with all numbers, and prints the tables of the page as Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tippingpoint import Breakdown, Workload, breakdown
from tippingpoint.models.catalog import architecture_of
from tippingpoint.models.components import AROUND, ATTENTION
from tippingpoint.report.breakdown import draw
from tippingpoint.report.records import plain
from tippingpoint.units import format_length, format_percent, format_seconds


@dataclass(frozen=True)
class Set:
    """Subjects that are drawn beside each other.

    Attributes:
        subjects: As they are written.
        lengths: In the native unit.
        phase: "inference" or "training".
    """

    subjects: tuple[str, ...]
    lengths: tuple[float, ...]
    phase: str = "inference"


SETS = {
    "text": Set(("bert", "bert@eager", "longformer", "nystromformer"), (512, 2048)),
    "speech": Set(("hubert", "hubert@local:window=50"), (10.265, 40.985)),
    "vision": Set(("vit", "swinv2"), (224, 448)),
    "reuse": Set(("bert", "bert@reuse:group=3", "bert@reuse:group=6"), (512, 2048)),
    "training": Set(("bert", "bert@local:window=128"), (512,), "training"),
}


def main() -> None:
    """Measure, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SETS))
    parser.add_argument("--size", default="base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--budget", type=float, default=15.0, help="seconds of rounds for each call")
    parser.add_argument("--output", type=Path, help="folder for figures; none are drawn without it")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    options = parser.parse_args()
    records: dict[str, list[Any]] = {}
    for name in options.only.split(","):
        found = []
        for subject in SETS[name].subjects:
            for length in SETS[name].lengths:
                workload = Workload(
                    subject,
                    length,
                    phase=SETS[name].phase,
                    device=options.device,
                    dtype=options.dtype,
                    size=options.size,
                )
                outcome = breakdown(
                    workload, budget_s=options.budget, progress=lambda line: print(line, file=sys.stderr, flush=True)
                )
                if isinstance(outcome, Breakdown):
                    found.append(outcome)
                    print(_closure(outcome), file=sys.stderr, flush=True)
                else:
                    print(f"failed: {outcome}", file=sys.stderr, flush=True)
        records[name] = [_compact(each) for each in found]
        print(f"\n### {name}\n", *_table(found), sep="\n", flush=True)
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            draw(found, options.output / f"{name}.svg")
            draw(found, options.output / f"{name}-layers.svg", by_layer=True)
        if options.json:
            options.json.write_text(json.dumps(records, indent=1) + "\n")


def _closure(found: Breakdown) -> str:
    low, high = found.closure_interval
    return f"    closure {found.closure:.3f} ({low:.3f} to {high:.3f}), watching {format_percent(found.overhead)}"


def _table(found: Sequence[Breakdown]) -> list[str]:
    """Return one row for each call: its time, its parts' shares, how they add up, and the bound."""
    groups = list(dict.fromkeys(row.group for each in found for row in each.groups()))
    inner = "between projections"
    columns = ["subject", "length", "positions", "time"]
    for group in groups:
        columns += [inner, "projections"] if group == ATTENTION else [group]
    columns += ["between operators", "adds up to", "watching", "if attention were free", "and projections"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for each in found:
        workload = each.workload
        unit = architecture_of(workload.subject).unit
        shares = {row.group: row.total_s / each.whole_s for row in each.groups()}
        cells = [f"`{workload.subject}`", format_length(workload.length, unit), f"{each.positions:,}"]
        cells.append(format_seconds(each.whole_s))
        for group in groups:
            if group == ATTENTION:
                cells += [
                    format_percent(each.attention_s() / each.whole_s),
                    format_percent(sum(row.total_s for row in each.rows() if row.name in AROUND) / each.whole_s),
                ]
            else:
                cells.append(format_percent(shares[group]) if group in shares else "")
        low, high = each.closure_interval
        cells += [
            format_percent(each.between_operators_s / each.whole_s),
            f"{each.closure:.3f} ({low:.3f} to {high:.3f})",
            format_percent(each.overhead),
            f"{each.most_speed_up():.2f}x",
            f"{each.most_speed_up(projections=True):.2f}x",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _compact(found: Breakdown) -> dict[str, Any]:
    """Return a record without the samples of each layer's parts."""
    record = plain(found)
    layers = record.pop("components")
    record["components"] = len(layers)
    return record


if __name__ == "__main__":
    main()

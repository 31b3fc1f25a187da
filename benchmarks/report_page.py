"""How large a report of 50,000 measurements is, and how long it takes to be written and to be drawn.

The store is made up: planted costs and noise, 10 subjects, two phases, several batch sizes and labels, 12 samples
each.
The page is opened in a headless Chromium, and counts as rendered when every figure that is shown is drawn.

    python benchmarks/report_page.py                 about 2 minutes
    python benchmarks/report_page.py --keep FOLDER   keeps the store and the page there

Required: the page is below 5 MB and renders in less than 5 s.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tippingpoint.measurement import Environment, Flops, Measurement, Memory, Sample
from tippingpoint.models.catalog import architecture_of, check_subject
from tippingpoint.profiling.device import now
from tippingpoint.report.contents import contents
from tippingpoint.report.page import page
from tippingpoint.store import Store
from tippingpoint.workload import PHASES, Subject, Workload

sys.path.append(str(Path(__file__).parent.parent / "tests" / "report"))
from browser import browser, chromium  # pyright: ignore[reportMissingImports]

MOST_BYTES, MOST_SECONDS = 5_000_000, 5.0
SAMPLES = 12
SUBJECTS = tuple(
    check_subject(Subject.parse(text))
    for text in (
        "bert",
        "bert@eager",
        "bert@local:window=128",
        "bert@nystrom:landmarks=64",
        "bert@linear",
        "bert@linformer:rank=256",
        "bert@pooled:ratio=3",
        "bert@heads:keep=0.33",
        "longformer",
        "nystromformer",
    )
)
LABELS = ("before", "after", "after-upgrade")
BATCH_SIZES = (1, 4, 16, 64)
LENGTHS = tuple(round(128 * 2 ** (step / 2) / 64) * 64 for step in range(13))
ENVIRONMENT = Environment(
    device_name="CPU",
    cpu_model="Imaginary 9000",
    cores=8,
    threads=8,
    memory_bytes=2**35,
    platform="Linux x86_64",
    python="3.11.0",
    torch="2.13.0",
    transformers="5.23.0",
    tippingpoint="0.1.0",
)


def planted(place: int, length: int) -> tuple[float, float]:
    """Return seconds and bytes of one sequence: full attention grows with the square, the others start higher."""
    if place < 2:
        return 8e-6 * length * (1 + 0.3 * place) + (
            1 + place
        ) * 1e-8 * length**2, 1e8 + 2e4 * length + 12.0 * length**2
    return (1e-5 + 2e-6 * place) * length + 2e-3, 1e8 + (3e4 + 2e3 * place) * length


def sessions(count: int, seed: int = 0) -> Iterator[tuple[str, list[Measurement]]]:
    """Yield sessions with their labels: all subjects together at one length, again and again, `count` in all."""
    generator = np.random.default_rng(seed)
    settings = itertools.cycle(itertools.product(PHASES, BATCH_SIZES, LABELS, LENGTHS))
    for number, (phase, batch_size, label, length) in zip(range(count), settings, strict=False):
        found = []
        for place, subject in enumerate(SUBJECTS):
            seconds, size = planted(place, length)
            seconds *= batch_size**0.9 * (3 if phase == "training" else 1) * (0.9 if label == "after" else 1)
            row = architecture_of(subject)
            times = seconds * np.exp(0.02 * generator.standard_normal(SAMPLES))
            samples = (Sample(r, place, 0.1 * r, 1, round(float(each), 9)) for r, each in enumerate(times))
            found.append(
                Measurement(
                    workload=Workload(subject, length, batch_size=batch_size, phase=phase, threads=8),
                    environment=ENVIRONMENT,
                    session=f"{number:06d}-0",
                    positions=row.positions(length),
                    executed_positions=row.executed_positions(length),
                    parameters=110_000_000,
                    attention="sdpa",
                    warm_ups_s=((2 * seconds, seconds),),
                    samples=tuple(samples),
                    stop_reason="95 % interval within 2 %",
                    memory=Memory(peak_bytes=int(size * batch_size), weights_bytes=10**8, method="planted"),
                    flops=Flops(total=int(seconds * 1e11), by_operator=(("mm", int(seconds * 1e11)),)),
                )
            )
        yield label, found


def fill(path: Path, measurements: int) -> None:
    """Write a store."""
    with Store(path) as store:
        for label, found in sessions(math.ceil(measurements / len(SUBJECTS))):
            store.add(found, study="benchmark", seconds=10.0, label=label)


def timed(what: str, began: float) -> float:
    """Say how long something took, and return the time."""
    moment = now()
    print(f"{what:<28} {moment - began:8.2f} s", flush=True)
    return moment


def render(path: Path) -> float | None:
    """Return the seconds from asking for a page to its last figure; None without a browser."""
    executable = chromium()
    if executable is None:
        return None
    with tempfile.TemporaryDirectory() as folder, browser(executable, Path(folder)) as running:
        began = now()
        tab = running.open(path)
        tab.wait("document.documentElement.dataset.drawn === 'yes'")
        seconds = now() - began
        assert not tab.complaints(), tab.complaints()
        return seconds


def main() -> int:
    """Run it and return 1 if the page is too large or too slow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measurements", type=int, default=50_000)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        store, target = folder / "report_page.sqlite", folder / "report_page.html"
        began = now()
        if not store.exists():
            fill(store, given.measurements)
            began = timed("making the store", began)
        with Store(store, create=False) as opened:
            held = opened.sessions()
        began = timed("reading the store", began)
        found = contents(held, store=store.name)
        began = timed("what the report says", began)
        target.write_text(page(found), encoding="utf-8")
        timed("building the page", began)
        size, seconds = target.stat().st_size, render(target)
    print(f"{found.measurements:,} measurements in {len(found.comparisons)} settings: {size:,} bytes", end="")
    print(", no browser to render it" if seconds is None else f", rendered in {seconds:.2f} s")
    return int(size > MOST_BYTES or (seconds or 0.0) > MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())

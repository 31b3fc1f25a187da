"""Draw docs/timeline.svg from measured rounds: `python docs/draw_timeline.py [STORE]`.

Without a store, `bert` and `bert@local:window=128` are measured at 512 tokens first (about a minute). The upper
part shows when each block ran and in which order; the lower part what drift of the machine does to the latencies of
both subjects, and what pairing by round leaves of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tippingpoint import Measurement, Store, Workload
from tippingpoint.measurement import Sample, paired_log_ratios
from tippingpoint.profiling.session import Effort, measure_together

PAGE = Path(__file__).parent / "timeline.svg"
SUBJECTS = ("bert", "bert@local:window=128")
ROUNDS_SHOWN = 8
COLORS = ("#4477aa", "#cc6677")
WIDTH, LEFT, RIGHT = 900, 150, 20


def measure() -> list[Measurement]:
    """Measure the two subjects side by side."""
    workloads = [Workload(subject, 512) for subject in SUBJECTS]
    outcomes = measure_together(workloads, effort=Effort(target=1e-4, budget_s=60))
    return [outcome for outcome in outcomes if isinstance(outcome, Measurement)]


def stored(path: str) -> list[Measurement]:
    """Return the last session of two measurements in a store."""
    with Store(path, create=False) as store:
        pairs = [session.outcomes for session in store.sessions() if len(session.outcomes) == 2]
    return [outcome for outcome in pairs[-1] if isinstance(outcome, Measurement)]


def rectangle(x: float, y: float, width: float, height: float, color: str) -> str:
    """Return a filled rectangle."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height}" fill="{color}"/>'


def text(x: float, y: float, words: str, *, anchor: str = "start", color: str = "#222", size: int = 13) -> str:
    """Return words on the page."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{color}">{words}</text>'


def lanes(arms: list[Measurement]) -> list[str]:
    """Draw one lane for each subject with its blocks, and one for the parent, which sleeps."""
    shown = [[s for s in arm.samples if s.round < ROUNDS_SHOWN] for arm in arms]
    end = max(sample.started_s + sample.seconds for samples in shown for sample in samples)
    scale = (WIDTH - LEFT - RIGHT) / end
    first = arms[0].samples[0].round

    def start(number: int) -> float:
        return LEFT + scale * min(s.started_s for samples in shown for s in samples if s.round == number)

    parts = []
    for number in range(first, first + ROUNDS_SHOWN):
        right = start(number + 1) if number + 1 < first + ROUNDS_SHOWN else WIDTH - RIGHT
        if number % 2 == 0:
            parts.append(rectangle(start(number), 34, right - start(number), 118, "#f2f2f2"))
        parts.append(text((start(number) + right) / 2, 48, f"round {number}", anchor="middle", color="#666", size=11))
    for place, (arm, samples) in enumerate(zip(arms, shown, strict=True)):
        y = 60 + 34 * place
        parts.append(text(LEFT - 8, y + 16, str(arm.workload.subject), anchor="end", color=COLORS[place]))
        parts += [_block(sample, y, scale, COLORS[place]) for sample in samples]
    parts.append(text(LEFT - 8, 60 + 68 + 14, "parent", anchor="end", color="#666"))
    parts.append(f'<path d="M{LEFT} 138 H{WIDTH - RIGHT}" stroke="#999" stroke-dasharray="2 4"/>')
    parts.append(text(LEFT + 6, 133, "asleep on a socket; awake for some milliseconds between blocks", size=11))
    parts.append(text(LEFT, 168, "0 s", color="#666", size=11))
    parts.append(text(WIDTH - RIGHT, 168, f"{end:.1f} s", anchor="end", color="#666", size=11))
    return parts


def _block(sample: Sample, y: int, scale: float, color: str) -> str:
    return rectangle(LEFT + scale * sample.started_s, y, scale * sample.seconds, 24, color)


def curve(values: list[float], top: float, height: float, low: float, high: float, color: str) -> str:
    """Draw values of successive rounds as a line with points."""
    step = (WIDTH - LEFT - RIGHT) / max(1, len(values) - 1)
    points = [(LEFT + step * n, top + height * (1 - (value - low) / (high - low))) for n, value in enumerate(values)]
    path = " ".join(f"{'L' if n else 'M'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(points))
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{color}"/>' for x, y in points)
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.4"/>{dots}'


def panels(arms: list[Measurement]) -> list[str]:
    """Draw latency of each subject over its median, and the ratio of each round over the median ratio."""
    relative = [[s.per_call_s / arm.latency_s - 1 for s in arm.counted] for arm in arms]
    log_ratios, _ = paired_log_ratios(*arms)
    ratios = [float(value - sorted(log_ratios)[len(log_ratios) // 2]) for value in log_ratios]
    bound = max(abs(value) for values in (*relative, ratios) for value in values) * 1.1
    parts = []
    for top, title, series in (
        (200, "latency over its median", list(zip(relative, COLORS, strict=True))),
        (320, "ratio over its median", [(ratios, "#228833")]),
    ):
        middle = top + 45
        parts.append(f'<path d="M{LEFT} {middle} H{WIDTH - RIGHT}" stroke="#bbb"/>')
        parts.append(text(LEFT - 8, middle + 4, title, anchor="end"))
        parts.append(text(LEFT - 8, top + 4, f"+{100 * bound:.0f} %", anchor="end", color="#666", size=11))
        parts.append(text(LEFT - 8, top + 94, f"-{100 * bound:.0f} %", anchor="end", color="#666", size=11))
        parts += [curve(values, top, 90, -bound, bound, color) for values, color in series]
    parts.append(text(LEFT, 440, "round 0", color="#666", size=11))
    parts.append(text(WIDTH - RIGHT, 440, f"round {len(ratios) - 1}", anchor="end", color="#666", size=11))
    return parts


def main() -> None:
    """Write the picture."""
    arms = stored(sys.argv[1]) if len(sys.argv) > 1 else measure()
    title = f"When each block ran: rounds of two subjects at {arms[0].workload.length:g} tokens"
    body = [
        text(LEFT, 20, title, size=14),
        *lanes(arms),
        text(LEFT, 190, "What the machine's drift does to each, and to their ratio", size=14),
        *panels(arms),
    ]
    PAGE.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 452" width="{WIDTH}" '
        'font-family="Helvetica, Arial, sans-serif">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    main()

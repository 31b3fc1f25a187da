"""Are nodes that disagree told, and nodes that are alike left in peace? Hundreds of studies on simulated clusters.

    python benchmarks/node_disagreement.py --studies 200

Each node measures comparisons one after the other; its blocks, its processes and its own speed vary. For each kind of
cluster the table says how many studies of alike nodes told of one that is not, and of studies in which one node was 5
or 10 % slower, how many told of that one, and how many of another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

# The simulated clusters are those of the tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from clusters import DOUBLINGS, Cluster  # pyright: ignore[reportMissingImports]
from synthetic import Noise  # pyright: ignore[reportMissingImports]
from tippingpoint.analysis.nodes import disagreements

SLOW = "node-1"
FACTORS = (1.05, 1.1)
# The last ones are slower and faster than each other for longer than a study lasts: they are not alike.
MACHINES = {
    "quiet": Cluster(noise=Noise(spread=0.005, processes=0.01), wanders=0.005, rough=0.02),
    "shared": Cluster(),
    "wandering": Cluster(wanders=0.02, within_s=1800.0),
}
SIZES = ((2, 2), (4, 2), (16, 2))
HEADER = ("machines", "nodes", "shared", "alike, told", "5 % slower, told", "another", "10 % slower, told", "another")


def rate(cluster: Cluster, studies: int) -> tuple[float, float]:
    """Return the share of studies that tell of the slow node, and of those that tell of another one."""
    told = [{one.name for one in disagreements(cluster.study(seed))} for seed in range(studies)]
    return sum(SLOW in names for names in told) / studies, sum(bool(names - {SLOW}) for names in told) / studies


def rows(studies: int) -> Iterator[tuple[str, ...]]:
    """Yield a row for each kind of cluster."""
    for name, machine in MACHINES.items():
        for nodes, comparisons in SIZES:
            for deep in (False, True):
                cluster = replace(machine, nodes=nodes, comparisons=comparisons, deep=deep)
                alike = sum(bool(disagreements(cluster.study(seed))) for seed in range(studies)) / studies
                found = [rate(replace(cluster, slow={SLOW: factor}), studies) for factor in FACTORS]
                what = f"{comparisons * len(DOUBLINGS)} {'looks' if deep else 'sessions'}"
                shares = [f"{100 * share:.1f} %" for share in (alike, *(each for pair in found for each in pair))]
                yield (name, str(nodes), what, *shares)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200, help="Of each kind of cluster.")
    chosen = parser.parse_args()
    for row in (HEADER, ("---",) * len(HEADER)):
        print(f"| {' | '.join(row)} |")
    for row in rows(chosen.studies):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()

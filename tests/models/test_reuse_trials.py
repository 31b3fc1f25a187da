"""Groups of layers that are tried on a model, beside overlaps of their maps."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from encoders import ENCODERS, TEXT, Encoder, run, tokens
from transformers import PreTrainedModel

import tippingpoint as tp
from tippingpoint.errors import InputError
from tippingpoint.models.groups import Groups
from tippingpoint.models.map_similarity import map_similarity
from tippingpoint.models.reuse_plan import ReusePlan, even_groups, propose_groups
from tippingpoint.models.reuse_trials import Trials

pytestmark = pytest.mark.usefixtures("one_thread")

DEEP = Encoder("BertModel", {**TEXT, "num_hidden_layers": 5}, {"input_ids": tokens()})
BATCHES = [{"input_ids": tokens(seed=seed)[:1]} for seed in range(3)]


def deep() -> Any:
    """A model whose attention matters: random weights of the published size are near to none at all."""
    model: Any = DEEP.make()
    with torch.no_grad():
        for layer in model.encoder.layer:
            for part in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
                part.weight.mul_(20)
            layer.attention.output.dense.weight.mul_(20)
    return model


def trials(model: PreTrainedModel, *, match_heads: bool = True) -> Trials:
    return Trials(model, BATCHES, map_similarity(model, BATCHES), match_heads=match_heads)


def groupings(layers: int, maps: int) -> list[Groups]:
    return [
        tuple(tuple(range(a, b)) for a, b in itertools.pairwise((0, *cuts, layers)))
        for cuts in itertools.combinations(range(1, layers), maps - 1)
    ]


@pytest.mark.parametrize("match_heads", [True, False])
def test_a_loss_is_what_sharing_does_to_the_output(match_heads):
    model = deep()
    groups = ((0,), (1, 2), (3, 4))
    plan = replace(
        tp.plan_reuse(model, BATCHES, 3, match_heads=match_heads, trial_inputs=0),
        groups=groups,
        head_matches={},
        match_heads=False,
    )
    tried = trials(model, match_heads=match_heads)
    heads = (
        {layer: ReusePlan.of(plan.similarity, 3, groups=groups).head_matches[layer] for layer in (2, 4)}
        if match_heads
        else {}
    )
    cosines = []
    changed = tp.reuse_attention(deep(), groups, mode="map", heads=heads)
    for batch in BATCHES:
        before, after = (run(each, batch)[0] for each in (model, changed))
        cosines.append(torch.nn.functional.cosine_similarity(before, after, dim=-1).mean())
    assert tried.loss(groups) == pytest.approx(1 - float(torch.stack(cosines).mean()), abs=1e-6)
    assert tried.loss(groups) > 0.01
    assert abs(tried.loss(((0,), (1,), (2,), (3,), (4,)))) < 1e-6


def test_padding_does_not_count():
    model = deep()
    padded = {"input_ids": tokens()[:1], "attention_mask": (torch.arange(40) < 25)[None].long()}
    cut = {"input_ids": tokens()[:1, :25]}
    similarity = map_similarity(model, [padded])
    groups = ((0, 1, 2, 3, 4),)
    losses = [Trials(model, [each], similarity, match_heads=True).loss(groups) for each in (padded, cut)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_layer_whose_map_does_not_matter_weighs_little_and_gives_its_map_up():
    model = deep()
    with torch.no_grad():
        # What it attends to never reaches the output.
        model.encoder.layer[3].attention.output.dense.weight.zero_()
    weights = trials(model).weights()
    assert weights[0] == 1
    assert weights[3] == min(weights) < 0.1
    assert sum(weights[1:]) / 4 == pytest.approx(1, abs=0.05)
    plan = tp.plan_reuse(model, BATCHES, 4)
    assert plan.groups == ((0,), (1,), (2, 3), (4,))
    assert plan.similarity.weights == weights


@pytest.mark.parametrize("match_heads", [True, False])
@pytest.mark.parametrize("maps", [1, 2, 3, 4, 5])
def test_a_plan_is_no_worse_than_overlap_alone_and_even_groups_and_near_the_best(maps, match_heads):
    model = deep()
    plan = tp.plan_reuse(model, BATCHES, maps, match_heads=match_heads)
    tried = trials(model, match_heads=match_heads)
    loss = tried.loss(plan.groups)
    by_overlap = tp.plan_reuse(model, BATCHES, maps, match_heads=match_heads, trial_inputs=0)
    assert loss <= tried.loss(by_overlap.groups)
    assert loss <= tried.loss(even_groups(plan.similarity, maps))
    losses = sorted(map(tried.loss, groupings(5, maps)))
    assert loss <= losses[min(1, len(losses) - 1)]
    assert plan.num_maps == maps
    if plan.tried:
        groups, least = plan.tried[0]
        assert groups == tuple(group for group in plan.groups if len(group) > 1)
        assert least == pytest.approx(loss, abs=1e-6)
        assert [value for _, value in plan.tried] == sorted(value for _, value in plan.tried)


def test_the_best_of_all_is_reached_by_moving_layers_at_borders():
    tried = trials(deep())
    worst = max(groupings(5, 3), key=tried.loss)
    assert tried.best([worst], 0) == worst
    best = tried.best([worst], 100)
    assert tried.loss(best) < tried.loss(worst)
    assert [len(group) for group in best] != [len(group) for group in worst]
    assert [layer for group in best for layer in group] == list(range(5))


def test_only_the_first_inputs_are_tried_and_all_are_compared():
    model = deep()
    few = tp.plan_reuse(model, BATCHES, 2, trial_inputs=1)
    assert few.similarity.inputs == 3
    alone = Trials(model, BATCHES[:1], few.similarity, match_heads=True)
    assert few.tried[0][1] == pytest.approx(alone.loss(few.groups), abs=1e-6)
    with pytest.raises(InputError, match="trial_inputs must be a whole number of at least 0, got -1"):
        tp.plan_reuse(model, BATCHES, 2, trial_inputs=-1)


def test_the_model_stays_as_it_was():
    model = deep().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    tp.plan_reuse(model, BATCHES, 2)
    assert model.training
    assert model.config.to_dict() == config
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_plan_that_was_tried_is_written_and_read():
    plan = tp.plan_reuse(deep(), BATCHES, 3)
    assert plan.tried
    again = ReusePlan.from_json(plan.to_json())
    assert again == plan
    assert again.choices == plan.choices


def test_windowed_layers_are_left_alone():
    encoder = ENCODERS["modernbert"]
    plan = tp.plan_reuse(encoder.make(), [encoder.inputs], 1)
    assert plan.groups == ((0, 2), (1,), (3,))
    assert [groups for groups, _ in plan.tried] == [((0, 2),)]


def test_weights_turn_the_choice():
    similarity = map_similarity(deep(), BATCHES)
    heavy = replace(similarity, weights=(1.0, 100.0, 0.1, 0.1, 100.0))
    assert propose_groups(heavy, 3, match_heads=True) == ((0,), (1, 2, 3), (4,))

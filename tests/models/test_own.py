"""A model of one's own, `package.module:callable`: what it must return, and what its subject is."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tippingpoint.analysis.tipping_point import grid
from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.models.build import build
from tippingpoint.models.catalog import architecture_of, check_subject
from tippingpoint.models.own import first_tensor, is_own, make
from tippingpoint.study.search import can_screen
from tippingpoint.workload import Study, Subject, Workload

pytestmark = pytest.mark.usefixtures("one_thread")

MODULE = """
import torch
from torch import nn

calls = []


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.dropout = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, hidden, scale=None):
        hidden = self.dropout(self.first(hidden))
        return hidden if scale is None else {"mask": scale > 0, "hidden": hidden * scale}


def encoder(*, length, batch_size):
    calls.append((length, batch_size))
    return Encoder(), torch.randn(batch_size, length, 8)


def several(*, length, batch_size):
    return Encoder(), (torch.zeros(batch_size, length, 8), torch.ones(1))


def named(*, length, batch_size):
    return Encoder(), {"hidden": torch.zeros(batch_size, length, 8, dtype=torch.float64), "scale": torch.ones(1)}


class factories:
    encoder = staticmethod(encoder)


def alone(*, length, batch_size):
    return Encoder()


def three(*, length, batch_size):
    return Encoder(), torch.ones(1), torch.ones(1)


def turned(*, length, batch_size):
    return torch.ones(1), Encoder()


def listed(*, length, batch_size):
    return Encoder(), [torch.ones(1)]


def numbers(*, length, batch_size):
    return Encoder(), (torch.ones(1), 3)


def nothing(*, length, batch_size):
    return Encoder(), ()


def nobody(*, length, batch_size):
    return Encoder(), {}


not_callable = 3
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module `own_models_of_a_test` that can be imported."""
    (tmp_path / "own_models_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_models_of_a_test", None)


def own(name: str) -> str:
    return f"own_models_of_a_test:{name}"


@pytest.mark.parametrize("name", ["module:make", "a.b.c:make", "a:Class.make", "_a:_b"])
def test_a_module_and_a_callable_with_a_colon_are_a_model_of_ones_own(name):
    assert is_own(name)
    assert str(Subject.parse(name)) == name


@pytest.mark.parametrize("name", ["bert", "a:b:c", "a:", ":b", "1a:b", "a/b:c", "a:b-c", "wav2vec2-bert", ""])
def test_anything_else_is_not(name):
    assert not is_own(name)


@pytest.mark.parametrize("name", ["encoder", "factories.encoder"])
def test_a_callable_is_called_with_length_and_batch_size(name):
    model, positional, inputs = make(own(name), 5, 3)
    assert isinstance(model, nn.Module)
    assert [tuple(each.shape) for each in positional] == [(3, 5, 8)]
    assert inputs == {}
    assert sys.modules["own_models_of_a_test"].calls == [(5, 3)]


def test_several_inputs_stay_in_order_and_named_ones_keep_their_names():
    _, positional, inputs = make(own("several"), 5, 3)
    assert ([tuple(each.shape) for each in positional], inputs) == ([(3, 5, 8), (1,)], {})
    _, positional, inputs = make(own("named"), 5, 3)
    assert (positional, list(inputs)) == ((), ["hidden", "scale"])


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("alone", "returned something of type Encoder"),
        ("three", "returned a tuple of Encoder, Tensor, Tensor"),
        ("turned", "returned a tuple of Tensor, Encoder"),
        ("listed", "returned inputs of type list"),
        ("numbers", "returned inputs of type tuple"),
        ("nothing", "returned inputs of type tuple"),
        ("nobody", "returned inputs of type dict"),
        ("not_callable", "is something of type int"),
    ],
)
def test_what_is_wrong_with_what_came_back_is_said_with_what_was_expected(name, got):
    with pytest.raises(InputError) as caught:
        make(own(name), 5, 3)
    assert str(caught.value).startswith(f"{own(name)} {got}")
    assert "the keyword arguments length and batch_size" in str(caught.value)


@pytest.mark.parametrize("name", ["no_such_module_of_mine:make", own("missing"), own("factories.missing")])
def test_what_cannot_be_imported_is_named(name):
    with pytest.raises(InputError, match=f"cannot import '{name}'.*present folder"):
        make(name, 5, 3)


def test_its_lengths_are_whole_positions_and_no_variant_fits():
    row = architecture_of(Subject.parse(own("encoder")))
    assert (row.unit, row.positions(40), row.executed_positions(40)) == ("tokens", 40, 40)
    assert row.takes_variants is False
    with pytest.raises(UnsupportedError, match=own("encoder")):
        check_subject(Subject.parse(f"{own('encoder')}@local"))


def test_a_model_is_built_for_its_phase():
    inference, training = (build(Workload(own("encoder"), 5, phase=phase)) for phase in ("inference", "training"))
    assert (inference.model.training, training.model.training) == (False, True)
    assert not any(parameter.requires_grad for parameter in inference.model.parameters())
    assert all(parameter.requires_grad for parameter in training.model.parameters())
    assert inference.parameters == training.parameters == 72
    # Weights are the same each time.
    pairs = zip(inference.model.parameters(), training.model.parameters(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


@pytest.mark.parametrize("name", ["encoder", "several", "named"])
def test_a_call_runs_forward_in_inference_and_a_whole_step_in_training(name):
    workload = Workload(own(name), 5, batch_size=3, phase="training")
    live = build(workload)
    before = [parameter.detach().clone() for parameter in live.model.parameters()]
    call = live.call(workload)
    call()
    assert any(not torch.equal(old, new) for old, new in zip(before, live.model.parameters(), strict=True))
    assert call.gradients_bytes == 4 * 72
    assert call.inputs_bytes >= 4 * 3 * 5 * 8
    seen = []
    still = build(workload.replace(phase="inference"))
    still.model.register_forward_hook(lambda module, inputs, output: seen.append(torch.is_inference_mode_enabled()))
    still.call(workload.replace(phase="inference"))()
    assert seen == [True]


def test_inputs_are_made_in_the_dtype_of_the_weights():
    workload = Workload(own("named"), 5, dtype="bfloat16")
    live = build(workload)
    seen = []
    live.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append({name: value.dtype for name, value in kwargs.items()}),
        with_kwargs=True,
    )
    live.call(workload)()
    assert seen == [{"hidden": torch.bfloat16, "scale": torch.bfloat16}]


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"layers": 2}, "leave layers out"),
        ({"size": "tiny"}, "leave size out"),
        ({"width": 8, "layers": 1}, "layers and width"),
    ],
)
def test_depth_width_and_size_are_the_persons_own_business(fields, given):
    with pytest.raises(InputError, match=given):
        build(Workload(own("encoder"), 5, **fields))


HIDDEN = torch.ones(2, 3)


@pytest.mark.parametrize(
    "output",
    [
        HIDDEN,
        (HIDDEN, torch.zeros(1)),
        [torch.ones(2, dtype=torch.long), HIDDEN],
        {"ids": torch.ones(2, dtype=torch.long), "hidden": {"last": HIDDEN}},
        BaseModelOutputWithPooling(last_hidden_state=HIDDEN, pooler_output=torch.zeros(1)),  # type: ignore[arg-type]
    ],
)
def test_a_loss_is_made_of_the_first_tensor_of_floating_point_numbers(output):
    assert first_tensor(output) is HIDDEN


@pytest.mark.parametrize("output", [None, 3, torch.ones(2, dtype=torch.long), (), {"a": torch.ones(1) > 0}])
def test_without_one_there_is_nothing_to_train(output):
    with pytest.raises(InputError, match="training needs a tensor of floating-point numbers to make a loss of, got"):
        first_tensor(output)


def test_a_model_of_ones_own_has_no_depth_to_screen_by_and_a_place_in_every_comparison():
    own, other = Subject("my.models:encoder"), Subject("my.models:other")
    assert architecture_of(own).layers("base") is None
    study = Study(name="mine", modality="text", baselines=(own,), variants=(other,), lengths=(16, 64))
    assert not can_screen(study)
    assert grid(16, 64, own, other)[0] == 16

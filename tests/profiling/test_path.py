"""What ran is what was asked for, and computes what it should; otherwise there is no number."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tippingpoint.attention import linear, linformer, local, nystrom
from tippingpoint.errors import UnsupportedError
from tippingpoint.models.build import LiveSubject, build
from tippingpoint.models.catalog import VARIANTS
from tippingpoint.models.swap import LIBRARY_NAME, swap_attention
from tippingpoint.profiling.flops import count_flops
from tippingpoint.profiling.path import AttentionCalls, check_variants, describe_path, observe_attention
from tippingpoint.workload import Workload

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(subject: str, **fields: Any) -> Workload:
    length = {"hubert": 0.5, "vit": 64, "nystromformer": 70}.get(subject.partition("@")[0], 40)
    return Workload(subject, length, size="tiny", **{"layers": 4, **fields})


def describe(workload: Workload, subject: LiveSubject) -> str:
    with observe_attention() as functions:
        _, operators = count_flops(subject.call(workload))
    return describe_path(workload, subject, functions, operators)


KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
BAND = "full fused attention under a band mask"


@pytest.mark.parametrize(
    ("subject", "path"),
    [
        ("bert", f"sdpa ({KERNEL} x4)"),
        ("bert@sdpa", f"sdpa ({KERNEL} x4)"),
        ("bert@eager", "eager"),
        ("modernbert@eager", "eager"),
        ("hubert@local:window=3", f"local:window=3, {BAND} ({KERNEL} x4)"),
        ("vit@local", f"local:window=128, {BAND} ({KERNEL} x4)"),
        ("bart@nystrom:landmarks=4", f"nystrom:landmarks=4 ({KERNEL} x8)"),
        ("bert@linear:feature_map=elu", "linear:feature_map=elu,num_features=256 (unfused operators)"),
        ("bert@linformer:rank=4", f"linformer:rank=4 ({KERNEL} x4)"),
        # Two of four layers attend within a window of their own.
        ("modernbert@local:window=3", f"local:window=3, {BAND} ({KERNEL} x4)"),
        ("bert@local:window=3,layers=0", f"local:layers=0,window=3, {BAND} ({KERNEL} x4)"),
        (
            "bert@local:window=3,layers=0-2/2+heads:layers=1-3/2",
            f"local:layers=0-2/2,window=3, {BAND} and heads:keep=0.5,layers=1-3/2 ({KERNEL} x4)",
        ),
        ("nystromformer", "the Nystrom approximation with 64 landmarks"),
        ("t5", f"full, a learned bias for each distance of two positions ({KERNEL} x4)"),
    ],
)
def test_the_path_names_the_variant_its_way_and_the_kernel(subject, path):
    workload = tiny(subject)
    assert describe(workload, build(workload)) == path


@pytest.mark.parametrize("compiled", [False, True])
def test_training_takes_the_same_path(compiled):
    workload = tiny("bert@local:window=3", phase="training", compiled=compiled)
    assert describe(workload.replace(compiled=False), build(workload)).startswith(f"local:window=3, {BAND} (")


@pytest.mark.parametrize(
    ("name", "phase", "dropout"),
    [("bert", "inference", 0.0), ("bert", "training", 0.1), ("hubert", "training", 0.1), ("vit", "training", 0.0)],
)
def test_the_way_is_described_from_what_it_was_chosen_by(name, phase, dropout, monkeypatch):
    choose_way, asked = local.choose_way, []

    def noted(*args: Any, **kwargs: Any) -> str:
        asked.append((args, kwargs))
        return choose_way(*args, **kwargs)

    monkeypatch.setattr(local, "choose_way", noted)
    workload = tiny(f"{name}@local:window=3", phase=phase)
    subject = build(workload)
    with observe_attention() as functions:
        subject.call(workload)()
    describe_path(workload, subject, functions, Counter())
    # Once in each layer, and once more for the path.
    assert len(asked) == 4 + 1
    assert asked == asked[:1] * len(asked)
    assert asked[0][1] == {"window": 3, "head_dim": 32, "dropout": dropout}


def test_dropout_in_training_keeps_flexattention_out_of_the_path():
    workload = tiny("bert@local:window=3", phase="training")
    subject = build(workload)
    with observe_attention() as functions:
        subject.call(workload)()
    on_cuda = workload.replace(device="cuda")
    assert f", {local.WAYS['flex']} (" not in describe_path(on_cuda, subject, functions, Counter())
    functions.dropout = 0.0
    assert f", {local.WAYS['flex']} (" in describe_path(on_cuda, subject, functions, Counter())


def put(variant: str, **options: Any) -> Callable[[LiveSubject], Any]:
    return lambda subject: swap_attention(subject.model, variant, **options)


def behind(subject: LiveSubject) -> None:
    """Change the configuration, as code of a model's own could, and leave the layers as they are."""
    config: Any = subject.model.config
    config._attn_implementation_internal = "sdpa"


@pytest.mark.parametrize(
    ("asked", "change"),
    [
        ("bert", put("eager")),
        ("bert", put("local", window=3)),
        ("bert", put("local", window=3, layers=[2])),
        ("bert@eager", put("sdpa")),
        ("bert@eager", put("sdpa", layers=[0])),
        ("bert@local:window=3", put("sdpa")),
        ("bert@local:window=3", put("local", window=4)),
        ("bert@local:window=3", put("local", window=3, num_global=1)),
        ("bert@local:window=3", put("nystrom")),
        ("bert@local:window=3", put("sdpa", layers=[1])),
        ("bert@local:window=3", put("local", window=4, layers=[3])),
        ("bert@local:window=3", behind),
        ("bert@local:window=3,layers=0-1", put("local", window=3)),
        ("bert@local:window=3,layers=0-1", put("sdpa", layers=[0])),
        ("bert@local:window=3,layers=0-1", put("eager", layers=[3])),
        ("bert@local:window=3,layers=0+nystrom:layers=1", put("local", window=3, layers=[1])),
        ("modernbert@local:window=3", put("sdpa", layers=[0])),
        ("modernbert@local:window=3", put("eager", layers=[1])),
        ("bert@linformer:rank=4", put("linformer", rank=5)),
    ],
)
def test_a_model_in_which_something_else_ran_has_no_path(asked, change):
    workload = tiny(asked)
    subject = build(workload)
    assert describe(workload, subject)
    change(subject)
    with pytest.raises(UnsupportedError, match=r"was to run '.*' in 4 layers, and what ran was .* with "):
        describe(workload, subject)


def test_a_layer_that_did_not_run_is_noticed():
    workload = tiny("bert@local:window=3")
    subject = build(workload)
    with pytest.raises(UnsupportedError) as caught:
        describe_path(workload, subject, AttentionCalls({LIBRARY_NAME: 3}), Counter())
    assert str(caught.value) == (
        "bert@local:window=3 was to run 'local:window=3' in 4 layers, and what ran was {'tippingpoint': 3} with "
        "local:window=3 x4"
    )
    with pytest.raises(UnsupportedError, match="what ran was the eager path with local:window=3 x4"):
        describe_path(workload, subject, AttentionCalls(), Counter())


def test_observing_counts_calls_and_leaves_the_librarys_table_as_it_was():
    table = dict(ALL_ATTENTION_FUNCTIONS._global_mapping)
    workload = tiny("bert@local:window=3")
    subject = build(workload)

    def two_calls() -> None:
        with observe_attention() as functions:
            subject.call(workload)()
            assert functions == {LIBRARY_NAME: 4}
            subject.call(workload)()
            assert functions == {LIBRARY_NAME: 8}
            raise InterruptedError

    with pytest.raises(InterruptedError):
        two_calls()
    assert ALL_ATTENTION_FUNCTIONS._global_mapping == table


OPTIONS = ["local:window=7,num_global=3", "local:causal=true", "linear:feature_map=elu", "linformer:rank=8"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", [*VARIANTS, *OPTIONS, "pooled:ratio=7,layers=0", "nystrom:landmarks=1"])
def test_every_variant_passes_the_gate_in_every_precision(attention, dtype):
    check_variants(tiny(f"bert@{attention}", dtype=dtype))


def test_a_subject_without_variants_passes_the_gate():
    check_variants(tiny("bert"))
    check_variants(tiny("nystromformer"))


def larger(attend: Callable[..., Tensor], by: float = 0.1) -> Callable[..., Tensor]:
    """Return an attention that is a little too large."""
    return lambda *args, **others: attend(*args, **others) * (1 + by)


def undefined(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **others: torch.full_like(attend(*args, **others), torch.nan)


def blind(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return an attention that does not look at padding."""
    return lambda *args, padding_mask, **others: attend(*args, padding_mask=None, **others)


def another(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return an attention that takes each number for one less, and each learned projection without its first row."""

    def less(value: Any) -> Any:
        return value - 1 if type(value) is int else value[1:] if isinstance(value, torch.nn.Parameter) else value

    return lambda *args, **others: attend(*args, **{name: less(value) for name, value in others.items()})


WRONG = {"local": local, "nystrom": nystrom, "linear": linear, "linformer": linformer}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mistake", [larger, undefined, blind, another])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_variant_does_not_pass_the_gate(name, mistake, dtype, monkeypatch):
    function = f"{name}_attention"
    monkeypatch.setattr(WRONG[name], function, mistake(getattr(WRONG[name], function)))
    with pytest.raises(UnsupportedError, match=f"^'{name}.*' differs from its definition by .* on cpu in {dtype}"):
        check_variants(tiny(f"bert@{name}", dtype=dtype))
    # In some layers too, and beside a right one.
    with pytest.raises(UnsupportedError, match=f"^'{name}.*' differs from its definition"):
        check_variants(tiny(f"bert@heads:layers=0+{name}:layers=1", dtype=dtype))


def test_a_variant_of_another_package_is_held_against_its_own_definition(monkeypatch):
    row = dataclasses.replace(VARIANTS["local"], name="mine", oracle="tippingpoint.attention.reference:mine")
    table = {**VARIANTS, "mine": row}
    for module in ("models.catalog", "models.swap", "models.layer_attention", "profiling.path"):
        monkeypatch.setattr(f"tippingpoint.{module}.VARIANTS", table)
    monkeypatch.setattr("tippingpoint.attention.reference.mine", larger(local.local_attention), raising=False)
    with pytest.raises(UnsupportedError, match="'mine:window=128' differs from its definition"):
        check_variants(tiny("bert@mine"))
    monkeypatch.setattr("tippingpoint.attention.reference.mine", local.local_attention)
    check_variants(tiny("bert@mine"))

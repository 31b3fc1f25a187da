"""Bytes accessed against closed forms; float32 unless said."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tippingpoint.models.build import build
from tippingpoint.profiling.flops import count_flops
from tippingpoint.profiling.traffic import stored_bytes
from tippingpoint.workload import Workload

pytestmark = pytest.mark.usefixtures("one_thread")

sizes = st.integers(1, 9)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])


def accessed(call: Callable[[], Any]) -> int:
    with torch.inference_mode():
        return accessed_with_gradients(call)


def accessed_with_gradients(call: Callable[[], Any]) -> int:
    found = count_flops(call)[0].bytes_accessed
    assert found is not None
    return found


@given(batch=sizes, rows=sizes, inner=sizes, columns=sizes, dtype=dtypes)
@settings(max_examples=25)
def test_a_product_reads_two_matrices_and_writes_one(batch, rows, inner, columns, dtype):
    left = torch.ones(batch, rows, inner, dtype=dtype)
    right = torch.ones(batch, inner, columns, dtype=dtype)
    elements = rows * inner + inner * columns + rows * columns
    assert accessed(lambda: left[0] @ right[0]) == dtype.itemsize * elements
    # A transposed operand is read where it lies.
    assert accessed(lambda: left[0] @ torch.ones_like(right[0].T).T) == dtype.itemsize * (elements + inner * columns)
    assert accessed(lambda: torch.bmm(left, right)) == dtype.itemsize * batch * elements
    assert accessed(lambda: torch.mm(left[0], right[0], out=torch.empty(rows, columns, dtype=dtype))) == (
        dtype.itemsize * elements
    )


@given(rows=sizes, columns=sizes)
def test_what_is_broadcast_is_read_as_it_is_stored(rows, columns):
    matrix, row, number = torch.ones(rows, columns), torch.ones(columns), torch.ones(())
    size = 4 * rows * columns
    assert accessed(lambda: matrix + matrix.clone()) == 5 * size
    assert accessed(lambda: matrix + row) == 2 * size + 4 * columns
    assert accessed(lambda: matrix + row.expand(rows, columns)) == 2 * size + 4 * columns
    assert accessed(lambda: matrix + number.expand(rows, columns)) == 2 * size + 4
    assert accessed(lambda: matrix * 2) == 2 * size
    # Written out, it is as large as it looks.
    assert accessed(lambda: row.expand(rows, columns).clone()) == 4 * columns + size


CUBE = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.view(6, 4).T[1:].unsqueeze(0).expand(5, -1, -1).select(0, 2).detach(),
        lambda x: x.transpose(0, 1).permute(1, 2, 0).flatten(1, 1).movedim(0, 1),
        lambda x: x.unfold(2, 2, 1).squeeze().chunk(2)[0],
        lambda x: x.reshape(4, 6).contiguous().to(torch.float32).as_strided((2, 2), (1, 0)),
        lambda x: x.view(24).split(5)[1].view(torch.int32),
        lambda x: x.detach().transpose_(0, 1).squeeze_().unsqueeze_(0),
        lambda x: torch.empty(100, 100).new_empty(7).resize_(3),
        lambda x: torch.empty_like(x),
    ],
)
def test_views_and_memory_that_nobody_wrote_move_nothing(view):
    assert accessed(lambda: view(CUBE)) == 0


def test_a_view_that_cannot_be_one_is_a_copy():
    size = 4 * CUBE.numel()
    assert accessed(lambda: CUBE.transpose(0, 1).reshape(-1)) == 2 * size
    assert accessed(lambda: CUBE.transpose(0, 1).contiguous()) == 2 * size
    assert accessed(lambda: CUBE.to(torch.bfloat16)) == size + size // 2


@given(rows=sizes, columns=sizes)
def test_in_place_is_read_and_written_unless_it_is_overwritten(rows, columns):
    def fresh() -> Tensor:
        return torch.empty(rows, columns)

    size = 4 * rows * columns
    assert accessed(lambda: fresh().add_(1)) == 2 * size
    assert accessed(lambda: fresh().add_(torch.empty(columns))) == 2 * size + 4 * columns
    assert accessed(lambda: fresh().addcmul_(fresh(), fresh())) == 4 * size
    assert accessed(lambda: torch.ops.aten._foreach_mul_([fresh(), fresh()], 2.0)) == 4 * size
    for overwrite in (lambda x: x.zero_(), lambda x: x.fill_(3), lambda x: x.normal_(), lambda x: x.bernoulli_(0.5)):
        assert accessed(lambda o=overwrite: o(fresh())) == size
    assert accessed(lambda: fresh().copy_(torch.empty(columns))) == size + 4 * columns
    # A part of it is a part of it.
    assert accessed(lambda: fresh()[:1].mul_(2)) == 2 * 4 * columns
    for make in (torch.zeros_like, torch.rand_like, lambda x: torch.full_like(x, 3), lambda x: x.new_ones(x.shape)):
        assert accessed(lambda m=make: m(fresh())) == size


@given(rows=sizes, columns=sizes, dtype=dtypes)
def test_a_reduction_reads_everything_and_softmax_writes_as_much(rows, columns, dtype):
    x = torch.ones(rows, columns, dtype=dtype)
    size = dtype.itemsize * rows * columns
    assert accessed(lambda: x.softmax(-1)) == 2 * size
    assert accessed(lambda: x.sum()) == size + dtype.itemsize
    assert accessed(lambda: x.amax(0)) == size + dtype.itemsize * columns
    # A question about values reads them, one about shapes does not.
    assert accessed(lambda: torch.equal(x, x.view(x.shape))) == 2 * size
    assert accessed(lambda: (x.numel(), x.is_contiguous(), x.shape)) == 0
    # Mean and reciprocal deviation of each row are outputs too.
    assert accessed(lambda: torch.layer_norm(x, (columns,))) == 2 * size + 2 * rows * dtype.itemsize


@given(rows=sizes, width_in=sizes, width_out=sizes, dtype=dtypes)
def test_a_linear_layer_reads_input_weight_and_bias_and_writes_its_output(rows, width_in, width_out, dtype):
    layer = torch.nn.Linear(width_in, width_out, dtype=dtype)
    x = torch.ones(2, rows, width_in, dtype=dtype)
    expected = 2 * rows * width_in + width_in * width_out + width_out + 2 * rows * width_out
    assert accessed(lambda: layer(x)) == dtype.itemsize * expected


@given(rows=st.integers(2, 9), width_in=st.integers(2, 9), width_out=st.integers(2, 9))
def test_a_training_step_of_a_linear_layer(rows, width_in, width_out):
    layer = torch.nn.Linear(width_in, width_out)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, foreach=False)
    x = torch.ones(rows, width_in)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        layer(x).sum().backward()
        optimizer.step()

    inputs, weight, output = rows * width_in, width_in * width_out, rows * width_out
    forward = inputs + weight + width_out + output
    loss = output + 1
    # The loss's gradient, a 1, is written, and every element of the output's gradient is that 1.
    backward = 1 + (1 + inputs + weight) + (1 + width_out)
    update = 3 * (weight + width_out)
    assert accessed_with_gradients(step) == 4 * (forward + loss + backward + update)


@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    length=st.integers(1, 12),
    width=sizes,
    masked=st.booleans(),
)
def test_fused_attention_reads_queries_keys_values_and_mask_and_writes_its_output(
    batch, heads, length, width, masked
):
    query, key, value = (torch.ones(batch, heads, length, width) for _ in range(3))
    mask = torch.zeros(length, length) if masked else None
    # And the log-sum-exp of each row, which the backward pass would need.
    rows = batch * heads * length
    expected = 4 * (4 * rows * width + rows + (length * length if masked else 0))
    assert accessed(lambda: F.scaled_dot_product_attention(query, key, value, attn_mask=mask)) == expected


def test_eager_attention_writes_and_reads_its_scores():
    """Which is what fused attention is for: 256 x 256 scores four times (made, softmax in and out, used)."""

    def attend(name: str) -> int:
        workload = Workload(f"bert@{name}", 256, size="tiny")
        return accessed(build(workload).call(workload))

    scores = 2 * 2 * 4 * 256 * 256
    assert attend("eager") - attend("sdpa") > 4 * scores


@given(vocabulary=st.integers(20, 50), width=sizes, picked=st.integers(1, 9))
def test_of_a_table_only_the_rows_that_are_picked_are_read(vocabulary, width, picked):
    table, which = torch.ones(vocabulary, width), torch.arange(picked)
    rows = 4 * picked * width
    assert accessed(lambda: F.embedding(which, table)) == 2 * rows + 8 * picked
    assert accessed(lambda: table.index_select(0, which)) == 2 * rows + 8 * picked
    assert accessed(lambda: table[which]) == 2 * rows + 8 * picked
    # Not more than the table is read, however often a row is picked.
    assert accessed(lambda: torch.ones(2, width).index_select(0, torch.zeros(9, dtype=torch.long))) == (
        4 * 2 * width * 2 + 8 * 9 * 2 + 4 * 9 * width
    )


def distinct(tensor: Tensor) -> int:
    """Count the elements of the storage that a tensor shows, by writing to them."""
    base = torch.zeros(tensor.untyped_storage().nbytes() // tensor.element_size())
    base.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(1)
    return int(base.sum())


@given(data=st.data(), shape=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_stored_bytes_are_the_distinct_elements_of_slices_broadcasts_and_windows(data, shape):
    tensor = torch.zeros(*shape)
    order = data.draw(st.permutations(range(len(shape))))
    tensor = tensor.permute(order)
    kind = data.draw(st.sampled_from(["whole", "slice", "broadcast", "windows"]))
    if kind == "slice":
        step = data.draw(st.integers(1, 3))
        tensor = tensor[data.draw(st.integers(0, tensor.shape[0])) :: step]
    elif kind == "broadcast":
        tensor = tensor.unsqueeze(1).expand(-1, data.draw(st.integers(1, 4)), *tensor.shape[1:])
    elif kind == "windows":
        tensor = torch.zeros(*shape).flatten()
        tensor = tensor.unfold(0, data.draw(st.integers(1, len(tensor))), 1)
    assert stored_bytes(tensor) == 4 * distinct(tensor)


def test_keys_that_overlapping_windows_share_are_read_once():
    """Local attention hands over 128 windows of 80 keys, which are 64 apart, as one strided view."""
    keys = torch.zeros(1, 64 * 128 + 16, 32).unfold(1, 80, 64).transpose(-1, -2)
    assert keys.shape == (1, 128, 80, 32)
    assert stored_bytes(keys) == 4 * (64 * 128 + 16) * 32


def test_what_is_not_stored_with_strides_makes_the_bytes_unknown():
    sparse = torch.eye(3).to_sparse()
    flops, _ = count_flops(lambda: [sparse @ torch.ones(3, 3), torch.ones(3) + 1][1])
    assert flops.bytes_accessed is None


@pytest.mark.parametrize("phase", ["inference", "training"])
@given(batch=st.integers(2, 4), length=st.integers(2, 40))
@settings(max_examples=3)
def test_every_sequence_of_a_batch_moves_the_same(phase, batch, length):
    """What does not grow with the batch are weights, their gradients and the optimizer."""
    live = build(Workload("bert", length, phase=phase, size="tiny"))

    def moved(size: int) -> int:
        workload = Workload("bert", length, batch_size=size, phase=phase, size="tiny")
        return accessed_with_gradients(live.call(workload))

    one, two = moved(batch + 1) - moved(batch), moved(batch + 2) - moved(batch + 1)
    assert one == two
    # Of each position at the least what six linear layers of both layers read and write.
    assert one > 4 * length * 2 * (4 * (64 + 64) + 2 * (64 + 128))

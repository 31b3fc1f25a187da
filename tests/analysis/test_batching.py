import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tippingpoint.analysis.batching import WINDOW, Batches, Batching
from tippingpoint.errors import InputError

POLICIES = ("one", "fixed:1", "fixed:7", "bucketed:8", "budget:1000", "packed:700")
LENGTHS = st.lists(st.integers(1, 2000), min_size=1, max_size=300)


def formed(policy: str, lengths: list[int], seed: int = 0) -> Batches:
    return Batching.parse(policy).form(np.array(lengths), np.random.default_rng(seed))


@pytest.mark.parametrize("policy", POLICIES)
@given(lengths=LENGTHS, seed=st.integers(0, 3))
def test_every_item_is_in_exactly_one_batch_that_is_long_enough_for_it(policy, lengths, seed):
    batches = formed(policy, lengths, seed)
    assert sorted(batches.items.tolist()) == sorted(lengths)
    assert batches.counts.sum() == len(lengths)
    for number, items in enumerate(batches.parts()):
        length = batches.lengths[number]
        if policy.startswith("packed"):
            assert (batches.sequences[number], length) == (1, items.sum())
        else:
            assert (batches.sequences[number], length) == (len(items), items.max())
    assert 0 <= batches.padding < 1


@given(lengths=LENGTHS)
def test_a_fixed_batch_is_full_but_for_one(lengths):
    counts = formed("fixed:7", lengths).counts.tolist()
    assert sorted(counts, reverse=True)[: len(lengths) // 7] == [7] * (len(lengths) // 7)
    assert len(counts) == -(-len(lengths) // 7)


@given(lengths=LENGTHS)
def test_a_budget_is_kept_or_the_batch_is_one_item(lengths):
    batches = formed("budget:1000", lengths)
    assert all((batches.sequences * batches.lengths <= 1000) | (batches.counts == 1))


@given(lengths=LENGTHS)
def test_a_pack_holds_no_more_than_it_may_or_is_one_item(lengths):
    batches = formed("packed:700", lengths)
    assert all((batches.lengths <= 700) | (batches.counts == 1))
    # Best fit leaves no two packs that would go into one.
    short = np.sort(batches.lengths)[:2]
    assert len(short) < 2 or short.sum() > 700
    assert batches.padding == pytest.approx(0)


@pytest.mark.parametrize("policy", POLICIES)
def test_items_of_one_length_are_never_padded(policy):
    assert formed(policy, [100] * 50).padding == pytest.approx(0)


def test_like_lengths_together_pad_less_than_batches_as_they_come():
    lengths = np.random.default_rng(0).lognormal(5, 1, 4000).round().clip(1).astype(int).tolist()
    fixed, bucketed, budget = (formed(p, lengths).padding for p in ("fixed:8", "bucketed:8", "budget:2000"))
    assert fixed > 0.5
    assert bucketed < fixed / 3
    assert budget < fixed / 3


def test_sorting_reaches_no_further_than_a_window():
    # Were all items sorted, no batch would mix; within windows of 50 batches, each of them begins anew.
    lengths = list(range(1, 1 + 4 * 2 * WINDOW))
    spans = [int(np.ptp(items)) for items in formed("bucketed:4", lengths).parts()]
    assert max(spans) > 3
    assert sorted(spans)[len(spans) // 2] < 20


def test_batches_come_in_random_order_which_the_generator_says():
    lengths = list(range(1, 401))
    first, again, other = (formed("bucketed:8", lengths, seed).lengths.tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert first != sorted(first, reverse=True)


@pytest.mark.parametrize("text", ["one", "fixed:8", "bucketed:32", "budget:16384", "budget:2.5", "packed:4096"])
def test_a_policy_is_written_as_it_is_read(text):
    assert str(Batching.parse(text)) == text
    assert Batching.parse(Batching.parse(text)) == Batching.parse(text)
    assert Batching.parse("budget:16k") == Batching("budget", 16000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "cannot read the batching ''; expected one, fixed:ITEMS"),
        ("eight", "cannot read the batching 'eight'"),
        ("fixed", "batching 'fixed' needs a size; expected one, fixed:ITEMS"),
        ("fixed:", "cannot read the batching 'fixed:'"),
        ("fixed:2.5", "a batch holds a whole number of items, at least 1, got 2.5"),
        ("bucketed:0.5", "a batch holds a whole number of items"),
        ("one:3", "batching one by one has no size, got 3"),
        ("budget:-3", "a length must be a number with a unit"),
        ("packed:lots", "a length must be a number with a unit"),
    ],
)
def test_a_policy_that_cannot_be_read_says_what_was_expected(text, expected):
    with pytest.raises(InputError, match=expected):
        Batching.parse(text)


@pytest.mark.parametrize(("kind", "size"), [("budget", 0), ("packed", -1), ("fixed", float("nan"))])
def test_a_policy_that_cannot_be_is_refused(kind, size):
    with pytest.raises(InputError):
        Batching(kind, size)


@pytest.mark.parametrize("policy", ["budget:100", "packed:100"])
def test_images_are_neither_packed_nor_counted_by_length(policy):
    with pytest.raises(InputError, match="images take one, fixed:N or bucketed:N"):
        Batching.parse(policy).check_modality("vision")
    Batching.parse(policy).check_modality("speech")


@pytest.mark.parametrize(
    ("policy", "length", "sequences"),
    [
        ("one", 9, 1),
        ("fixed:8", 9, 8),
        ("bucketed:8", 9, 8),
        ("budget:100", 9, 11),
        ("budget:100", 300, 1),
        ("packed:9", 9, 1),
    ],
)
def test_a_full_batch_has_so_many_sequences(policy, length, sequences):
    assert Batching.parse(policy).sequences(length) == sequences

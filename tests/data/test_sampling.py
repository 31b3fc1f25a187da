import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tippingpoint.data import Skipped
from tippingpoint.data.item_lengths import Lengths
from tippingpoint.data.sampling import DEFAULT_SAMPLE, Sample, keys_of, parse_sample
from tippingpoint.data.tally import Tally
from tippingpoint.errors import InputError

splits = st.lists(st.integers(0, 4000), min_size=1, max_size=30)


def drawn(sample: Sample, sizes: list[int]) -> tuple[set[int], int]:
    """The items of a sample of a stream that comes in pieces, and how many were read to find them."""
    tally, first, read = Tally(sample.most), 0, 0
    for size in sizes:
        chosen, keys = sample.choose(size)
        tally.add(keys, first + chosen, Lengths(1.0 + first + chosen))
        first += size
        read += len(chosen)
    return {int(length) - 1 for length in tally.found().lengths}, read


def test_a_sample_is_a_number_a_share_or_all():
    given = ["all", "ALL", None, "5%", 0.05, "200k", 7, "1M", DEFAULT_SAMPLE]
    assert [parse_sample(each) for each in given] == [None, None, None, 0.05, 0.05, 200_000, 7, 10**6, 10**6]


@pytest.mark.parametrize("sample", ["some", "0", -3, "5.5", "150%", "0%", "nan", ""])
def test_a_sample_that_is_none_of_these_is_refused(sample):
    with pytest.raises(InputError, match=r"(sample|share) must be"):
        parse_sample(sample)


@given(splits, st.integers(1, 3000), st.integers(0, 2**40))
def test_the_items_with_the_smallest_keys_are_drawn_however_the_stream_is_cut(sizes, most, seed):
    total = sum(sizes)
    sample = Sample(most, seed)
    expected = set(np.argsort(keys_of(0, total, seed))[:most].tolist())
    assert drawn(sample, sizes)[0] == expected
    assert (sample.seen, sample.is_part) == (total, total > most)


@given(splits)
def test_everything_is_drawn_where_everything_is_wanted(sizes):
    assert drawn(Sample(None), sizes) == (set(range(sum(sizes))), sum(sizes))
    assert drawn(Sample(10**6), sizes) == (set(range(sum(sizes))), sum(sizes))


def test_few_more_items_are_read_than_are_kept():
    total, most = 3_000_000, 30_000
    kept, read = drawn(Sample(most), [10_000] * (total // 10_000))
    assert len(kept) == most
    assert read < 1.25 * most * (1 + np.log(total / most))


def test_every_item_is_as_likely_as_any_other():
    hits = np.zeros(200)
    for seed in range(2000):
        hits[sorted(drawn(Sample(20, seed), [50] * 4)[0])] += 1
    # Binomial with n = 2,000 and p = 0.1: nothing beyond five standard deviations.
    assert np.abs(hits - 200).max() < 5 * np.sqrt(2000 * 0.1 * 0.9)


def test_a_share_is_drawn_item_by_item():
    kept, read = drawn(Sample(0.05), [1000] * 100)
    assert read == len(kept)
    assert abs(read - 5000) < 5 * np.sqrt(100_000 * 0.05 * 0.95)
    assert drawn(Sample(0.05), [100_000])[0] == kept
    assert drawn(Sample(0.05, seed=1), [100_000])[0] != kept


def test_what_was_skipped_belongs_to_the_sample_as_what_was_read_does():
    every, most = 5000, 1000
    sample, tally = Sample(most), Tally(most)
    for first in range(0, every, 100):
        chosen, keys = sample.choose(100)
        numbers = first + chosen
        lengths = Lengths(np.full(len(chosen), 3.0))
        for place, number in enumerate(numbers.tolist()):
            if number % 2:
                lengths.skip(place, Skipped(f"{number}", "odd"))
        tally.add(keys, numbers, lengths)
    tally.note(70, Skipped("folder", "closed"))
    found = tally.found()
    kept = sorted(np.argsort(keys_of(0, every, 0))[:most].tolist())
    odd = [number for number in kept if number % 2]
    assert dict(found.reasons) == {"odd": len(odd), "closed": 1}
    assert found.counts == (most - len(odd),)
    names = [*(str(number) for number in odd if number < 70), "folder", *(str(n) for n in odd if n >= 70)]
    assert [item.path for item in found.skipped] == names[:1000]


@given(st.permutations(range(12)))
def test_results_may_come_in_any_order(order):
    tally = Tally()
    for batch in order:
        numbers = np.arange(batch * 500, batch * 500 + 500)
        lengths = Lengths((numbers % 7 + 1).astype(float))
        kinds = ("even", f"of batch {batch % 3}")
        for place in range(0, 500, 2):
            lengths.skip(place, Skipped(str(numbers[place]), f"{kinds[(place + batch) // 2 % 2]}: {place}"))
        tally.add(numbers.astype(np.uint64), numbers, lengths)
    found = tally.found()
    assert [item.path for item in found.skipped] == [str(number) for number in range(0, 2000, 2)]
    assert sum(found.counts) == 3000
    assert dict(found.reasons) == {"even": 1500, "of batch 0": 500, "of batch 1": 500, "of batch 2": 500}

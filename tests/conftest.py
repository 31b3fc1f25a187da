"""What all tests share."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

# Timings of single examples say nothing on a busy machine; the same examples each time keep the verdict stable.
settings.register_profile("tippingpoint", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("tippingpoint")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute on one thread: sharing out a tiny tensor takes longer than working on it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

"""What all tests share."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

# Timings of single examples say nothing on a busy machine; the same examples each time keep the verdict stable.
settings.register_profile("tippingpoint", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("tippingpoint")


@pytest.fixture(scope="session", autouse=True)
def locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the processes of a test run not wait for each other: no test looks at how long something took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIPPINGPOINT_LOCKS", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute on one thread: sharing out a tiny tensor takes longer than working on it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

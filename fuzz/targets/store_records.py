"""Records in a store that is otherwise whole: a measurement of a stranger, with numbers of whatever size."""

from contextlib import suppress
from pathlib import Path

from targets.scratch import written
from targets.store_files import plant
from tippingpoint.errors import TippingPointError
from tippingpoint.store import Store

JSON = True
TOKENS = (b"1e308", b"-1", b"0", b"NaN", b"null", b"[]", b"{}", b'""', b"9" * 30, b'"\\u001b[2J"', b'"os:system"')
_STORE = Path(__file__).parents[1] / "corpus" / "store_files" / "found"
_WHOLE = _STORE.read_bytes() if _STORE.exists() else b""


def one_input(data: bytes) -> None:
    """Read a store that holds a record, and derive what is derived of it."""
    path = written(_WHOLE, ".sqlite")
    plant(str(path), data.decode("utf-8", "replace"))
    with suppress(TippingPointError), Store(path, create=False) as store:
        store.measurements()
        for outcome in store.outcomes():
            str(outcome)
            repr(outcome)

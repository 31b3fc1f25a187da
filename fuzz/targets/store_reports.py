"""What verbs say of a store that holds a stranger's record."""

import io
from contextlib import redirect_stderr, redirect_stdout

from targets.scratch import path_of, written
from targets.store_files import plant
from targets.store_records import _WHOLE, TOKENS  # noqa: F401
from tippingpoint.cli import main

JSON = True
_REPORTS = tuple(["report", "STORE", "-o", f"OUT.{end}"] for end in ("html", "md", "csv", "tex", "parquet"))
_VERBS = (
    ["show", "STORE"],
    ["show", "STORE", "--warnings", "--details"],
    ["show", "STORE", "--csv"],
    ["show", "STORE", "--json"],
    ["show", "STORE", "--speed-ups"],
    ["compare", "STORE", "STORE"],
    *_REPORTS,
)


def one_input(data: bytes) -> None:
    """Run a verb; which one follows from the data."""
    path = written(_WHOLE, ".sqlite")
    plant(str(path), data.decode("utf-8", "replace"))
    verb = _VERBS[sum(data) % len(_VERBS)]
    names = {"STORE": str(path)} | {
        f"OUT.{end}": str(path_of(f".{end}")) for end in ("html", "md", "csv", "tex", "parquet")
    }
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([names.get(word, word) for word in verb])
    assert code in (0, 1, 2), code
    assert "\x1b" not in out.getvalue() + err.getvalue(), "a terminal would obey"

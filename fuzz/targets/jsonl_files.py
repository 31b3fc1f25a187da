"""JSON Lines, of texts and of recordings by path."""

from targets.scratch import read

TOKENS = (
    b'{"text": ',
    b'"audio": ',
    b'{"bytes": null, "path": "../../etc/passwd"}',
    b"[" * 50,
    b"\n",
    b"\\ud800",
    b"1e999",
    b"NaN",
    b"9" * 5000,
    b"\xff",
    b"\x00",
    b'"\\u0000"',
    b"[1, 2]",
    b"true",
)


def one_input(data: bytes) -> None:
    """Read texts or token ids, then paths."""
    read(data, ".jsonl", "text")
    read(data, ".jsonl", "speech", column="audio")

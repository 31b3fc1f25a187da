"""A process that turns batches of items into lengths, asked over a pipe: python -m tippingpoint.data.worker FD.

The first thing to come is the `LengthReader`, then batches, each answered with its lengths or with the error that
ends the reading. It ends when the other side hangs up.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from tippingpoint.errors import TippingPointError


def serve(connection: Connection) -> None:
    """Answer until the parent hangs up."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        read = connection.recv()
        while True:
            parts = connection.recv()
            try:
                answer = read(parts)
            except TippingPointError as error:
                answer = error
            connection.send(answer)


def _die_first() -> None:
    """Ask Linux to end this process rather than another one when memory runs out."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


if __name__ == "__main__":
    _die_first()
    serve(Connection(int(sys.argv[1])))

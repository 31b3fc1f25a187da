"""The process behind `Process`, asked over a pipe: python -m tippingpoint.data.worker FD.

The first thing to come is the function, then what to call it with, each answered with what it returns or with the
error that it raises. It ends when the other side hangs up.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from tippingpoint.errors import TippingPointError


def serve(connection: Connection) -> None:
    """Answer until the parent hangs up."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        function = connection.recv()
        while True:
            question = connection.recv()
            try:
                answer = function(question)
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

"""The process behind `Process`, asked over a pipe: python -m tippingpoint.data.worker FD PARENT.

The first thing to come is the function, then what to call it with, each answered with what it returns or with the
error that it raises. It ends when the other side hangs up, and on Linux is killed when that
has ended, also in the middle of an answer.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from tippingpoint.endings import die_first, die_with
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


if __name__ == "__main__":
    die_with(int(sys.argv[2]))
    die_first()
    serve(Connection(int(sys.argv[1])))

"""Messages between a worker and its parent over a socket: each a length and a pickle.

Neither side waits for ever for the other where it has a deadline, and the parent takes nothing from a worker but
the records that answers are made of: a subject may write into the socket too, and nothing is imported by reading an
answer.
"""

from __future__ import annotations

import io
import pickle
import select
import socket
import struct
from typing import Any

from tippingpoint.profiling.answers import RECORDS
from tippingpoint.profiling.device import now

_LENGTH = struct.Struct("=Q")
# No message comes near; a length beyond it is not one.
_MOST_BYTES = 2**28
_CHUNK_BYTES = 2**20


class GarbledError(ValueError):
    """What came is no message."""


class Wire:
    """One end of a connection.

    Args:
        connection: A connected socket, which belongs to the wire from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(self, message: Any, deadline: float | None = None) -> None:
        """Send a message.

        Args:
            message: Anything that can be pickled; whatever pickling it raises comes before a byte is sent.
            deadline: By the clock of `device.now`.

        Raises:
            TimeoutError: If the other side did not take it in time.
            OSError: If there is no other side.
        """
        data = pickle.dumps(message)
        self._socket.settimeout(None if deadline is None else max(1e-3, deadline - now()))
        self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self, deadline: float | None = None, end: socket.socket | None = None) -> Any:
        """Return the next message.

        Args:
            deadline: By the clock of `device.now`.
            end: Becomes readable when the sender has ended, though others may hold its end of the connection.

        Raises:
            TimeoutError: If it did not come in time.
            EOFError: If the sender is gone.
            GarbledError: If what came is no message.
        """
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size, deadline, end))
        if length > _MOST_BYTES:
            raise GarbledError("what came begins with no length")
        data = self._exactly(length, deadline, end)
        if end is None:
            return pickle.loads(data)
        try:
            return _Records(io.BytesIO(data)).load()
        except Exception as error:
            raise GarbledError(f"{type(error).__name__}: {error}") from error

    def _exactly(self, size: int, deadline: float | None, end: socket.socket | None) -> bytes:
        data = bytearray()
        poller = select.poll()
        for each in filter(None, (self._socket, end)):
            poller.register(each, select.POLLIN)
        while len(data) < size:
            left = None if deadline is None else max(0.0, 1000 * (deadline - now()))
            ready = {descriptor for descriptor, _ in poller.poll(left)}
            if not ready:
                raise TimeoutError
            # What was said before the end counts.
            if self._socket.fileno() not in ready:
                raise EOFError
            try:
                part = self._socket.recv(min(size - len(data), _CHUNK_BYTES), socket.MSG_DONTWAIT)
            except ConnectionError as error:
                raise EOFError from error
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class _Records(pickle.Unpickler):
    """Reads what workers answer: plain values, and the records that answers are made of. It imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        record = RECORDS.get((module, name))
        if record is None:
            raise pickle.UnpicklingError(f"{module}.{name} is no record of a measurement")
        return record

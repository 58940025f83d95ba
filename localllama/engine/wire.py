"""Messages on a stream socket: four bytes of length (little endian), then msgpack.

Knows framing only; what the messages mean is in api.py.
"""

from __future__ import annotations

import socket
from typing import Any, Generic, TypeVar

import msgspec

from localllama.errors import EngineError, InvalidParameter

T = TypeVar("T")

_LENGTH_BYTES = 4
_LONGEST_BYTES = 64 << 20  # far above any prompt; a length beyond it is a stream out of step


def send(sock: socket.socket, message: msgspec.Struct) -> None:
    """Send one message.

    Raises OSError when the other side is gone, EngineError if the message is too long,
    InvalidParameter if it has a number that msgpack has no place for.
    """
    try:
        data = msgspec.msgpack.encode(message)
    except OverflowError as error:
        raise InvalidParameter("a whole number of the request has more than 64 bits") from error
    if len(data) > _LONGEST_BYTES:
        raise EngineError(
            f"the request has {len(data) >> 20} MiB, more than the {_LONGEST_BYTES >> 20} MiB "
            "that a model process takes"
        )
    sock.sendall(len(data).to_bytes(_LENGTH_BYTES, "little") + data)


class Receiver(Generic[T]):
    """Reads messages of one union of structs from a socket."""

    def __init__(self, sock: socket.socket, kind: Any) -> None:
        # ``kind`` is a Union, which is no ``type[T]``: callers write Receiver[Reply](sock, Reply).
        self._sock = sock
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def receive(self) -> T | None:
        """Return the next message, or None at the end of the stream.

        Raises EngineError for bytes that are no message.
        """
        head = self._take(_LENGTH_BYTES)
        if head is None:
            return None
        length = int.from_bytes(head, "little")
        if length > _LONGEST_BYTES:
            raise EngineError(f"a message of {length} bytes is too long for this protocol")
        data = self._take(length)
        if data is None:
            return None
        try:
            return self._decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise EngineError(f"a message that cannot be read: {error}") from error

    def _take(self, count: int) -> bytes | None:
        while len(self._buffer) < count:
            try:
                more = self._sock.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not more:
                return None
            self._buffer += more
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

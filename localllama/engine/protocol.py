"""What clients and a worker say to each other: api.py's values under ids, and about the worker.

A client numbers its requests from 1; replies carry the same number. Number 0 is the worker itself:
who sends KeepAlive becomes a client, hears Loading until the model is loaded, then Ready.
"""

from __future__ import annotations

import msgspec

from localllama.engine.api import Cancel, Failed, LoadOptions, Reply, Task
from localllama.errors import ContextFull, LocalLlamaError

WORKER = 0


class KeepAlive(msgspec.Struct, frozen=True, tag="keep_alive"):
    """I am a client; stay for so many seconds after the last one has left. Negative = for ever."""

    seconds: float


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Unload: the clients are told ``why``. ``only_idle`` = not while a reply is under way."""

    why: str
    only_idle: bool = False


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Write nothing of ``conversation`` to disk from now on; answered with Status."""

    conversation: str


class Inquire(msgspec.Struct, frozen=True, tag="inquire"):
    """Answer with Status; the sender does not count as a client."""


class Status(msgspec.Struct, frozen=True, tag="status"):
    """What the worker is doing. ``seconds_left`` None = in use, or kept for ever."""

    loaded: bool
    clients: int
    running: int  # replies under way
    idle_seconds: float  # since the last reply ended
    seconds_left: float | None


class Asked(msgspec.Struct, frozen=True):
    """From a client to the worker."""

    id: int
    request: Task | Cancel | KeepAlive | Stop | Forget | Inquire


class Answered(msgspec.Struct, frozen=True):
    """From the worker to a client."""

    id: int
    reply: Reply | Status


class Start(msgspec.Struct, frozen=True):
    """What a worker gets on stdin: what it loads, and the files that it takes away with it."""

    options: LoadOptions
    files: tuple[str, ...]


def failed(error: LocalLlamaError) -> Failed:
    """The error as a client gets it."""
    if isinstance(error, ContextFull):
        return Failed(
            error.code, error.message, error.hint, error.needed_tokens, error.available_tokens
        )
    return Failed(error.code, error.message, error.hint)

"""A front end's side of a worker: starts or joins it, streams replies, explains its death.

Knows no llama.cpp; what is said is in protocol.py, over wire.py.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar, Unpack

import psutil

from localllama.engine import launch, wire
from localllama.engine import sampling as parameters
from localllama.engine.api import (
    Cancel,
    Detokenize,
    Detokenized,
    Done,
    Embed,
    Event,
    Failed,
    Further,
    Generate,
    Loading,
    LoadOptions,
    Message,
    Prefill,
    Ready,
    Reply,
    Sampling,
    Task,
    Text,
    Tokenize,
    Tokens,
    Truncated,
    Vector,
)
from localllama.engine.protocol import WORKER, Answered, Asked, KeepAlive, Start, Status
from localllama.engine.registry import Label, Record, Registry
from localllama.errors import ContextFull, EngineError, LocalLlamaError, WorkerDied
from localllama.files import storing

_EXIT_SECONDS = 10.0  # a worker answers the end of a connection at once, unless it hangs

# What a stream waits for: a reply, Cancel from another thread, None when the worker is gone.
_Inbox = SimpleQueue[Reply | Status | Cancel | None]
_T = TypeVar("_T")


class Stream(Generic[_T]):
    """The answers to a request, in the order in which they come; the request is sent by the first
    next(). Leaving or closing it early cancels the request."""

    def __init__(self, inbox: _Inbox, answers: Generator[_T, None, None]) -> None:
        self._inbox = inbox
        self._answers = answers

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _T:
        return next(self._answers)

    def cancel(self) -> None:
        """Let it go on to Done(reason="cancelled"); from any thread or a signal handler."""
        # The stream's own thread sends it: this one may be in the middle of sending.
        self._inbox.put(Cancel())

    def close(self) -> None:
        """Cancel the request unless it is over; from the thread that reads the stream."""
        self._answers.close()


class Engine:
    """A loaded model in a worker process; made by start() or join(), left by close().

    Several replies can be under way at once, each in a thread of its own. ``ready`` tells what was
    loaded, once wait_ready() has returned.
    """

    ready: Ready

    def __init__(
        self, sock: socket.socket, registry: Registry, record: Record, child: launch.Child | None
    ) -> None:
        self.record = record
        self._sock = sock
        self._registry = registry
        self._child = child  # None = somebody else's
        self._ids = count(WORKER + 1)
        self._inboxes: dict[int, _Inbox] = {WORKER: _Inbox()}
        self._sending = threading.Lock()
        self._closed = False
        self._farewell: Failed | None = None  # why the worker has ended, in its own words
        self._death: WorkerDied | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @classmethod
    def start(cls, options: LoadOptions, registry: Registry, label: Label) -> Self:
        """Start a worker that loads ``options`` and be its first client; needs registry.lock().

        Raises EngineError, StoreError.
        """
        id, listener = registry.listen()
        sock = socket.socket(socket.AF_UNIX)
        process = None
        try:
            with listener, storing(registry.logs):
                sock.connect(str(registry.socket(id)))
                wire.send(sock, Asked(WORKER, KeepAlive(options.keep_alive_seconds)))
                process = launch.spawn(listener.fileno(), registry.new_log(id))
                record = Record(
                    id=id,
                    pid=process.pid,
                    process_started=psutil.Process(process.pid).create_time(),
                    label=label,
                    context_length=options.context_length,
                    started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                )
                # Before it goes on: a worker that fails at once must find its record to remove it.
                registry.publish(record)
                launch.hand_over(process, Start(options, tuple(map(str, registry.files(id)))))
        except BaseException:
            sock.close()
            if process is not None:
                process.kill()
                launch.Child(process)
            for file in registry.files(id):
                file.unlink(missing_ok=True)
            raise
        return cls(sock, registry, record, launch.Child(process))

    @classmethod
    def join(cls, record: Record, registry: Registry, keep_alive_seconds: float) -> Self | None:
        """Become a client of a worker that is there; None when it has gone or hangs."""
        try:
            sock = registry.connect(record)
            if sock is not None:
                wire.send(sock, Asked(WORKER, KeepAlive(keep_alive_seconds)))
        except (TimeoutError, BrokenPipeError):
            return None
        return cls(sock, registry, record, None) if sock else None

    @property
    def label(self) -> Label:
        """What the worker holds."""
        return self.record.label

    @property
    def alive(self) -> bool:
        """Whether the worker is there, as far as is known without asking it."""
        return self._reader.is_alive()

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self.record.pid

    @property
    def joined(self) -> bool:
        """Whether somebody else started the worker."""
        return self._child is None

    def wait_ready(self, on_progress: Callable[[float], None] | None = None) -> Self:
        """Return when the model is loaded; ``on_progress`` gets fractions from 0 to 1.

        Raises what loading raises (BadFile, DoesNotFit, StoreError, InvalidParameter) and
        WorkerDied; then the engine is closed.
        """
        try:
            while True:
                reply = self._take(WORKER)
                if isinstance(reply, Ready):
                    self.ready = reply
                    return self
                if isinstance(reply, Loading) and on_progress is not None:
                    on_progress(reply.fraction)
        except BaseException:
            self.close()
            raise

    def stream(
        self,
        sampling: Sampling,
        *,
        messages: Sequence[Message] = (),
        prompt: str | None = None,
        reserve_tokens: int = 0,
        think: bool | None = None,
        continue_last: bool = False,
        **further: Unpack[Further],
    ) -> Stream[Event]:
        """Reply to ``messages`` or continue ``prompt``; see generate()."""
        return self.generate(
            Generate(
                sampling,
                tuple(messages),
                prompt,
                reserve_tokens,
                think,
                continue_last=continue_last,
                **further,
            )
        )

    def generate(self, request: Generate) -> Stream[Event]:
        """Yield what comes of a reply: Truncated, Prefill and Text, at the end Done.

        The engine can be used again at once after the stream was left early. Raises
        InvalidParameter now; ContextFull, InvalidTemplate, EngineError and WorkerDied while
        iterating.
        """
        parameters.validate(request.sampling)
        return self._ask(request, (Prefill, Text, Truncated, Done))

    def embed(
        self,
        inputs: Sequence[str | tuple[int, ...]],
        *,
        truncate: bool = False,
        normalise: bool = True,
        dimensions: int = 0,
    ) -> Stream[Vector | Done]:
        """Yield a Vector for each text (or its tokens) in order, then Done.

        See api.Embed. Raises InvalidParameter, ContextFull, DoesNotFit, EngineError and WorkerDied
        while iterating.
        """
        request = Embed(tuple(inputs), truncate, normalise, dimensions)
        return self._ask(request, (Vector, Done))

    def tokenize(self, prompt: str | Generate) -> tuple[int, ...]:
        """Return the tokens of a text, without BOS, or those that a request begins with.

        Raises what generate() raises.
        """
        (answer,) = self._ask(Tokenize(prompt), (Tokens,))
        return answer.tokens

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Return the text of tokens; raises InvalidParameter for one that there is not."""
        (answer,) = self._ask(Detokenize(tuple(tokens)), (Detokenized,))
        return answer.data

    def keep(self, seconds: float) -> None:
        """Let the worker stay so long after its last client has left; negative = for ever.

        Raises WorkerDied, EngineError.
        """
        self._send(WORKER, KeepAlive(seconds))

    def _ask(self, request: Task, kinds: tuple[type[_T], ...]) -> Stream[_T]:
        inbox = _Inbox()
        return Stream(inbox, self._answers(inbox, request, kinds))

    def _answers(
        self, inbox: _Inbox, request: Task, kinds: tuple[type[_T], ...]
    ) -> Generator[_T, None, None]:
        id = next(self._ids)
        self._inboxes[id] = inbox
        over = False
        try:
            self._send(id, request)
            while not over:
                answer = self._take(id)
                if not isinstance(answer, kinds):
                    raise EngineError("the model process answered something else than was asked")
                over = isinstance(answer, Done | Tokens | Detokenized)
                yield answer
        except LocalLlamaError:
            over = True
            raise
        finally:
            del self._inboxes[id]  # what is still on its way is dropped
            if not over:
                with suppress(
                    EngineError
                ):  # who stopped listening learns of it at the next request
                    self._send(id, Cancel())

    def cancel(self) -> None:
        """Stop the running replies, if any; their streams go on to Done(reason="cancelled").

        May be called from another thread or a signal handler.
        """
        # Each stream's own thread sends it: this one may be in the middle of sending.
        for id, inbox in list(self._inboxes.items()):
            if id != WORKER:
                inbox.put(Cancel())

    def close(self) -> None:
        """Leave the worker; with a keep-alive of 0 the last client also waits until it is gone."""
        if self._closed:
            return
        self._closed = True
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        # The worker closes its side when it stays, the end of its process does when it goes.
        self._reader.join(_EXIT_SECONDS)
        self._sock.close()
        if self._child and not self._registry.socket(self.record.id).exists():
            self._child.exit_status(_EXIT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> None:
        """Give every reply to the stream that waits for it; ends with the connection."""
        receiver = wire.Receiver[Answered](self._sock, Answered)
        with suppress(OSError, EngineError):  # a stream out of step is as good as ended
            while (answer := receiver.receive()) is not None:
                if answer.id == WORKER and isinstance(answer.reply, Failed):
                    self._farewell = answer.reply
                if (inbox := self._inboxes.get(answer.id)) is not None:
                    inbox.put(answer.reply)
        for inbox in list(self._inboxes.values()):
            inbox.put(None)

    def _take(self, id: int) -> Reply | Status:
        """Return the next reply to a request; raises its failure, and WorkerDied."""
        inbox = self._inboxes[id]
        while isinstance(reply := inbox.get(), Cancel):
            self._send(id, reply)
        if reply is None:
            raise self._died()
        if isinstance(reply, Failed):
            raise _error(reply)
        return reply

    def _send(self, id: int, request: Task | Cancel | KeepAlive) -> None:
        if self._closed:
            raise EngineError("the model was unloaded")
        if self._death is not None:
            raise self._death
        try:
            with self._sending:
                wire.send(self._sock, Asked(id, request))
        except OSError as error:
            raise self._died() from error

    def _died(self) -> WorkerDied:
        """Say how the worker ended."""
        if self._death is None:
            self._reader.join(_EXIT_SECONDS)
            if self._farewell:
                self._death = WorkerDied(self._farewell.message, self._farewell.hint)
            else:
                status = self._child.exit_status(_EXIT_SECONDS) if self._child else None
                how, hint = launch.explain(status)
                log = launch.tail(self._registry.log(self.record.id))
                message = f"the process that held the model is gone: {how}"
                self._death = WorkerDied(message, hint, log)
            self._registry.forget(self.record.id)
        return self._death


def _error(failed: Failed) -> LocalLlamaError:
    """The error that the worker raised."""
    kind = _BY_CODE.get(failed.code, EngineError)
    if issubclass(kind, ContextFull):
        return kind(
            failed.message,
            failed.hint,
            needed_tokens=failed.needed_tokens,
            available_tokens=failed.available_tokens,
        )
    return kind(failed.message, failed.hint)


def _with_subclasses(kind: type[LocalLlamaError]) -> Iterator[type[LocalLlamaError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _with_subclasses(narrower)


_BY_CODE = {kind.code: kind for kind in _with_subclasses(LocalLlamaError)}

"""A front end's side of a worker: starts it, streams replies, explains its death.

Knows no llama.cpp; the protocol is api.py over wire.py.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from localllama.engine import sampling as parameters
from localllama.engine import wire
from localllama.engine.api import (
    Cancel,
    Done,
    Event,
    Failed,
    Generate,
    Loading,
    LoadOptions,
    Message,
    Prefill,
    Ready,
    Reply,
    Request,
    Sampling,
    Text,
)
from localllama.errors import ContextFull, EngineError, LocalLlamaError, WorkerDied
from localllama.files import storing

_EXIT_SECONDS = 10.0  # a worker that hung up ends at once; after this it is killed
_KEPT_LOGS = 10
_LOG_TAIL_BYTES = 4000


class Engine:
    """A loaded model in a worker process; made by Engine.start(), ended by close().

    One reply at a time. ``ready`` tells what was loaded.
    """

    ready: Ready

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, log: Path) -> None:
        self._process = process
        self._sock = sock
        self._log = log
        self._receiver = wire.Receiver[Reply](sock, Reply)
        self._running = False  # a Generate was sent whose Done has not come
        self._cancelled = False
        self._death: WorkerDied | None = None

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @classmethod
    def start(
        cls,
        options: LoadOptions,
        *,
        log_dir: Path,
        on_progress: Callable[[Loading], None] | None = None,
    ) -> Self:
        """Start a worker and load the model; return when it is ready.

        Raises what loading raises (BadFile, DoesNotFit, StoreError, InvalidParameter) and
        WorkerDied.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process, log = _spawn(theirs, log_dir)
            except BaseException:
                ours.close()
                raise
        engine = cls(process, ours, log)
        try:
            engine._load(options, on_progress)
        except BaseException:
            engine.close()
            raise
        return engine

    def _load(self, options: LoadOptions, on_progress: Callable[[Loading], None] | None) -> None:
        self._send(options)
        while True:
            reply = self._receive()
            if isinstance(reply, Ready):
                self.ready = reply
                return
            if isinstance(reply, Loading) and on_progress is not None:
                on_progress(reply)

    def stream(
        self,
        sampling: Sampling,
        *,
        messages: Sequence[Message] = (),
        prompt: str | None = None,
        reserve_tokens: int = 0,
        think: bool | None = None,
    ) -> Generator[Event, None, None]:
        """Reply to ``messages`` through the chat template, or continue ``prompt`` as it is.

        Yields Prefill and Text, at the end Done. Closing the generator early cancels the reply;
        the engine can be used again at once. Raises InvalidParameter now; ContextFull, EngineError
        and WorkerDied while iterating.
        """
        parameters.validate(sampling)
        return self._events(Generate(sampling, tuple(messages), prompt, reserve_tokens, think))

    def _events(self, request: Generate) -> Generator[Event, None, None]:
        if self._running:
            raise EngineError("the model is still busy with another reply")
        self._cancelled = False
        self._send(request)
        self._running = True
        if self._cancelled:  # asked for while the request was on its way
            self._send(Cancel())
        try:
            while self._running:
                yield self._next_event()
        finally:
            with suppress(WorkerDied):  # who stopped listening learns of it at the next request
                self._drain()

    def _next_event(self) -> Event:
        try:
            reply = self._receive()
        except LocalLlamaError:
            self._running = False
            raise
        if isinstance(reply, Done):
            self._running = False
        elif isinstance(reply, Loading | Ready):
            raise EngineError("the model process answered something else than was asked")
        return reply

    def _drain(self) -> None:
        """After an early end: stop the worker's reply and skip what it had sent already."""
        if self._running:
            self._send(Cancel())
        while self._running:
            self._next_event()

    def cancel(self) -> None:
        """Stop the running reply, if any; its stream goes on to Done(reason="cancelled").

        May be called from another thread or a signal handler.
        """
        self._cancelled = True
        if self._running:
            with suppress(OSError):  # a dead worker is for the stream to explain
                wire.send(self._sock, Cancel())

    def close(self) -> None:
        """End the worker and wait until it is gone."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._running = False
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._death is None:  # the log of a crash stays for whoever looks into it
            self._log.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, request: Request) -> None:
        if self._death is not None:
            raise self._death
        if self._sock.fileno() < 0:
            raise EngineError("the model was unloaded")
        try:
            wire.send(self._sock, request)
        except OSError as error:
            raise self._died() from error

    def _receive(self) -> Loading | Ready | Prefill | Text | Done:
        reply = self._receiver.receive()
        if reply is None:
            raise self._died()
        if isinstance(reply, Failed):
            raise _error(reply)
        return reply

    def _died(self) -> WorkerDied:
        """Reap the worker and say how it ended."""
        self._sock.close()
        try:
            status = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        log = _tail(self._log)
        how, hint = _explain(status)
        self._death = WorkerDied(f"the process that held the model is gone: {how}", hint, log)
        return self._death


def _spawn(theirs: socket.socket, log_dir: Path) -> tuple[subprocess.Popen[bytes], Path]:
    with storing(log_dir):
        log_dir.mkdir(parents=True, exist_ok=True)
        _drop_old_logs(log_dir)
        log, name = tempfile.mkstemp(prefix="worker-", suffix=".log", dir=log_dir)  # mode 0600
    environment = {
        **os.environ,
        # The modules this process would import; -P: not those in the current folder by chance.
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "GGML_NO_BACKTRACE": "1",  # an abort would start gdb and take seconds to end
    }
    command = [sys.executable, "-P", "-m", "localllama.engine.worker", str(theirs.fileno())]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # Ctrl-C in the terminal belongs to the front end
        )
    except OSError as error:
        raise EngineError(f"cannot start a process for the model: {error.strerror}") from error
    finally:
        os.close(log)
    return process, Path(name)


def _drop_old_logs(log_dir: Path) -> None:
    """Logs stay when a worker crashed or its front end was killed; a few are enough."""
    for log in sorted(log_dir.glob("worker-*.log"), key=_modified_at)[: 1 - _KEPT_LOGS]:
        log.unlink(missing_ok=True)


def _modified_at(log: Path) -> float:
    try:
        return log.stat().st_mtime
    except FileNotFoundError:  # another process was quicker
        return 0.0


def _tail(log: Path) -> str:
    try:
        data = log.read_bytes()
    except OSError:
        return ""
    return data[-_LOG_TAIL_BYTES:].decode("utf-8", "replace").strip()


def _explain(status: int) -> tuple[str, str]:
    """What an exit status says, and what to do about it."""
    if status == -signal.SIGKILL:
        return (
            "it was killed (signal 9); the system may have run out of memory",
            "choose a smaller context length or quantization type",
        )
    if status == -signal.SIGABRT:
        return (
            "llama.cpp stopped itself (abort)",
            "the log says why; if the file may be damaged: localllama verify NAME",
        )
    if status < 0:
        return f"it crashed ({signal.Signals(-status).name})", "the log may say why"
    return f"it ended with exit code {status}", "the log may say why"


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

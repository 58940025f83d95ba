"""Starts worker processes, detached from the terminal, and explains how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import msgspec

from localllama.engine.protocol import Start
from localllama.errors import EngineError

_LOG_TAIL_BYTES = 4000


class Child:
    """A worker that this process started; reaped by a thread whenever it ends."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process
        self._reaper = threading.Thread(target=process.wait, daemon=True)
        self._reaper.start()

    def exit_status(self, patience_seconds: float) -> int | None:
        """Return how it ended; None when it has not within that time."""
        self._reaper.join(patience_seconds)
        return self._process.returncode


def spawn(listener: int, log: Path) -> subprocess.Popen[bytes]:
    """Start a worker on a listening socket; it waits on stdin for what hand_over() sends.

    Raises EngineError.
    """
    environment = {
        **os.environ,
        # The modules this process would import; -P: not those in the current folder by chance.
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "GGML_NO_BACKTRACE": "1",  # an abort would start gdb and take seconds to end
    }
    try:
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "localllama.engine.worker", str(listener)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                cwd="/",  # it may outlive the folder that this process was started in
                pass_fds=(listener,),
                start_new_session=True,  # Ctrl-C in the terminal belongs to the front end
            )
    except OSError as error:
        raise EngineError(f"cannot start a process for the model: {error.strerror}") from error


def hand_over(process: subprocess.Popen[bytes], start: Start) -> None:
    """Tell a spawned worker what to load; one that has died already is for its client to find."""
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(msgspec.msgpack.encode(start))


def tail(log: Path) -> str:
    """Return the last lines of a worker's log."""
    try:
        data = log.read_bytes()
    except OSError:
        return ""
    return data[-_LOG_TAIL_BYTES:].decode("utf-8", "replace").strip()


def explain(status: int | None) -> tuple[str, str]:
    """Return what an exit status says (None = unknown, not our child), and what to do about it."""
    if status is None:
        return (
            "it crashed or was killed; the system may have run out of memory",
            "the log may say why; if it happens again, choose a smaller context length",
        )
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

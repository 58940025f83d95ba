"""Running a long command: what it prints goes to a log, a line of progress to the terminal."""

from __future__ import annotations

import math
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

LINE_EVERY_SECONDS = 20  # where there is no terminal
STEP = re.compile(r"\[\s*(\d+/\d+|\d+%)\s*\]")  # ninja's and make's


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


class CommandFailed(SetupError):
    """A command failed; the text is its last lines."""


class NoAnswer(CommandFailed):
    """A command gave no sign of life in time."""


def say(text: str) -> None:
    """Tell the user; results of a later command keep stdout for themselves."""
    print(text, file=sys.stderr, flush=True)


def parse_step(line: str) -> str:
    """Return the step that a build tool prints before each line: ``12/144`` or ``8%``."""
    found = STEP.search(line)
    return found[1] if found else ""


def watch(
    command: list[str | Path],
    *,
    label: str,
    log: Path,
    environment: dict[str, str] | None = None,
    patience_seconds: float = math.inf,
    is_alive: Callable[[str], bool] = bool,
) -> None:
    """Run a command to its end, showing elapsed time and step; raises CommandFailed.

    Raises NoAnswer where it prints no line within ``patience_seconds`` for which ``is_alive`` is
    true. Whatever is raised, here or by ``is_alive``, stops the command and all its children.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {}),
        start_new_session=os.name != "nt",
    )
    last: deque[str] = deque(maxlen=25)
    progress = _Progress(label)
    alive = False
    try:
        with log.open("a") as record:
            for line in _lines(process):
                if line:
                    record.write(line)
                    last.append(line)
                    alive = alive or is_alive(line)
                progress.show(parse_step(line))
                if not alive and progress.seconds > patience_seconds:
                    raise NoAnswer(f"no answer within {patience_seconds} s")
        if process.wait() != 0:
            raise CommandFailed("".join(last).rstrip() + f"\n(all of it: {log})")
    finally:
        _stop(process)
        progress.end()


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield what a process prints, and an empty text at least once a second."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=1)
        except queue.Empty:
            line = ""
        if line is None:
            return
        yield line


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    if os.name == "nt":
        process.kill()
        return
    for stop, seconds in ((signal.SIGINT, 5), (signal.SIGKILL, 5)):
        os.killpg(process.pid, stop)
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            continue


class _Progress:
    """A line that is rewritten on a terminal, and repeated now and then elsewhere."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.step = ""
        self.started = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def show(self, step: str) -> None:
        self.step = step or self.step
        now = time.monotonic()
        if now - self.shown < (0.2 if self.terminal else LINE_EVERY_SECONDS):
            return
        self.shown = now
        minutes, seconds = divmod(int(self.seconds), 60)
        text = f"  {self.label}: {minutes}:{seconds:02}" + (f", step {self.step}" * bool(self.step))
        if self.terminal:
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            say(text)

    def end(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

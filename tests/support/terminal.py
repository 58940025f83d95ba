"""A real process on a real pseudo-terminal: type into it, wait for what it shows."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import termios
from collections.abc import Callable, Sequence
from fcntl import ioctl
from time import monotonic

_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>])|\r")
_PATIENCE_SECONDS = 60.0  # for a hang, not a measure
_LOOK_SECONDS = 0.01  # between two looks at a condition


class Terminal:
    """Runs a command on a terminal of 100 columns; use it as a context manager.

    The terminal is the controlling one, whose keys and end send signals, unless told otherwise.
    """

    def __init__(
        self, command: Sequence[str], env: dict[str, str], *, controlling: bool = True
    ) -> None:
        self._ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self._shown = ""
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**env, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
            preexec_fn=(lambda: ioctl(0, termios.TIOCSCTTY, 0)) if controlling else None,
        )
        os.close(theirs)
        self._is_open = True

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._is_open:
            os.close(self._ours)

    def close(self) -> int:
        """Take the terminal away, wait until the process ends and return its exit code."""
        os.close(self._ours)
        self._is_open = False
        return self._process.wait(_PATIENCE_SECONDS)

    def kill(self) -> None:
        """End the process with SIGKILL, unless it has ended."""
        self._process.kill()
        self._process.wait()

    def type(self, text: str) -> None:
        """Type ``text`` and Enter."""
        self.press(text + "\r")

    def press(self, keys: str) -> None:
        """Type keys as they are."""
        os.write(self._ours, keys.encode())

    def expect(self, pattern: str) -> str:
        """Wait until the pattern is shown; return what came up to its end and forget that."""
        deadline = monotonic() + _PATIENCE_SECONDS
        while (match := re.search(pattern, self._shown)) is None:
            assert self._read(deadline), f"no {pattern!r} in {self._shown!r}"
        seen, self._shown = self._shown[: match.end()], self._shown[match.end() :]
        return seen

    def until(self, condition: Callable[[], bool]) -> None:
        """Read what is shown until something holds."""
        deadline = monotonic() + _PATIENCE_SECONDS
        while not condition():
            assert monotonic() < deadline, self._shown
            self._read(monotonic() + _LOOK_SECONDS)

    def wait(self) -> int:
        """Wait until the process ends and return its exit code."""
        deadline = monotonic() + _PATIENCE_SECONDS
        while self._read(deadline):
            pass
        return self._process.wait(_PATIENCE_SECONDS)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - monotonic()))
        try:
            data = os.read(self._ours, 65536) if ready else b""
        except OSError:  # Linux: the other side has closed
            return False
        self._shown += _ESCAPES.sub("", data.decode(errors="replace"))
        return bool(data)

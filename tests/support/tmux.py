"""A shell in tmux: what a person sees of a program, and of the terminal that it leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.engines import wait_until

PROMPT = "what next?"


class Tmux:
    """One window with an interactive bash; use it as a context manager."""

    def __init__(self, folder: Path, *, columns: int = 100, lines: int = 30) -> None:
        if shutil.which("tmux") is None or shutil.which("bash") is None:
            pytest.skip("there is no tmux or no bash")
        self._tmux = ["tmux", "-S", str(folder / "tmux"), "-f", os.devnull]
        size = ["-x", str(columns), "-y", str(lines)]
        shell = f"PS1='{PROMPT} ' exec bash --norc --noprofile -i"
        self._do("new-session", "-d", *size, shell)

    def __enter__(self) -> Tmux:
        return self

    def __exit__(self, *_: object) -> None:
        self._do("kill-server")

    def type(self, text: str) -> None:
        """Type ``text`` and Enter."""
        self._do("send-keys", "-l", text)
        self.press("Enter")

    def press(self, *keys: str) -> None:
        """Press keys by tmux's names: C-z, Escape, Enter."""
        self._do("send-keys", *keys)

    @property
    def screen(self) -> str:
        """What is shown now."""
        return self._do("capture-pane", "-p")

    def expect(self, pattern: str) -> None:
        """Wait until the pattern is shown."""
        try:
            wait_until(lambda: re.search(pattern, self.screen) is not None)
        except AssertionError:
            raise AssertionError(f"no {pattern!r} in\n{self.screen}") from None

    def _do(self, *command: str) -> str:
        done = subprocess.run([*self._tmux, *command], check=True, capture_output=True, text=True)
        return done.stdout

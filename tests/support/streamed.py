"""The app with a diary of when each piece of a reply came: killed, and compared with its history.

python -m tests.support.streamed DIARY
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from localllama import config, paths
from localllama.chat import thinking
from localllama.chat.history import History
from localllama.engine.api import Event, Message, Ready, Sampling, Text
from localllama.engine.registry import Label
from localllama.runner import Runner
from localllama.store import Installed, Store
from localllama.tui.app import LocalLlamaApp
from localllama.tui.models import Loaded
from localllama.wants import Want
from tests.support.terminal import Terminal

_MOST_PIECES = 150  # of a reply before a kill: one to some seconds
_SAVED_SECONDS = 1.0  # what came so long before is on the disk


class _Diarist:
    """An engine that notes down each text before the app gets it."""

    def __init__(self, engine: Loaded, diary: int) -> None:
        self._engine = engine
        self._diary = diary

    @property
    def ready(self) -> Ready:
        """The loaded model's figures."""
        return self._engine.ready

    @property
    def label(self) -> Label:
        """What it is."""
        return self._engine.label

    @property
    def alive(self) -> bool:
        """Whether the worker is there."""
        return self._engine.alive

    def cancel(self) -> None:
        """End the running reply."""
        self._engine.cancel()

    def close(self) -> None:
        """Leave the worker."""
        self._engine.close()

    def stream(
        self, sampling: Sampling, *, messages: tuple[Message, ...], **further: Any
    ) -> Iterator[Event]:
        """Reply."""
        for event in self._engine.stream(sampling, messages=messages, **further):
            if isinstance(event, Text):
                os.write(self._diary, json.dumps([monotonic(), event.text]).encode() + b"\n")
            yield event


class _Runner(Runner):
    def __init__(self, *arguments: Any, diary: int) -> None:
        super().__init__(*arguments)
        self._diary = diary

    def open(  # type: ignore[override]  # the seam is tui.models.Opener
        self, model: Installed, want: Want, *, on_progress: Callable[[float], None] | None = None
    ) -> _Diarist:
        """Return the engine with its diary."""
        return _Diarist(super().open(model, want, on_progress=on_progress), self._diary)


def kill_apps(home: Path, env: dict[str, str], *, kills: int, seed: int) -> int:
    """Kill the app so often in mid-reply, after random numbers of pieces, and check what is left.

    Every question is there, and of the reply what was streamed a second before; returns in how
    many cases that was something. ``home`` has a model whose replies go on.
    """
    moments, proofs = random.Random(seed), 0
    for kill in range(1, kills + 1):
        diary, question = home / f"diary-{kill}", f"Question {kill}: count to a hundred."
        diary.touch()
        command = [sys.executable, "-m", "tests.support.streamed", str(diary)]
        pieces = moments.randrange(1, _MOST_PIECES)
        with Terminal(command, env) as terminal:
            terminal.expect("Write a message")
            terminal.type(question)
            terminal.until(lambda file=diary, most=pieces: len(_read(file)) >= most)
            killed_at = monotonic()
            terminal.kill()
        proofs += _check(home / "chats.db", kill, question, _read(diary), killed_at)
    return proofs


def _read(diary: Path) -> list[tuple[float, str]]:
    lines = diary.read_text().splitlines(keepends=True)
    return [(at, text) for at, text in (json.loads(line) for line in lines if line.endswith("\n"))]


def _check(
    file: Path, kill: int, question: str, diary: list[tuple[float, str]], killed_at: float
) -> bool:
    with sqlite3.connect(file) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.execute("INSERT INTO words(words, rank) VALUES ('integrity-check', 1)")
    db.close()
    with History(file) as history:
        chats = history.chats()
        assert len(chats) == kill
        messages = history.branch(chats[0].id)
    assert messages[0].content == question
    kept = "".join(thinking.join(m.thinking, m.content) for m in messages[1:])
    streamed = "".join(text for _, text in diary)
    due = "".join(text for at, text in diary if at <= killed_at - _SAVED_SECONDS)
    assert kept.startswith(due), (kept, due)
    assert streamed.startswith(kept)
    return bool(due)


def main(diary: Path) -> None:
    """Run the app as ``localllama`` does."""
    place = paths.locate()
    settings, store = config.load(place.config_file), Store(place)
    with diary.open("ab", buffering=0) as file, History(place.chats_file) as history:
        runner = _Runner(store, settings, place, diary=file.fileno())
        LocalLlamaApp(runner, store, settings, history).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

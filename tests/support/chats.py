"""A process that holds conversations until it is killed, and what must be left of them."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from itertools import count, islice
from pathlib import Path

from localllama.chat.conversation import Conversation, LoadedModel
from localllama.chat.history import History
from localllama.engine.api import Sampling, Text
from tests.support.engines import ScriptedEngine

_WORDS = 120  # of a reply


def kill_writers(file: Path, kills: int, seed: int) -> None:
    """Kill a writing process so often, each time after a random number of its reports.

    After every kill the file is whole and holds all that was reported, with the replies before the
    last one finished.
    """
    moments = random.Random(seed)
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.chats", str(file)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        lines = list(islice(process.stdout, moments.randrange(1, 4 * _WORDS)))
        process.kill()
        lines += process.stdout  # what was on its way
        process.stdout.close()
        process.wait()
        check(file, [line.split() for line in lines if line.endswith("\n")])


def check(file: Path, reports: list[list[str]]) -> None:
    """Compare what a killed process reported with what it left."""
    with sqlite3.connect(file) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.execute("INSERT INTO words(words, rank) VALUES ('integrity-check', 1)")
    db.close()
    with History(file) as history:
        messages = history.branch(history.chats()[0].id)
    words: dict[int, int] = {}  # of each reply
    for turn, reported in reports:
        words[int(turn)] = int(reported)
    for turn, reported_words in words.items():
        assert messages[2 * turn].content == f"question {turn}"
        if reported_words:
            reply = messages[2 * turn + 1]
            assert len(reply.content.split()) >= reported_words
            assert (reply.done is not None) or turn == max(words)


def write(file: Path) -> None:
    """Converse for ever; report each message as ``TURN 0`` and each word of a reply."""
    with History(file) as history:
        conversation = Conversation(history, history.create(), save_seconds=0)
        model = LoadedModel(ScriptedEngine(1 << 30, words=_WORDS), "scripted:latest", "")
        for turn in count():
            conversation.say(f"question {turn}")
            print(turn, 0, flush=True)
            texts = (e for e in conversation.reply(model, Sampling()) if isinstance(e, Text))
            for number, _ in enumerate(texts, start=1):
                print(turn, number, flush=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]))

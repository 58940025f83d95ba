"""The app killed twenty times in mid-reply: what it had shown is there when it starts again."""

from __future__ import annotations

import os
import random
import sqlite3
from pathlib import Path
from time import sleep

import pytest

from localllama.chat.history import History
from tests.support import cli
from tests.support.terminal import Terminal

pytestmark = pytest.mark.accept

KILLS = 20


def test_every_kill_leaves_the_messages_and_the_reply(home: Path, smollm2: Path) -> None:
    assert cli.run("pull", str(smollm2), "--as", "smol").returncode == 0
    settings = "[run]\nthreads = 1\n[parameters]\nignore_eos = true\nmax_tokens = 4000\n"
    (home / "config.toml").write_text(settings)
    moments = random.Random(1)
    for kill in range(1, KILLS + 1):
        with Terminal([*cli.COMMAND], dict(os.environ)) as terminal:
            terminal.expect("Write a message")
            terminal.press(f"Question {kill}: count to a hundred, one number after another.\r")
            terminal.expect("replying")
            sleep(moments.uniform(0, 2))  # leaving the terminal kills
        with sqlite3.connect(home / "chats.db") as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.close()
        with History(home / "chats.db") as history:
            chats = history.chats()
            assert len(chats) == kill
            question, reply = history.branch(chats[0].id)
        assert question.content.startswith(f"Question {kill}:")
        assert reply.content

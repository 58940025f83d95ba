"""The app in a real terminal with the real model: from the start to a saved chat."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support import cli, models
from tests.support.terminal import Terminal

ENTER, CTRL_Q = "\r", "\x11"


def test_a_chat_from_start_to_the_history(home: Path, smollm2: Path) -> None:
    assert cli.run("pull", str(smollm2), "--as", "smol").returncode == 0
    settings = "[run]\nthreads = 1\n[parameters]\nmax_tokens = 6\ntemperature = 0\n"
    (home / "config.toml").write_text(settings)
    with Terminal([*cli.COMMAND], dict(os.environ)) as terminal:
        terminal.expect("Write a message")
        terminal.press("What is the sea?")
        terminal.press(ENTER)
        terminal.expect("cut at max_tokens")
        terminal.expect("tok/s")
        terminal.press(CTRL_Q)
        assert terminal.wait() == 0
    [chat] = cli.data("history", "list")["chats"]
    assert chat["title"] == "What is the sea?"
    question, answer = cli.data("history", "show", str(chat["id"]))["messages"]
    assert question["content"] == "What is the sea?"
    assert answer["done"]["reason"] == "length"
    assert answer["done"]["usage"]["completion_tokens"] == 6


def test_the_first_chat_takes_two_keys(home: Path) -> None:
    home.mkdir()
    settings = "[run]\nthreads = 1\n[parameters]\nmax_tokens = 4\ntemperature = 0\n"
    (home / "config.toml").write_text(settings)
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(models.wheelhouse())}
    with Terminal([*cli.COMMAND], {**os.environ, **pip}) as terminal:
        terminal.expect("Welcome to localllama")
        terminal.press(ENTER)
        terminal.expect(r"smollm2:135m Q4_1.*ctx")
        terminal.press("Hello")
        terminal.press(ENTER)
        terminal.expect("tok/s")
        terminal.press(CTRL_Q)
        assert terminal.wait() == 0
    assert [chat["title"] for chat in cli.data("history", "list")["chats"]] == ["Hello"]

"""The app in a real terminal with the real model: from the first start to an exported chat."""

from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path

import pytest

from tests.support import cli, models
from tests.support.streamed import kill_apps
from tests.support.terminal import Terminal
from tests.support.tmux import PROMPT, Tmux

ENTER, CTRL_Q, CTRL_Z = "\r", "\x11", "\x1a"


def test_a_chat_from_start_to_the_history(home: Path, smollm2: Path) -> None:
    assert cli.run("pull", str(smollm2), "--as", "smol").returncode == 0
    settings = "[run]\nthreads = 1\n[parameters]\nmax_tokens = 6\ntemperature = 0\n"
    (home / "config.toml").write_text(settings)
    with Terminal([*cli.COMMAND], dict(os.environ)) as terminal:
        terminal.expect("Write a message")
        terminal.press(CTRL_Z)  # the terminal runs nothing else
        terminal.expect("There is no shell to go back to")
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


def test_the_first_chat_takes_two_keys_and_is_found_and_exported(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    settings = "[run]\nthreads = 1\n[parameters]\nmax_tokens = 4\ntemperature = 0\n"
    (home / "config.toml").write_text(settings)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(models.wheelhouse()))
    with Tmux(tmp_path) as terminal:
        terminal.type(shlex.join(cli.COMMAND))
        terminal.expect("Welcome to localllama")
        terminal.press("Enter")
        terminal.expect("smollm2:135m Q4_1.*ctx")
        terminal.type("Hello lighthouse")
        terminal.expect("tok/s")
        terminal.press("C-n")
        terminal.expect("A new conversation")
        terminal.press("C-s")
        terminal.type("light")
        terminal.expect("light(?s:.)*x Export")  # Enter goes to the list, the next one opens
        terminal.press("Enter")
        terminal.expect("You\n.*Hello lighthouse(?s:.)*New line")
        terminal.press("C-s", "Enter")
        terminal.expect("x Export")
        terminal.press("x")
        terminal.expect("Write the chat to this file")
        terminal.type(str(tmp_path / "chat.md"))  # instead of the name that is proposed
        terminal.expect("written to")
        terminal.press("C-q")
        terminal.expect(rf"{re.escape(PROMPT)}\s*$")
    assert [chat["title"] for chat in cli.data("history", "list")["chats"]] == ["Hello lighthouse"]
    assert "Hello lighthouse" in (tmp_path / "chat.md").read_text()


@pytest.mark.parametrize("controlling", [True, False], ids=["told", "untold"])
def test_a_terminal_that_goes_leaves_what_was_written(
    home: Path, smollm2: Path, controlling: bool
) -> None:
    assert cli.run("pull", str(smollm2), "--as", "smol").returncode == 0
    with Terminal([*cli.COMMAND], dict(os.environ), controlling=controlling) as terminal:
        terminal.expect("rite a message")
        terminal.press("What was I")
        terminal.expect("What was I")
        assert terminal.close() == 128 + signal.SIGHUP
    with Terminal([*cli.COMMAND], dict(os.environ)) as terminal:
        terminal.expect("What was I")
        terminal.press(" saying?")
        terminal.expect("saying?")


def test_ctrl_z_gives_the_shell_back_and_fg_the_chat(
    home: Path, smollm2: Path, tmp_path: Path
) -> None:
    assert cli.run("pull", str(smollm2), "--as", "smol").returncode == 0
    settings = "[run]\nthreads = 1\n[parameters]\nmax_tokens = 120\nignore_eos = true\n"
    (home / "config.toml").write_text(settings)
    with Tmux(tmp_path) as terminal:
        command = shlex.join(cli.COMMAND)
        terminal.type(f"sh -c {shlex.quote(command + '; true')}")  # as make and uv start it
        terminal.expect("Write a message")
        terminal.type("Tell of the sea.")
        terminal.expect("replying")
        terminal.press("C-z")
        terminal.expect("Stopped")
        terminal.type("stty -a; echo the shell is $((1 + 1)) back")  # what is typed is echoed
        terminal.expect("the shell is 2 back")
        assert {"icanon", "echo", "isig", "icrnl"} <= set(terminal.screen.split())
        terminal.type("fg")
        terminal.expect("cut at max_tokens")
        for typed in ("and", "then", "what"):
            terminal.press(*typed)
            terminal.expect(f"││ .*{typed} ")
            terminal.press("C-z")
            terminal.expect(f"{re.escape(PROMPT)}\\s*$")
            terminal.type("fg")
            terminal.expect(f"││ .*{typed} ")
        terminal.press("C-q")
        terminal.expect(f"{re.escape(PROMPT)}\\s*$")
    [chat] = cli.data("history", "list")["chats"]
    _, answer = cli.data("history", "show", str(chat["id"]))["messages"]
    assert answer["done"]["usage"]["completion_tokens"] == 120


def test_a_kill_in_mid_reply_leaves_what_came_a_second_before(home: Path, smollm2: Path) -> None:
    assert cli.run("pull", str(smollm2), "--as", "smol").returncode == 0
    settings = "[run]\nthreads = 1\n[parameters]\nignore_eos = true\nmax_tokens = 4000\n"
    (home / "config.toml").write_text(settings)
    kill_apps(home, dict(os.environ), kills=2, seed=3)

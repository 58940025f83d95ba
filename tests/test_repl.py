"""Chats as a user has them: one reply, a pipe, a conversation at a terminal; the real model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import cli
from tests.support.terminal import Terminal

# One thread: two wait for each other at barriers whenever another test has a core.
GREEDY = ("--temperature", "0", "--threads", "1")


@pytest.fixture
def model(home: Path, smollm2: Path) -> str:
    result = cli.run("pull", str(smollm2), "--as", "smol")
    assert result.returncode == 0, result.stderr
    return "smol"


@pytest.fixture
def terminal(model: str) -> Iterator[Terminal]:
    command = [*cli.COMMAND, "run", model, *GREEDY]
    with Terminal(command, dict(os.environ)) as terminal:
        terminal.expect(">>> ")
        yield terminal


def test_the_same_question_gets_the_same_reply(model: str) -> None:
    ask = ("run", model, "Name three colours", "--seed", "1", "--max-tokens", "24", *GREEDY)
    first, second = cli.run(*ask), cli.run(*ask)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip()
    assert first.stdout == second.stdout
    assert "cut at 24 tokens" in first.stderr


def test_piped_text_comes_before_the_prompt(model: str) -> None:
    ask = ("run", model, "Repeat the sentence above.", "--max-tokens", "16")
    answer = cli.data(*ask, *GREEDY, stdin="The house on the hill is painted green.\n")
    assert "green" in answer["text"].lower()
    assert answer["usage"]["prompt_tokens"] > 20
    assert set(answer) == {"model", "text", "reason", "usage", "timings", "truncated"}


def test_json_format_is_json(model: str) -> None:
    ask = ("run", model, 'Reply with {"colour": "red"} and nothing else.', "--format", "json")
    answer = cli.data(*ask, "--max-tokens", "100", *GREEDY)
    assert answer["reason"] == "stop"
    assert isinstance(json.loads(answer["text"]), dict | list)


def test_a_file_runs_where_it_is(home: Path, smollm2: Path) -> None:
    result = cli.run("run", str(smollm2), "Say hi.", "--max-tokens", "4", "--verbose", *GREEDY)
    assert result.returncode == 0, result.stderr
    assert "eval rate:" in result.stderr
    assert not (home / "models").exists()


def test_what_memory_cannot_hold_is_refused(model: str) -> None:
    result = cli.run("run", model, "hi", env={"LOCALLLAMA_RESERVE": "100000GB"})
    assert result.returncode == 6, result.stderr
    assert "0 B are available beside the reserve of 100 TB" in result.stderr


def test_a_conversation(terminal: Terminal) -> None:
    terminal.type("/set parameter max_tokens 8")
    terminal.expect("max_tokens is 8")
    terminal.type("/set verbose")
    terminal.type("Hello!")
    assert "prompt cached:        0" in terminal.expect(r"\neval rate: .*\n")
    terminal.type('"""one')
    terminal.type('two"""')
    seen = terminal.expect(r"\neval rate: .*\n")
    cached = int(seen.split("prompt cached:")[1].split()[0])
    assert cached > 20  # the first turn was not read again
    terminal.type("/show parameters")
    terminal.expect(r"max_tokens +8 +chat")
    terminal.type("/nonsense")
    terminal.expect("there is no command /nonsense")
    terminal.type("/set parameter temperature hot")
    terminal.expect("temperature must be")
    terminal.type('/set parameter stop "abc')
    terminal.expect("close the quote")
    terminal.type("/set parameter num_ctx 2000000000")
    terminal.expect("the context length must be from 1 to")
    terminal.type("/save kept")
    terminal.expect("saved as kept:latest")
    terminal.type("/clear")
    terminal.expect("a new conversation begins")
    terminal.type("/history two")
    terminal.expect(r"1  Hello!")
    terminal.type("/load kept")
    terminal.expect("kept:latest is loaded")
    terminal.type("/bye")
    assert terminal.wait() == 0
    kept = json.loads((cli.run("show", "kept", "--json")).stdout)
    assert kept["parameters_set"] == {"temperature": 0.0, "max_tokens": 8}
    modelfile = cli.run("show", "kept", "--modelfile").stdout
    assert 'MESSAGE user """Hello!"""' in modelfile
    assert 'MESSAGE user """one\ntwo"""' in modelfile


def test_a_conversation_is_gone_on_with(terminal: Terminal, model: str, home: Path) -> None:
    terminal.type("/set parameter max_tokens 4")
    terminal.type("My name is Ada.")
    terminal.expect("cut at 4 tokens")
    terminal.type("/set nohistory")
    terminal.type("This is secret.")
    terminal.expect("cut at 4 tokens")
    terminal.type("/bye")
    assert terminal.wait() == 0
    saved = cli.data("history", "show", "1")
    question, answer = saved["messages"]
    assert question["content"] == "My name is Ada."
    assert answer["origin"]["digest"] == cli.data("list")["models"][0]["digest"]
    assert answer["seed"] is not None
    assert (home / "chats.db").stat().st_mode & 0o777 == 0o600
    with Terminal([*cli.COMMAND, "run", "--continue"], dict(os.environ)) as again:
        again.expect(r"chat 1: My name is Ada\. \(2 messages\)")
        again.expect(">>> ")
        again.type("/set verbose")
        again.type("And my name is?")
        again.expect(r"eval count: +4 token")  # max_tokens came back with the chat
        again.type("/bye")
        assert again.wait() == 0
    assert len(cli.data("history", "show", "1")["messages"]) == 4


def test_without_history_nothing_is_left(model: str, home: Path) -> None:
    command = [*cli.COMMAND, "run", model, "--no-history", "--max-tokens", "2", *GREEDY]
    with Terminal(command, dict(os.environ)) as terminal:
        terminal.expect(">>> ")
        terminal.type("Remember the word xylophonic.")
        terminal.expect("cut at 2 tokens")
        terminal.type("/bye")
        assert terminal.wait() == 0
    files = [file for file in home.rglob("*") if file.is_file() and file.stat().st_size < 1 << 20]
    assert files
    assert not [file for file in files if b"xylophonic" in file.read_bytes()]
    assert not (home / "chats.db").exists()


def test_ctrl_c_stops_a_reply_and_a_second_one_leaves(terminal: Terminal) -> None:
    terminal.type("Write a very long story about the sea.")
    terminal.expect(r"\n[^>\n]{40,}")  # a line of the reply
    terminal.press("\x03")
    terminal.expect(">>> ")
    terminal.press("\x03")
    assert terminal.wait() == 0


def test_typed_control_tokens_stay_text(terminal: Terminal) -> None:
    terminal.type("/set parameter max_tokens 4")
    terminal.type("/set verbose")
    terminal.type("x")
    plain = terminal.expect("prompt eval count: .*")
    terminal.type("/clear")
    terminal.type("<|im_end|>")
    typed = terminal.expect("prompt eval count: .*")
    counts = [int(seen.split("prompt eval count:")[1].split()[0]) for seen in (plain, typed)]
    assert counts[1] > counts[0] + 2  # several tokens of text, not one control token
    terminal.expect(">>> ")
    terminal.press("\x04")
    assert terminal.wait() == 0

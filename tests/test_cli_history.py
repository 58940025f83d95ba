"""``localllama history`` as a user types it, on chats that were saved before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localllama import paths
from localllama.chat.history import History
from localllama.chat.records import Origin, StoredMessage
from localllama.engine.api import Done, Timings, Usage
from tests.support import cli


@pytest.fixture
def saved(home: Path) -> list[int]:
    """The numbers of two chats, the older one first."""
    with History(paths.locate().chats_file) as history:
        return [
            _filled(history, "Where is the lighthouse?", "On the \x1b[31mrock."),
            _filled(history, "Name a colour", "Green."),
        ]


def _filled(history: History, question: str, answer: str) -> int:
    chat = history.create(model="smol:latest")
    asked = history.add(chat.id, StoredMessage(id=0, parent=None, role="user", content=question))
    done = Done("stop", Usage(), Timings(), seed=3)
    reply = StoredMessage(
        id=0,
        parent=asked.id,
        role="assistant",
        content=answer,
        seed=3,
        origin=Origin(model="smol:latest", digest="ab"),
        done=done,
    )
    history.add(chat.id, reply)
    return chat.id


def test_chats_are_listed_searched_and_shown(saved: list[int]) -> None:
    assert [chat["id"] for chat in cli.data("history", "list")["chats"]] == saved[::-1]
    table = cli.run("history").stdout
    assert "Name a colour" in table.splitlines()[1]
    found = cli.run("history", "search", "LIGHT", "where")
    assert found.returncode == 0
    assert "user: Where is the lighthouse?" in found.stdout
    shown = cli.run("history", "show", str(saved[0])).stdout
    assert shown.startswith("# Where is the lighthouse?\n")
    assert "\x1b" not in shown
    whole = cli.data("history", "show", str(saved[0]))
    assert whole["messages"][1]["seed"] == 3
    assert whole["messages"][1]["origin"]["digest"] == "ab"


def test_a_chat_that_is_not_there_is_told(saved: list[int]) -> None:
    result = cli.run("history", "show", "4711")
    assert (result.returncode, result.stdout) == (3, "")
    assert "there is no chat 4711" in result.stderr
    assert "history list" in result.stderr


def test_chats_travel_from_one_home_to_another(saved: list[int], tmp_path: Path) -> None:
    file = tmp_path / "chats.json"
    result = cli.run("history", "export", "--json", "-o", str(file))
    assert (result.returncode, result.stderr) == (0, f"2 chats written to {file}\n")
    elsewhere = {"LOCALLLAMA_HOME": str(tmp_path / "other")}
    result = cli.run("history", "import", str(file), env=elsewhere)
    assert result.returncode == 0, result.stderr
    chats = cli.data("history", "list", env=elsewhere)["chats"]
    assert [chat["title"] for chat in chats] == ["Name a colour", "Where is the lighthouse?"]
    file.write_text(json.dumps({"model": "something else"}))
    result = cli.run("history", "import", str(file), env=elsewhere)
    assert result.returncode == 1
    assert "no file of exported chats" in result.stderr


def test_deleting_can_be_undone_and_purging_cannot(saved: list[int], home: Path) -> None:
    first, second = map(str, saved)
    result = cli.run("history", "delete", first, second)
    assert f"bring back: localllama history delete --undo {first} {second}" in result.stderr
    assert cli.data("history", "list")["chats"] == []
    assert cli.run("history", "delete", "--undo", second).returncode == 0
    assert cli.run("history", "delete", "--purge", "--yes", first).returncode == 0
    assert cli.run("history", "delete", "--undo", first).returncode == 3
    assert [chat["id"] for chat in cli.data("history", "list")["chats"]] == saved[1:]
    assert b"lighthouse" not in (home / "chats.db").read_bytes()

"""Saved chats: what is kept, found, brought back and taken along; SQLite itself, no fake."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllama.chat import export
from localllama.chat.history import History
from localllama.chat.records import Attachment, Chat, Hit, Origin, StoredMessage, branch, versions
from localllama.engine.api import Done, Timings, Truncated, Usage
from localllama.errors import ChatNotFound, HistoryError, StoreError

FINISHED = Done("stop", Usage(12, 3, 4), Timings(decode_seconds=0.5), seed=7)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "home" / "chats.db") as history:
        yield history


def add(history: History, chat: Chat, role: str, content: str) -> StoredMessage:
    leaf = history.chat(chat.id).leaf
    done = FINISHED if role == "assistant" else None
    message = StoredMessage(id=0, parent=leaf, role=role, content=content, done=done)
    return history.add(chat.id, message)


def filled(history: History, *contents: str) -> Chat:
    chat = history.create(model="smol:latest")
    for index, content in enumerate(contents):
        add(history, chat, "assistant" if index % 2 else "user", content)
    return history.chat(chat.id)


def contents(history: History, chat: Chat) -> list[str]:
    return [message.content for message in history.branch(chat.id)]


def excerpts(hits: list[Hit]) -> list[str]:
    return [
        "".join(f"[{text}]" if marked else text for text, marked in hit.excerpt) for hit in hits
    ]


# --- what is kept --------------------------------------------------------------------------------


def test_all_of_a_message_comes_back(tmp_path: Path) -> None:
    with History(tmp_path / "chats.db") as history:
        chat = history.create(model="smol:latest", system="be brief", parameters={"top_k": 3})
        asked = history.add(
            chat.id,
            StoredMessage(
                id=0,
                parent=None,
                role="user",
                content="read this",
                attachments=(Attachment("notes.txt", "one\ntwo"),),
            ),
        )
        reply = StoredMessage(
            id=0,
            parent=asked.id,
            role="assistant",
            content="four",
            thinking="2 + 2",
            pinned=True,
            seed=7,
            origin=Origin(
                model="smol:latest", digest="ab" * 32, parameters={"top_k": 3}, context_length=512
            ),
            done=FINISHED,
            truncated=Truncated(2, 11),
        )
        reply = history.add(chat.id, reply)
    with History(tmp_path / "chats.db") as history:
        assert history.branch(chat.id) == [asked, reply]
        again = history.chat(chat.id)
    assert (again.model, again.system, again.parameters) == (
        "smol:latest",
        "be brief",
        {"top_k": 3},
    )
    assert (again.title, again.leaf) == ("read this", reply.id)


def test_only_the_owner_may_read_the_files(history: History) -> None:
    filled(history, "hello")
    files = list(history.file.parent.iterdir())
    assert len(files) == 3  # with SQLite's -wal and -shm
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_title_is_the_first_words_until_it_is_given(history: History) -> None:
    chat = filled(
        history, "Please tell me\n  everything about the history of the steam engine", "no"
    )
    assert chat.title == "Please tell me everything about the history of…"
    history.change(chat.id, title="Steam")
    add(history, chat, "user", "why?")
    assert history.chat(chat.id).title == "Steam"


def test_pinned_chats_come_first_then_the_latest(history: History) -> None:
    first, second, third = (filled(history, text) for text in ("one", "two", "three"))
    add(history, second, "user", "more")
    history.change(first.id, pinned=True)
    assert [chat.id for chat in history.chats()] == [first.id, second.id, third.id]


def test_versions_branch_and_the_way_back_leads_to_the_newest_messages(history: History) -> None:
    chat = filled(history, "question", "first answer")
    question = history.branch(chat.id)[0]
    other = StoredMessage(id=0, parent=question.id, role="assistant", content="second answer")
    other = history.add(chat.id, other)
    add(history, chat, "user", "and then?")
    assert contents(history, chat) == ["question", "second answer", "and then?"]
    messages = history.messages(chat.id)
    first = messages[1].id
    assert versions(messages)[other.id] == [first, other.id]
    assert [m.content for m in history.show(chat.id, first)] == ["question", "first answer"]
    assert contents(history, chat) == ["question", "first answer"]
    history.show(chat.id, other.id)
    assert contents(history, chat) == ["question", "second answer", "and then?"]
    assert branch(messages, None) == []


def test_a_deleted_chat_comes_back_unless_it_is_purged(history: History) -> None:
    kept, chat = filled(history, "keep"), filled(history, "secret plan", "sure")
    history.delete(chat.id)
    assert [c.id for c in history.chats()] == [kept.id]
    assert history.search("secret") == []
    with pytest.raises(ChatNotFound):
        history.chat(chat.id)
    assert history.restore(chat.id).title == "secret plan"
    assert contents(history, chat) == ["secret plan", "sure"]
    history.purge([chat.id])
    with pytest.raises(ChatNotFound):
        history.restore(chat.id)
    assert filled(history, "new").id > chat.id


def test_only_what_was_deleted_long_ago_is_purged_by_itself(history: History) -> None:
    old, new = filled(history, "old"), filled(history, "new")
    history.delete(old.id)
    history.delete(new.id)
    with sqlite3.connect(history.file) as db:
        db.execute("UPDATE chats SET deleted_at='2020-01-01T00:00:00+00:00' WHERE id=?", (old.id,))
    db.close()
    history.purge_old()
    assert [chat.id for chat in history.chats(deleted=True)] == [new.id]


def test_nothing_of_a_purged_chat_is_left_in_the_files(history: History) -> None:
    chat = filled(history, "the codeword is xylophonic", "noted: xylophonic")
    filled(history, "something else")
    history.purge([chat.id])
    for file in history.file.parent.iterdir():
        assert b"xylophonic" not in file.read_bytes()


def test_a_long_chat_can_be_copied_and_purged(history: History) -> None:
    chat = filled(history, *(f"message {number}" for number in range(1100)))  # SQLite nests to 1000
    copy = history.duplicate(chat.id)
    assert copy.title == "message 0 (copy)"
    history.purge([chat.id])
    assert len(history.branch(copy.id)) == 1100


def test_the_last_draft_is_kept(history: History) -> None:
    assert history.draft() == ("", ())
    files = (Attachment("list.txt", "eggs"), Attachment("more.txt", "milk"))
    history.keep_draft("What is", files)
    history.keep_draft("What is in it?", files)
    assert history.draft() == ("What is in it?", files)
    history.keep_draft(" \n")
    assert history.draft() == ("", ())


def test_nothing_of_a_history_in_memory_reaches_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with History.temporary() as history:
        filled(history, "hello", "hi")
        assert history.search("hello")
    assert list(tmp_path.iterdir()) == []


# --- searching -----------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["indexed", "without FTS5"])
def searched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "chats.db", full_text=request.param) as history:
        filled(history, "hello", "The old Lighthouse keeper counts his boats.", "what else?")
        filled(history, "hi", "Écoutez: le café est fermé", "今日は東京の天気がいい")
        yield history


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("light", "[Light]house"),
        ("BOATS keeper", "[keeper] counts his [boats]"),
        ('"old lighthouse"', "[old Lighthouse]"),
        ("東京", "[東京]"),
        ("CAFÉ", "[café]"),
    ],
)
def test_words_are_found_by_their_beginning(searched: History, text: str, found: str) -> None:
    hits = searched.search(text)
    assert len(hits) == 1
    shown = excerpts(hits)[0]
    assert found.replace("[", "").replace("]", "") in shown.replace("[", "").replace("]", "")
    assert [t.casefold() for t, marked in hits[0].excerpt if marked]


@pytest.mark.parametrize("text", ["", "  ", '"', "nowhere", 'old" AND (', "'; DROP TABLE chats"])
def test_odd_searches_find_nothing_and_break_nothing(searched: History, text: str) -> None:
    assert searched.search(text) == []


def test_titles_are_found_too(searched: History) -> None:
    chat = searched.chats()[0]
    searched.change(chat.id, title="Weather in Japan")
    hit = searched.search("japan")[0]
    assert (hit.chat, hit.message, excerpts([hit])) == (chat.id, 0, ["Weather in [Japan]"])


def test_the_index_follows_every_change_and_can_come_and_go(tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    with History(file) as history:
        chat = filled(history, "apples")
        history.update(
            StoredMessage(
                id=history.branch(chat.id)[0].id, parent=None, role="user", content="pears"
            )
        )
        assert (len(history.search("pears")), contents(history, chat)) == (1, ["pears"])
    with History(file, full_text=False) as history:
        filled(history, "plums")
        assert len(history.search("plum")) == 2  # as a title and as a message
    with History(file) as history:
        assert history.full_text
        assert len(history.search("plum")) == 2
        history.purge([chat.id])
    with sqlite3.connect(file) as db:
        db.execute("INSERT INTO words(words, rank) VALUES ('integrity-check', 1)")
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


# --- taking chats along --------------------------------------------------------------------------


def test_a_chat_survives_export_and_import_with_its_versions(
    history: History, tmp_path: Path
) -> None:
    chat = filled(history, "question", "first answer")
    again = StoredMessage(
        id=0, parent=history.branch(chat.id)[0].id, role="assistant", content="second"
    )
    history.add(chat.id, again)
    history.change(chat.id, pinned=True, system="be brief")
    text = export.to_json(history, [history.chat(chat.id)])
    with History(tmp_path / "other.db") as other:
        filled(other, "a chat that is there already")
        [taken] = export.from_json(other, text)
        assert contents(other, taken) == ["question", "second"]
        assert [m.content for m in other.messages(taken.id)] == [
            "question",
            "first answer",
            "second",
        ]
        assert (taken.pinned, taken.system) == (True, "be brief")
        assert other.messages(taken.id)[1].done == FINISHED


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "{}",
        '{"format": "other", "version": 1, "chats": []}',
        '{"format": "localllama-chats", "version": 9, "chats": []}',
        '{"format": "localllama-chats", "version": 1, "chats": [{"chat": {"id": 1}, "messages": '
        '[{"id": 2, "parent": 3, "role": "user", "content": "x"}]}]}',
        '{"format": "localllama-chats", "version": 1, "chats": [{"chat": {"id": 1, "leaf": 4}, '
        '"messages": []}]}',
    ],
)
def test_a_file_that_is_no_export_changes_nothing(history: History, text: str) -> None:
    with pytest.raises(HistoryError):
        export.from_json(history, text)
    assert history.chats() == []


def test_markdown_holds_what_is_shown(history: History) -> None:
    chat = filled(history, "Show me ```code```")
    history.add(
        chat.id,
        StoredMessage(
            id=0,
            parent=chat.leaf,
            role="assistant",
            content="Here it",
            thinking="hm\nwell",
            origin=Origin(model="smol:latest"),
            done=Done("cancelled", Usage(), Timings()),
        ),
    )
    text = export.to_markdown(history.chat(chat.id), history.messages(chat.id))
    assert text.startswith("# Show me ```code```\n\nBegun 20")
    assert "## Assistant (smol:latest)\n\n> *Thinking*\n>\n> hm\n> well\n\nHere it\n" in text
    assert text.endswith("*(the reply was cut)*\n")


# --- several at once, and trouble ----------------------------------------------------------------

_WRITER = """
import sys
from pathlib import Path
from localllama.chat.history import History
from localllama.chat.records import StoredMessage
with History(Path(sys.argv[1])) as history:
    chat = history.create(title=sys.argv[2])
    for number in range(25):
        history.add(chat.id, StoredMessage(id=0, parent=None, role="user", content=str(number)))
"""


def test_processes_that_begin_and_write_at_once_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(file), str(n)], stderr=subprocess.PIPE)
        for n in range(4)
    ]
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors
    with History(file) as history:
        assert {chat.title for chat in history.chats()} == {"0", "1", "2", "3"}
        assert {len(history.messages(chat.id)) for chat in history.chats()} == {25}


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    file.write_bytes(b"no database at all " * 100)
    with pytest.raises(HistoryError, match="damaged") as caught:
        History(file)
    assert "move" in caught.value.hint
    assert file.read_bytes().startswith(b"no database")


def test_an_older_history_is_upgraded(tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    with History(file) as history:
        chat = filled(history, "Hello")
    db = sqlite3.connect(file)
    db.executescript("DROP TABLE drafts; PRAGMA user_version=1")  # the first version
    db.close()
    with History(file) as history:
        history.keep_draft("words")
        assert [message.content for message in history.branch(chat.id)] == ["Hello"]


def test_a_newer_history_is_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    History(file).close()
    db = sqlite3.connect(file)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(HistoryError, match="newer"):
        History(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot write"):
        History(tmp_path / "chats.db")

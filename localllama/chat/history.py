"""The saved chats: a tree of messages each, in one SQLite file that several processes may use."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from localllama.chat import database, query
from localllama.chat.records import (
    Attachment,
    Chat,
    Hit,
    Origin,
    StoredMessage,
    branch,
    first_words,
    newest_leaf,
)
from localllama.engine.api import Done, Truncated
from localllama.errors import ChatNotFound
from localllama.store import now

_UNDO = timedelta(days=30)  # a deleted chat can be brought back so long


class History:
    """The chats of one file; may be used from several threads.

    One connection behind a lock: every call takes milliseconds, and none is held across calls.
    Raises HistoryError or DiskFull when the file cannot be used, ChatNotFound for a wrong number.
    ``full_text`` False searches text by text, as without FTS5.
    """

    def __init__(self, file: Path, *, full_text: bool = True) -> None:
        self.file = file
        self._lock = threading.RLock()
        self._db = database.connect(file)
        with database.troubles(file):
            self.full_text = database.index_words(self._db, wanted=full_text)

    @classmethod
    def temporary(cls) -> Self:
        """Return a history in memory: gone when it is closed, and never on the disk."""
        return cls(database.MEMORY)

    @property
    def in_memory(self) -> bool:
        """Whether this is a temporary one."""
        return self.file == database.MEMORY

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # chats

    def chats(self, *, deleted: bool = False) -> list[Chat]:
        """Return the chats, or the deleted ones: pinned first, then the latest first."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT * FROM chats WHERE (deleted_at != '') = ? "
                "ORDER BY pinned DESC, updated_at DESC, id DESC",
                (deleted,),
            )
            return [_chat(row) for row in rows]

    def chat(self, id: int) -> Chat:
        """Return one chat."""
        with self._reading() as db:
            row = db.execute("SELECT * FROM chats WHERE id=? AND deleted_at=''", (id,)).fetchone()
        if row is None:
            raise ChatNotFound(f"there is no chat {id}", "localllama history list shows them")
        return _chat(row)

    def create(
        self,
        *,
        model: str = "",
        system: str = "",
        parameters: Mapping[str, Any] | None = None,
        context_length: int = 0,
        title: str = "",
    ) -> Chat:
        """Begin a chat; it gets its title from the first message unless it is given one."""
        with self._writing() as db:
            id = _insert(
                db,
                "chats",
                model=model,
                system=system,
                parameters=_json(parameters or {}),
                context_length=context_length,
                title=title,
                created_at=(moment := now()),
                updated_at=moment,
            )
        return self.chat(id)

    def change(self, id: int, **values: Any) -> Chat:
        """Set fields of a chat: title, pinned, model, system, parameters, context_length."""
        columns = {key: _json(v) if isinstance(v, Mapping) else v for key, v in values.items()}
        allowed = {"title", "pinned", "model", "system", "parameters", "context_length"}
        assert columns.keys() <= allowed, columns
        with self._writing() as db:
            self.chat(id)
            names = ", ".join(f"{name}=:{name}" for name in columns)
            db.execute(f"UPDATE chats SET {names} WHERE id=:id", {**columns, "id": id})
        return self.chat(id)

    def entitle(self, id: int, title: str) -> bool:
        """Give a chat a better title than its first words; False where a person has done so."""
        with self._writing():
            questions = (m.content for m in self.messages(id) if m.role == "user")
            if self.chat(id).title not in map(first_words, questions):
                return False
            self.change(id, title=title)
        return True

    def delete(self, id: int) -> None:
        """Hide a chat; restore() brings it back, until it is purged after 30 days."""
        with self._writing() as db:
            self.chat(id)
            db.execute("UPDATE chats SET deleted_at=? WHERE id=?", (now(), id))

    def restore(self, id: int) -> Chat:
        """Bring a deleted chat back."""
        with self._writing() as db:
            db.execute("UPDATE chats SET deleted_at='' WHERE id=?", (id,))
        return self.chat(id)

    def purge(self, ids: Sequence[int]) -> None:
        """Remove chats for good, deleted before or not; their text is overwritten."""
        with self._writing() as db:
            for id in ids:
                db.execute("DELETE FROM chats WHERE id=?", (id,))
            if self.full_text:
                db.execute("INSERT INTO words(words) VALUES ('optimize')")
        with self._reading() as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def purge_old(self) -> None:
        """Remove what was deleted more than 30 days ago."""
        limit = (datetime.now(UTC) - _UNDO).isoformat()
        if old := [chat.id for chat in self.chats(deleted=True) if chat.deleted_at < limit]:
            self.purge(old)

    def duplicate(self, id: int) -> Chat:
        """Copy a chat with all its versions."""
        chat = self.chat(id)
        copy = msgspec.structs.replace(chat, title=f"{chat.title} (copy)")
        return self.take_in([(copy, self.messages(id))])[0]

    def take_in(self, chats: Iterable[tuple[Chat, Iterable[StoredMessage]]]) -> list[Chat]:
        """Save whole chats under new numbers, all or none; parents come before what follows."""
        with self._writing() as db:
            return [self._take_in(db, chat, messages) for chat, messages in chats]

    # messages

    def messages(self, chat: int) -> list[StoredMessage]:
        """Return all messages of a chat, of all its branches, the oldest first."""
        with self._reading() as db:
            files: dict[int, list[Attachment]] = {}
            for row in db.execute(
                "SELECT a.message, a.name, a.text FROM attachments a "
                "JOIN messages m ON m.id = a.message WHERE m.chat=? ORDER BY a.id",
                (chat,),
            ):
                files.setdefault(row["message"], []).append(Attachment(row["name"], row["text"]))
            rows = db.execute("SELECT * FROM messages WHERE chat=? ORDER BY id", (chat,))
            return [_message(row, tuple(files.get(row["id"], ()))) for row in rows]

    def branch(self, chat: int) -> list[StoredMessage]:
        """Return the messages of the branch that a chat shows."""
        with self._lock:
            return branch(self.messages(chat), self.chat(chat).leaf)

    def add(self, chat: int, message: StoredMessage) -> StoredMessage:
        """Save a message, whose number is chosen here, as the new end of its chat."""
        created_at = message.created_at or now()
        message = msgspec.structs.replace(message, created_at=created_at)
        with self._writing() as db:
            title = self.chat(chat).title
            id = self._insert_message(db, chat, message)
            if not title and message.role == "user":
                title = first_words(message.content)
            db.execute(
                "UPDATE chats SET leaf=?, updated_at=?, title=? WHERE id=?",
                (id, created_at, title, chat),
            )
        return msgspec.structs.replace(message, id=id)

    def update(self, message: StoredMessage) -> None:
        """Save what became of a message; one that was purged meanwhile stays gone."""
        with self._writing() as db:
            values = _columns(message)
            names = ", ".join(f"{name}=:{name}" for name in values)
            db.execute(f"UPDATE messages SET {names} WHERE id=:id", {**values, "id": message.id})

    def show(self, chat: int, message: int | None) -> list[StoredMessage]:
        """Let a chat show the newest branch through ``message``, or none; return it."""
        with self._writing() as db:
            messages = self.messages(chat)
            leaf = None if message is None else newest_leaf(messages, message)
            db.execute("UPDATE chats SET leaf=? WHERE id=?", (leaf, chat))
        return branch(messages, leaf)

    def questions(self, limit: int = 200) -> list[str]:
        """Return the latest messages of the user, in all chats, the latest last."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT m.content FROM messages m JOIN chats c ON c.id = m.chat "
                "WHERE m.role='user' AND c.deleted_at='' ORDER BY m.id DESC LIMIT ?",
                (limit,),
            )
            return [row["content"] for row in rows][::-1]

    # what is not sent

    def keep_draft(self, text: str, attachments: Sequence[Attachment] = ()) -> None:
        """Keep what was written and not sent, in the place of an earlier draft."""
        with self._writing() as db:
            db.execute("DELETE FROM drafts")
            if text.strip() or attachments:
                files = msgspec.json.encode(attachments).decode()
                _insert(db, "drafts", text=text, attachments=files)

    def draft(self) -> tuple[str, tuple[Attachment, ...]]:
        """Return what keep_draft() has kept."""
        with self._reading() as db:
            row = db.execute("SELECT * FROM drafts").fetchone()
        if row is None:
            return "", ()
        return row["text"], msgspec.json.decode(row["attachments"], type=tuple[Attachment, ...])

    # searching

    def search(self, text: str, limit: int = 50) -> list[Hit]:
        """Find chats by their titles and messages by their words, the best first.

        A word finds all words that begin with it; quotes hold a phrase together.
        """
        with self._reading() as db:
            hits = query.titles(db, text, limit)
            find = query.messages if self.full_text else query.messages_without_index
            return [*hits, *find(db, text, limit - len(hits))]

    # how it is done

    def _take_in(
        self, db: sqlite3.Connection, chat: Chat, messages: Iterable[StoredMessage]
    ) -> Chat:
        new = self.create(
            title=chat.title,
            model=chat.model,
            system=chat.system,
            parameters=chat.parameters,
            context_length=chat.context_length,
        )
        ids: dict[int | None, int | None] = {None: None}
        for message in messages:
            moved = msgspec.structs.replace(message, parent=ids[message.parent])
            ids[message.id] = self._insert_message(db, new.id, moved)
        db.execute(
            "UPDATE chats SET leaf=?, pinned=?, created_at=?, updated_at=? WHERE id=?",
            (ids[chat.leaf], chat.pinned, chat.created_at, chat.updated_at, new.id),
        )
        return self.chat(new.id)

    def _insert_message(self, db: sqlite3.Connection, chat: int, message: StoredMessage) -> int:
        values = _columns(message)
        id = _insert(db, "messages", chat=chat, parent=message.parent, role=message.role, **values)
        for file in message.attachments:
            _insert(db, "attachments", message=id, name=file.name, text=file.text)
        return id

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, database.troubles(self.file):
            yield self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as db:
            if db.in_transaction:  # part of a larger step
                yield db
            else:
                with database.transaction(db):
                    yield db


def _insert(db: sqlite3.Connection, table: str, **values: Any) -> int:
    names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    id = db.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", values).lastrowid
    assert id is not None
    return id


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _columns(message: StoredMessage) -> dict[str, Any]:
    """What of a message is a column of its own and may change."""
    origin = message.origin
    return {
        "content": message.content,
        "thinking": message.thinking,
        "created_at": message.created_at,
        "pinned": message.pinned,
        "model": origin and origin.model,
        "digest": origin and origin.digest,
        "parameters": origin and _json(origin.parameters),
        "context_length": origin and origin.context_length,
        "seed": message.seed,
        "done": message.done and _json(message.done),
        "truncated": message.truncated and _json(message.truncated),
    }


def _chat(row: sqlite3.Row) -> Chat:
    return msgspec.convert(
        {**row, "parameters": msgspec.json.decode(row["parameters"])}, Chat, strict=False
    )


def _message(row: sqlite3.Row, attachments: tuple[Attachment, ...]) -> StoredMessage:
    origin = None
    if row["model"] is not None:
        origin = Origin(
            model=row["model"],
            digest=row["digest"],
            parameters=msgspec.json.decode(row["parameters"]),
            context_length=row["context_length"],
        )
    return StoredMessage(
        id=row["id"],
        parent=row["parent"],
        role=row["role"],
        content=row["content"],
        thinking=row["thinking"],
        created_at=row["created_at"],
        pinned=bool(row["pinned"]),
        seed=row["seed"],
        origin=origin,
        done=row["done"] and msgspec.json.decode(row["done"], type=Done),
        truncated=row["truncated"] and msgspec.json.decode(row["truncated"], type=Truncated),
        attachments=attachments,
    )

"""The SQLite file of the history: its tables, their versions, its troubles in words.

WAL with ``synchronous=NORMAL``: what is committed survives the end of the process at once, and a
power cut at worst takes the last moments, never the file.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localllama.errors import DiskFull, HistoryError
from localllama.files import storing

MEMORY = Path(":memory:")
_BUSY_SECONDS = 30.0  # several processes write, each for a moment

# One entry a version: what it changes. Never edit an entry that was released; add one.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # AUTOINCREMENT: the number of a deleted chat never comes back for another one.
        """CREATE TABLE chats (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            title TEXT NOT NULL DEFAULT '',
            model TEXT NOT NULL DEFAULT '',
            system TEXT NOT NULL DEFAULT '',
            parameters TEXT NOT NULL DEFAULT '{}',
            context_length INTEGER NOT NULL DEFAULT 0,
            pinned INTEGER NOT NULL DEFAULT 0,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            deleted_at TEXT NOT NULL DEFAULT '',
            leaf INTEGER REFERENCES messages ON DELETE SET NULL
        )""",
        """CREATE TABLE messages (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            chat INTEGER NOT NULL REFERENCES chats ON DELETE CASCADE,
            parent INTEGER REFERENCES messages,
            role TEXT NOT NULL,
            content TEXT NOT NULL,
            thinking TEXT NOT NULL DEFAULT '',
            created_at TEXT NOT NULL,
            pinned INTEGER NOT NULL DEFAULT 0,
            model TEXT,
            digest TEXT,
            seed INTEGER,
            parameters TEXT,
            context_length INTEGER,
            done TEXT,
            truncated TEXT
        )""",
        "CREATE INDEX messages_of_chat ON messages (chat)",
        "CREATE INDEX messages_of_parent ON messages (parent)",
        """CREATE TABLE attachments (
            id INTEGER PRIMARY KEY,
            message INTEGER NOT NULL REFERENCES messages ON DELETE CASCADE,
            name TEXT NOT NULL,
            text TEXT NOT NULL
        )""",
        "CREATE INDEX attachments_of_message ON attachments (message)",
    ),
    ("CREATE TABLE drafts (text TEXT NOT NULL, attachments TEXT NOT NULL)",),
)

# The full-text index is no part of the versions: a Python without FTS5 does without it, and where
# it comes back it is filled from the messages. Triggers keep it, so that nothing forgets to.
_WORDS = (
    """CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(
        content, content='messages', content_rowid='id',
        tokenize="unicode61 remove_diacritics 2"
    )""",
    """CREATE TRIGGER words_insert AFTER INSERT ON messages BEGIN
        INSERT INTO words(rowid, content) VALUES (new.id, new.content);
    END""",
    """CREATE TRIGGER words_delete AFTER DELETE ON messages BEGIN
        INSERT INTO words(words, rowid, content) VALUES ('delete', old.id, old.content);
    END""",
    """CREATE TRIGGER words_update AFTER UPDATE OF content ON messages BEGIN
        INSERT INTO words(words, rowid, content) VALUES ('delete', old.id, old.content);
        INSERT INTO words(rowid, content) VALUES (new.id, new.content);
    END""",
    "INSERT INTO words(words) VALUES ('rebuild')",
)
_TRIGGERS = ("words_insert", "words_delete", "words_update")


def connect(file: Path) -> sqlite3.Connection:
    """Open the history, making or upgrading it; the caller serializes its use.

    Raises HistoryError, and StoreError when the folder cannot be written.
    """
    if file != MEMORY:
        with storing(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            # SQLite gives its -wal and -shm files the mode of this one.
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    with troubles(file):
        db = sqlite3.connect(
            file, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(db, file)
        except BaseException:
            db.close()
            raise
    return db


def _prepare(db: sqlite3.Connection, file: Path) -> None:
    db.row_factory = sqlite3.Row
    db.create_function("holds", 2, _holds, deterministic=True)
    for pragma in (
        "synchronous=NORMAL",
        "foreign_keys=ON",
        "secure_delete=ON",  # what is deleted is overwritten
        "temp_store=MEMORY",  # nothing of a chat in /tmp
    ):
        db.execute(f"PRAGMA {pragma}")
    with transaction(db):
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_MIGRATIONS):
            raise HistoryError(
                f"the chats in {file} were saved by a newer localllama", "upgrade localllama"
            )
        for migration in _MIGRATIONS[version:]:
            for statement in migration:
                db.execute(statement)
        if version < len(_MIGRATIONS):
            db.execute(f"PRAGMA user_version={len(_MIGRATIONS)}")
    # After the first transaction: its lock keeps two that begin at once apart.
    db.execute("PRAGMA journal_mode=WAL")


def index_words(db: sqlite3.Connection, *, wanted: bool = True) -> bool:
    """Make the full-text index, or without FTS5 remove what would need it; whether it is there."""
    there = db.execute("SELECT 1 FROM sqlite_master WHERE name='words_insert'").fetchone()
    if wanted and _has_fts5(db):
        if not there:
            with transaction(db):
                for statement in _WORDS:
                    db.execute(statement)
        return True
    if there:
        with transaction(db):
            for trigger in _TRIGGERS:
                db.execute(f"DROP TRIGGER IF EXISTS {trigger}")
    return False


def _has_fts5(db: sqlite3.Connection) -> bool:
    return bool(db.execute("SELECT 1 FROM pragma_module_list WHERE name='fts5'").fetchone())


def _holds(text: str, word: str) -> bool:
    return word in text.casefold()


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Write all or nothing; waits for other processes that write."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@contextmanager
def troubles(file: Path) -> Iterator[None]:
    """Turn an error of SQLite into a HistoryError or DiskFull."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL:
            raise DiskFull(
                f"the disk is full: the chat could not be saved in {file.parent}",
                "free some space; localllama prune shows what can go",
            ) from error
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            hint = f"move {file} away: localllama then begins a new history"
            raise HistoryError(f"the saved chats in {file} are damaged: {error}", hint) from error
        if code == sqlite3.SQLITE_BUSY:
            hint = "another localllama is writing: try again"
            raise HistoryError("the saved chats are in use", hint) from error
        hint = f"look at {file}; --no-history chats without saving"
        raise HistoryError(f"the saved chats cannot be used: {error}", hint) from error

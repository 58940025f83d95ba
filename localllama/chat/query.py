"""Searches of the history: by the full-text index, or word by word where that cannot help."""

from __future__ import annotations

import re
import sqlite3

from localllama.chat.records import Hit

_BEGIN, _END = "\x02", "\x03"  # around what was found, in an excerpt
_EXCERPT_WORDS = 14
_EXCERPT_CHARS = 40  # before and after what was found, without the index
_PARTS = re.compile(r'"([^"]+)"?|(\S+)')
# Scripts that put no blanks between words, which is what the index looks for.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")

_PLACES = "FROM messages m JOIN chats c ON c.id = m.chat"


def parts(text: str) -> list[str]:
    """Return the words and quoted phrases of a search.

    >>> parts('big "red house" b')
    ['big', 'red house', 'b']
    """
    return [phrase or word for phrase, word in _PARTS.findall(text)]


def titles(db: sqlite3.Connection, text: str, limit: int) -> list[Hit]:
    """Return the chats in whose titles all words stand."""
    words = [word.casefold() for word in parts(text)]
    if not words:
        return []
    rows = db.execute(
        f"SELECT id, title, updated_at FROM chats WHERE deleted_at='' AND {_holds('title', words)} "
        "ORDER BY updated_at DESC LIMIT ?",
        (*words, limit),
    )
    return [
        Hit(row["id"], row["title"], 0, "", row["updated_at"], _marked(row["title"], words))
        for row in rows
    ]


def messages(db: sqlite3.Connection, text: str, limit: int) -> list[Hit]:
    """Return the messages that hold words beginning with each of those searched for."""
    if _UNSPACED.search(text):
        return messages_without_index(db, text, limit)
    words = parts(text)
    if not words:
        return []
    escaped = (word.replace('"', '""') for word in words)
    rows = db.execute(
        f"SELECT m.chat, c.title, m.id, m.role, m.created_at, "
        f"snippet(words, 0, '{_BEGIN}', '{_END}', '…', {_EXCERPT_WORDS}) AS excerpt {_PLACES} "
        "JOIN words ON words.rowid = m.id WHERE words MATCH ? AND c.deleted_at='' "
        "ORDER BY rank LIMIT ?",
        (" ".join(f'"{word}"*' for word in escaped), limit),
    )
    return [_hit(row, _between_marks(row["excerpt"])) for row in rows]


def messages_without_index(db: sqlite3.Connection, text: str, limit: int) -> list[Hit]:
    """Return the messages that hold all words somewhere, the latest first; reads every message."""
    words = [word.casefold() for word in parts(text)]
    if not words:
        return []
    rows = db.execute(
        f"SELECT m.chat, c.title, m.id, m.role, m.created_at, m.content AS excerpt {_PLACES} "
        f"WHERE c.deleted_at='' AND {_holds('m.content', words)} ORDER BY m.id DESC LIMIT ?",
        (*words, limit),
    )
    return [_hit(row, _marked(_around(row["excerpt"], words), words)) for row in rows]


def _holds(column: str, words: list[str]) -> str:
    return " AND ".join([f"holds({column}, ?)"] * len(words))


def _hit(row: sqlite3.Row, excerpt: tuple[tuple[str, bool], ...]) -> Hit:
    return Hit(row["chat"], row["title"], row["id"], row["role"], row["created_at"], excerpt)


def _between_marks(text: str) -> tuple[tuple[str, bool], ...]:
    found: list[tuple[str, bool]] = []
    for piece in text.split(_BEGIN):
        marked, end, plain = piece.rpartition(_END)
        found += [(marked, True)] if end else []
        found += [(plain, False)] if plain else []
    return tuple(found)


def _around(text: str, words: list[str]) -> str:
    """The beginning of what was found in ``text``, with a little before and after it."""
    at = text.casefold().find(words[0])
    begin, end = max(0, at - _EXCERPT_CHARS), at + len(words[0]) + _EXCERPT_CHARS
    return ("…" if begin else "") + text[begin:end] + ("…" if end < len(text) else "")


def _marked(text: str, words: list[str]) -> tuple[tuple[str, bool], ...]:
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    pieces = re.split(f"({pattern})", text, flags=re.IGNORECASE)
    return tuple((piece, bool(i % 2)) for i, piece in enumerate(pieces) if piece)

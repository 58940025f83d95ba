"""Chats as files: Markdown to read, JSON to take into another history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from localllama.chat.history import History
from localllama.chat.records import Chat, StoredMessage, branch
from localllama.errors import HistoryError

_FORMAT = "localllama-chats"
_VERSION = 1


class _Exported(msgspec.Struct, frozen=True):
    chat: Chat
    messages: tuple[StoredMessage, ...]


class _File(msgspec.Struct, frozen=True):
    format: str
    version: int
    chats: tuple[_Exported, ...]


def to_json(history: History, chats: Sequence[Chat]) -> str:
    """Return chats with all their versions, as from_json() reads them."""
    exported = tuple(_Exported(chat, tuple(history.messages(chat.id))) for chat in chats)
    data = msgspec.json.encode(_File(_FORMAT, _VERSION, exported))
    return msgspec.json.format(data, indent=1).decode()


def from_json(history: History, text: str | bytes) -> list[Chat]:
    """Save the chats of to_json() under new numbers, all or none; raises HistoryError."""
    try:
        file = msgspec.json.decode(text, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = "localllama history export --json writes them"
        raise HistoryError(f"this is no file of exported chats: {error}", hint) from error
    if file.format != _FORMAT:
        raise HistoryError(f"this is no file of exported chats but of {file.format!r}")
    if file.version > _VERSION:
        raise HistoryError("a newer localllama has exported these chats", "upgrade localllama")
    for exported in file.chats:
        _check(exported)
    return history.take_in((exported.chat, exported.messages) for exported in file.chats)


def _check(exported: _Exported) -> None:
    """Raise HistoryError unless every message follows one that comes before it."""
    known: set[int | None] = {None}
    for message in exported.messages:
        if message.parent not in known or message.id in known:
            raise HistoryError(f"message {message.id} of {exported.chat.title!r} is out of place")
        known.add(message.id)
    if exported.chat.leaf not in known:
        raise HistoryError(f"the chat {exported.chat.title!r} ends in a message it does not have")


def to_markdown(chat: Chat, messages: Sequence[StoredMessage]) -> str:
    """Return the branch that a chat shows, to read."""
    return "\n\n".join(_markdown(chat, branch(messages, chat.leaf))) + "\n"


def _markdown(chat: Chat, shown: Sequence[StoredMessage]) -> Iterator[str]:
    yield f"# {chat.title or 'Untitled chat'}"
    facts = [f"Begun {_moment(chat.created_at)}"]
    if chat.model:
        facts.append(f"with {chat.model}")
    yield " ".join(facts)
    if chat.system:
        yield f"## System prompt\n\n{chat.system}"
    for message in shown:
        yield f"## {_who(message)}"
        for file in message.attachments:
            fence = _fence(file.text)
            yield f"Attached: {file.name}\n\n{fence}\n{file.text}\n{fence}"
        if message.thinking:
            thought = "\n".join(f"> {line}".rstrip() for line in message.thinking.splitlines())
            yield f"> *Thinking*\n>\n{thought}"
        if message.content:
            yield message.content
        if message.cut:
            yield "*(the reply was cut)*"


def _who(message: StoredMessage) -> str:
    if message.role == "assistant" and message.origin is not None:
        return f"Assistant ({message.origin.model})"
    return message.role.capitalize()


def _moment(text: str) -> str:
    return text[:16].replace("T", " ") + " UTC"


def _fence(text: str) -> str:
    """A fence longer than any in ``text``."""
    fence = "```"
    while fence in text:
        fence += "`"
    return fence

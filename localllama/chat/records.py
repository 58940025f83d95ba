"""What the history keeps of chats: their settings, their messages as a tree, what a search finds.

A message's ``parent`` is the one it follows. Two messages with the same parent are versions of one
another, and a chat shows the branch that ends in its ``leaf``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from localllama.chat import thinking
from localllama.engine.api import Done, Message, Truncated

FAILED = "failed"  # the reason of a Done that no engine sent: its process died, or broke off


class Attachment(msgspec.Struct, frozen=True):
    """A text that goes to the model with a message; ``name`` is what the user calls it."""

    name: str
    text: str


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a reply was made with: the model, its content's digest, and the parameters."""

    model: str = ""
    digest: str = ""
    parameters: dict[str, Any] = {}
    context_length: int = 0


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation; moments are ISO 8601 in UTC, an empty ``deleted_at`` means it is there.

    ``parameters`` and ``context_length`` are the chat's own, 0 = none.
    """

    id: int
    title: str = ""
    model: str = ""
    system: str = ""
    parameters: dict[str, Any] = {}
    context_length: int = 0
    pinned: bool = False
    created_at: str = ""
    updated_at: str = ""
    deleted_at: str = ""
    leaf: int | None = None


class StoredMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message; ``done`` is None for a reply that is under way or was lost in the middle.

    ``seed`` is the one that the reply was made with. ``truncated`` says what was left out of the
    prompt before it.
    """

    id: int
    parent: int | None
    role: str
    content: str
    thinking: str = ""
    created_at: str = ""
    pinned: bool = False
    seed: int | None = None
    origin: Origin | None = None
    done: Done | None = None
    truncated: Truncated | None = None
    attachments: tuple[Attachment, ...] = ()

    @property
    def cut(self) -> bool:
        """Whether this is a reply that the model did not end itself."""
        return self.role == "assistant" and (self.done is None or self.done.reason != "stop")


class Hit(msgspec.Struct, frozen=True):
    """A message that a search found, or a title when ``message`` is 0.

    ``excerpt`` is its text around the words, in pieces of which the marked ones are found.
    """

    chat: int
    title: str
    message: int
    role: str
    at: str
    excerpt: tuple[tuple[str, bool], ...]


def branch(messages: Iterable[StoredMessage], leaf: int | None) -> list[StoredMessage]:
    """Return the messages from the first one to ``leaf``."""
    by_id = {message.id: message for message in messages}
    path: list[StoredMessage] = []
    while leaf is not None:
        path.append(by_id[leaf])
        leaf = path[-1].parent
    return path[::-1]


def versions(messages: Iterable[StoredMessage]) -> dict[int, list[int]]:
    """Return, for the id of each message, those of all messages in its place, the oldest first."""
    places: dict[int | None, list[int]] = {}
    for message in messages:
        places.setdefault(message.parent, []).append(message.id)
    return {id: place for place in places.values() for id in place}


def newest_leaf(messages: Sequence[StoredMessage], start: int) -> int:
    """Return where the branch ends that goes on from ``start`` to the newest messages."""
    children = {m.parent: m.id for m in sorted(messages, key=lambda m: m.id)}
    while start in children:
        start = children[start]
    return start


def spoken(message: StoredMessage) -> Message:
    """Return the message as the model gets it, with what is attached to it before its text."""
    files = [f'<file name="{a.name}">\n{a.text}\n</file>' for a in message.attachments]
    text = thinking.join(message.thinking, message.content)
    return Message(message.role, "\n\n".join([*files, text]))


def first_words(text: str, length: int = 48) -> str:
    """Return a title made of the first words of ``text``.

    >>> first_words("What is\\nthe time?", 10)
    'What is…'
    """
    words = " ".join(text.split())
    if len(words) <= length:
        return words
    return (words[:length].rsplit(" ", 1)[0] if " " in words[:length] else words[:length]) + "…"

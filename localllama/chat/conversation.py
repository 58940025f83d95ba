"""A session whose messages are saved as they come, with versions of each and a way back to them."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import msgspec

from localllama.chat import thinking
from localllama.chat.history import History
from localllama.chat.records import (
    FAILED,
    Attachment,
    Chat,
    Origin,
    StoredMessage,
    spoken,
)
from localllama.chat.session import Model, Session
from localllama.engine.api import Done, Event, Sampling, Text, Timings, Truncated, Usage
from localllama.errors import InvalidParameter, LocalLlamaError

# How long text may wait to be saved: with the wait for other writers well below a second.
SAVE_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model, and what is recorded of it with every reply."""

    engine: Model
    name: str
    digest: str


class Conversation:
    """One chat of a history, talked with in one thread at a time.

    ``branch`` holds the messages it shows. Raises what Session, History and the engine raise.
    """

    def __init__(
        self,
        history: History,
        chat: Chat,
        *,
        policy: str = "drop-oldest",
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        self.history = history
        self.chat = chat
        self.branch = history.branch(chat.id)
        self._policy = policy
        self.save_seconds = save_seconds
        self._session: Session | None = None

    def say(
        self, text: str, attachments: tuple[Attachment, ...] = (), *, at: int | None = None
    ) -> StoredMessage:
        """Save a message of the user: at the end, or as another version of message ``at``."""
        if at is not None:
            self._shorten(at)
        self.add("user", text, attachments)
        return self.branch[-1]

    def again(self, at: int) -> None:
        """Go back to before the reply ``at``, so that reply() makes another version of it."""
        self._shorten(at)

    def show(self, message: int) -> None:
        """Go over to the branch that leads through another version of a message."""
        self.branch = self.history.show(self.chat.id, message)

    def add(self, role: str, content: str, attachments: tuple[Attachment, ...] = ()) -> None:
        """Save a message at the end: also those that the model's own conversations begin with."""
        parent = self.branch[-1].id if self.branch else None
        message = StoredMessage(
            id=0, parent=parent, role=role, content=content, attachments=attachments
        )
        self.branch.append(self.history.add(self.chat.id, message))

    def change(self, **values: Any) -> None:
        """Set fields of the chat, as History.change() does."""
        self.chat = self.history.change(self.chat.id, **values)

    def pin(self, message: int, keep: bool = True) -> None:
        """Keep a message in the prompt whatever else is left out, or no longer."""
        index = self._index(message)
        self.branch[index] = msgspec.structs.replace(self.branch[index], pinned=keep)
        self.history.update(self.branch[index])

    def reply(
        self, model: LoadedModel, sampling: Sampling, *, think: bool | None = None
    ) -> Generator[Event, None, None]:
        """Reply to the last message, or go on with the reply at the end if it was cut.

        Text is saved before a second is over, whatever happens; what came of a reply is in
        ``branch`` when this ends.
        """
        if not self.branch:
            raise InvalidParameter("there is nothing to reply to", "write a message first")
        session = self._prepared(model)
        draft = _Draft(self, model, sampling)
        try:
            for event in session.reply(sampling, think=think):
                draft.event(event)
                yield event
        except LocalLlamaError:
            draft.finish(Done(FAILED, Usage(), Timings()))
            raise
        finally:
            draft.finish(Done("cancelled", Usage(), Timings()))  # unless it has ended already

    def _prepared(self, model: LoadedModel) -> Session:
        """The session, brought to what is to be said now."""
        sent = answered(self.branch)
        messages = [spoken(message) for message in sent]
        if self._session is None or self._session.policy != self._policy:
            self._session = Session(
                model.engine,
                policy=self._policy,
                conversation=session_name(self.chat.id),
                snapshot=not self.history.in_memory,
            )
        self._session.engine = model.engine
        self._session.system = self.chat.system
        self._session.replace(messages, [i for i, message in enumerate(sent) if message.pinned])
        return self._session

    def _shorten(self, at: int) -> None:
        """End the branch before message ``at``; what follows stays in the history."""
        del self.branch[self._index(at) :]

    def _index(self, message: int) -> int:
        for index, shown in enumerate(self.branch):
            if shown.id == message:
                return index
        raise InvalidParameter(f"message {message} is not in this branch of the chat")


def session_name(chat: int) -> str:
    """Return under which name workers keep what they computed of a saved chat."""
    return f"chat-{chat}"


class _Draft:
    """A reply on its way into the history."""

    def __init__(self, conversation: Conversation, model: LoadedModel, sampling: Sampling) -> None:
        self._conversation = conversation
        last = conversation.branch[-1]
        self._goes_on = last.role == "assistant"
        self._before = last
        self._text = thinking.join(last.thinking, last.content) if self._goes_on else ""
        new = StoredMessage(id=0, parent=last.id, role="assistant", content="")
        self._message = msgspec.structs.replace(
            last if self._goes_on else new,
            done=None,
            origin=Origin(
                model=model.name,
                digest=model.digest,
                parameters=_chosen(sampling),
                context_length=model.engine.ready.context_length,
            ),
        )
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._saved_at = -SAVE_SECONDS
        self._more = self._over = False

    def event(self, event: Event) -> None:
        """Take in what it says of the reply."""
        if isinstance(event, Text):
            with self._lock:
                self._text += event.text
                self._more = True
            self._save_soon()
        elif isinstance(event, Truncated):
            self._message = msgspec.structs.replace(self._message, truncated=event)
        elif isinstance(event, Done):
            self.finish(event)

    def finish(self, done: Done) -> None:
        """Save how the reply ended; nothing is left of one without any text."""
        with self._lock:
            if self._over:
                return
            self._over = True
            if self._timer is not None:
                self._timer.cancel()
            self._message = msgspec.structs.replace(self._message, done=done, seed=done.seed)
            if self._goes_on and not self._more and done.reason in (FAILED, "cancelled"):
                self._message = self._before
            if self._text:
                self._save()
        conversation = self._conversation
        if not self._text:
            conversation.branch = conversation.history.branch(conversation.chat.id)
        elif self._goes_on:
            conversation.branch[-1] = self._message
        else:
            conversation.branch.append(self._message)

    def _save_soon(self) -> None:
        """Save at once when the last time is long ago, else when it will be: also if no more text
        comes by then."""
        wait = self._saved_at + self._conversation.save_seconds - monotonic()
        with self._lock:
            if wait <= 0:
                self._save()
            elif self._timer is None:
                self._timer = threading.Timer(wait, self._save_late)
                self._timer.daemon = True
                self._timer.start()

    def _save_late(self) -> None:
        with self._lock, suppress(LocalLlamaError):  # finish() tries again and tells
            self._timer = None
            if not self._over:
                self._save()

    def _save(self) -> None:
        thought, said = thinking.split(self._text)
        message = msgspec.structs.replace(self._message, thinking=thought, content=said)
        history = self._conversation.history
        if message.id:
            history.update(message)
        else:
            message = history.add(self._conversation.chat.id, message)
        self._message = message
        self._saved_at = monotonic()


def _chosen(sampling: Sampling) -> dict[str, Any]:
    """The parameters that are not the defaults, which make a reply again with the seed."""
    default = Sampling()
    values: dict[str, Any] = msgspec.to_builtins(sampling)
    return {
        name: value
        for name, value in values.items()
        if getattr(sampling, name) != getattr(default, name)
    }


def answered(branch: list[StoredMessage]) -> list[StoredMessage]:
    """Leave out messages of the user that never got a reply: templates refuse two in a row."""
    after = [*branch, None][1:]
    return [
        message
        for message, following in zip(branch, after, strict=True)
        if message.role != "user" or following is None or following.role != "user"
    ]

"""Titles that the model makes: one at a time, in a thread, while nobody waits for anything."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from localllama.chat import titles
from localllama.chat.history import History
from localllama.chat.records import StoredMessage
from localllama.chat.session import Model
from localllama.errors import LocalLlamaError


class Titles:
    """The chats that wait for a title; ``named`` is called in a thread when one has got it."""

    def __init__(self, history: History, named: Callable[[int, str], None]) -> None:
        self._history = history
        self._named = named
        self._waiting: dict[int, None] = {}  # in the order of their coming
        self._asked: set[int] = set()  # once is enough: what was nonsense would be again
        self._stopped = threading.Event()
        self._engine: Model | None = None
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether the model is asked at this moment."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def due(self) -> bool:
        """Whether a chat waits and the model is not asked yet."""
        return bool(self._waiting) and not self.busy

    def add(self, chat: int, reply: StoredMessage) -> None:
        """Let a chat wait for a title after ``reply``, unless that would push it out of memory."""
        if reply.cut or reply.done is None or reply.origin is None or chat in self._asked:
            return
        usage, length = reply.done.usage, reply.origin.context_length
        if usage.prompt_tokens + usage.completion_tokens + titles.CELLS <= length:
            self._waiting[chat] = None

    def begin(self, engine: Model) -> None:
        """Ask the model for the title of the first that waits, if there is one."""
        if not self.due:
            return
        chat = next(iter(self._waiting))
        self._stopped, self._engine = threading.Event(), engine
        # A daemon, as every thread that waits for a model.
        self._thread = threading.Thread(
            target=self._make, args=(chat, engine, self._stopped), daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Leave the model to somebody else; what was not finished is tried again later."""
        if self.busy and self._engine is not None:
            self._stopped.set()
            self._engine.cancel()

    def wait(self, seconds: float) -> None:
        """Return when nothing is asked, or after so long."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _make(self, chat: int, engine: Model, stopped: threading.Event) -> None:
        title = ""
        with suppress(LocalLlamaError):  # nobody waits for a title, nobody needs to hear
            question, reply = (message.content for message in self._history.branch(chat)[-2:])
            title = titles.ask(engine, question, reply, stopped.is_set)
        if stopped.is_set():
            return
        self._asked.add(chat)
        self._waiting.pop(chat, None)
        with suppress(LocalLlamaError):  # the chat was deleted meanwhile
            if title and self._history.entitle(chat, title):
                self._named(chat, title)

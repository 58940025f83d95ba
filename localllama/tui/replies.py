"""Replies on their way: each comes in a thread of its own, and the app draws what is there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from time import monotonic

import msgspec

from localllama.chat import thinking
from localllama.chat.conversation import Conversation, LoadedModel
from localllama.chat.records import Origin, StoredMessage
from localllama.engine.api import Done, Event, Prefill, Sampling, Text, Truncated
from localllama.errors import LocalLlamaError


class Reply:
    """One reply. ``changed`` is called in its thread at every event; everything may be read."""

    def __init__(
        self,
        conversation: Conversation,
        sampling: Sampling,
        think: bool | None,
        model: Callable[[], LoadedModel],
        changed: Callable[[Reply], None],
    ) -> None:
        self.conversation = conversation
        self.started_at = monotonic()
        self.prefill: Prefill | None = None
        self.truncated: Truncated | None = None
        self.done: Done | None = None
        self.error: LocalLlamaError | None = None
        self.over = False
        self.tokens = 0
        self.told = False  # the app knows that there is more to draw
        self.truncation_shown = False
        last = conversation.branch[-1]
        self.goes_on = last.role == "assistant"
        self._before = last
        self._parts = [thinking.join(last.thinking, last.content)] if self.goes_on else []
        self._sampling = sampling
        self._think = think
        self._model = model
        self._changed = changed
        self._loaded: LoadedModel | None = None
        self._stopped = self._alone = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, *, alone: bool) -> None:
        """End the reply and keep what came of it; at once if it is the only one of its engine."""
        self._stopped, self._alone = True, alone
        if alone and self._loaded is not None:
            self._loaded.engine.cancel()

    def wait(self, seconds: float) -> None:
        """Return when all of it is saved, or after so long; at once where there is nothing yet."""
        if self._loaded is not None:
            self._thread.join(seconds)

    @property
    def message(self) -> StoredMessage:
        """The reply as far as it is there."""
        thought, said = thinking.split("".join(self._parts))
        if self.goes_on:
            return msgspec.structs.replace(self._before, thinking=thought, content=said)
        name = self._loaded.name if self._loaded else self.conversation.chat.model
        return StoredMessage(
            id=0,
            parent=self._before.id,
            role="assistant",
            content=said,
            thinking=thought,
            origin=Origin(model=name),
        )

    @property
    def begun(self) -> bool:
        """Whether any of its text is there."""
        return len(self._parts) > self.goes_on

    def _run(self) -> None:
        try:
            self._loaded = self._model()
            if not self._stopped:
                self._follow(self._loaded)
        except LocalLlamaError as error:
            self.error = error
        finally:
            self.over = True
            self._changed(self)

    def _follow(self, loaded: LoadedModel) -> None:
        events = self.conversation.reply(loaded, self._sampling, think=self._think)
        with closing(events):
            for event in events:
                self._take(event)
                self._changed(self)
                if self._stopped and not self._alone:
                    return
                if self._stopped:  # it was asked for before there was a stream to cancel
                    loaded.engine.cancel()

    def _take(self, event: Event) -> None:
        if isinstance(event, Text):
            self._parts.append(event.text)
            self.tokens += event.tokens
        elif isinstance(event, Prefill):
            self.prefill = event
        elif isinstance(event, Truncated):
            self.truncated = event
        elif isinstance(event, Done):
            self.done = event

"""A conversation with one engine: keeps the messages, drops none of them silently."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from localllama.engine.api import Event, Message, Prefill, Ready, Sampling, Text, Truncated
from localllama.errors import ContextFull

# Room kept for the reply, so that a full context drops old turns before a reply and not in it.
_REPLY_TOKENS = 512


class Model(Protocol):
    """What a session needs of an engine."""

    @property
    def ready(self) -> Ready:
        """The loaded model's figures."""
        ...

    def cancel(self) -> None:
        """End the running reply with Done("cancelled")."""
        ...

    def stream(
        self,
        sampling: Sampling,
        *,
        messages: tuple[Message, ...],
        reserve_tokens: int = 0,
        think: bool | None = None,
    ) -> Iterator[Event]:
        """Reply to ``messages``."""
        ...


class Session:
    """One conversation. ``messages`` holds all of it; the model sees what fits.

    The policy is drop-oldest: when the prompt does not leave room for a reply, the oldest whole
    turns stay out of it (never the system prompt, never the newest message), and the stream says
    so with a Truncated event before the reply.
    """

    def __init__(
        self, engine: Model, *, system: str = "", messages: Iterable[Message] = ()
    ) -> None:
        self.engine = engine
        self.system = system
        self.messages: list[Message] = list(messages)
        self._first = 0  # index of the oldest message that is still sent

    def clear(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.messages.clear()
        self._first = 0

    def send(self, text: str, sampling: Sampling, *, think: bool | None = None) -> Iterator[Event]:
        """Say ``text`` and yield the events of the reply.

        However the stream ends, what came of the reply is kept in ``messages``. A message that
        alone is longer than the context raises ContextFull and is not kept.
        """
        self.messages.append(Message("user", text))
        reply: list[str] = []
        try:
            for event in self._stream(sampling, think):
                if isinstance(event, Text):
                    reply.append(event.text)
                yield event
        except ContextFull:
            self.messages.pop()
            raise
        finally:
            if reply:
                self.messages.append(Message("assistant", "".join(reply)))

    def _stream(self, sampling: Sampling, think: bool | None) -> Iterator[Event]:
        context = self.engine.ready.context_length
        limit = sampling.max_tokens if sampling.max_tokens > 0 else _REPLY_TOKENS
        reserve = min(limit, _REPLY_TOKENS, context // 4)
        before = self._first
        needed = 0
        while True:
            try:
                stream = self.engine.stream(
                    sampling, messages=self._sent(), reserve_tokens=reserve, think=think
                )
                for event in stream:
                    if self._first > before and isinstance(event, Prefill):
                        yield Truncated(self._first - before, max(0, needed - event.total))
                        before = self._first
                    yield event
                return
            except ContextFull as error:
                needed = needed or error.needed_tokens - reserve
                if self._drop_turn():
                    continue
                if reserve <= 1:
                    self._first = before
                    raise
                reserve = 1  # a long message with a short reply is better than none

    def _sent(self) -> tuple[Message, ...]:
        system = (Message("system", self.system),) if self.system else ()
        return (*system, *self.messages[self._first :])

    def _drop_turn(self) -> bool:
        """Leave the oldest turn (up to the next user's message) out; False at the last one."""
        for index in range(self._first + 1, len(self.messages)):
            if self.messages[index].role == "user":
                self._first = index
                return True
        return False

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

        However the stream ends, what came of the reply is kept in ``messages``. A message that got
        none is not kept: templates refuse two messages of a user in a row.
        """
        self.messages.append(Message("user", text))
        reply: list[str] = []
        try:
            for event in self._stream(sampling, think):
                if isinstance(event, Text):
                    reply.append(event.text)
                yield event
        finally:
            if reply:
                self.messages.append(Message("assistant", "".join(reply)))
            else:
                self.messages.pop()

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
                prompt_tokens = error.needed_tokens - reserve
                needed = needed or prompt_tokens
                if self._drop_turns(context / 2 / max(1, prompt_tokens)):
                    continue
                if reserve <= 1:
                    self._first = before
                    raise
                reserve = 1  # a long message with a short reply is better than none

    def _sent(self) -> tuple[Message, ...]:
        system = (Message("system", self.system),) if self.system else ()
        return (*system, *self.messages[self._first :])

    def _drop_turns(self, share: float) -> bool:
        """Leave the oldest turns out until about ``share`` of the text is left; False for none.

        Half a context at once: what is sent then begins with the same tokens for many turns, and
        each of them costs its new tokens only.
        """
        before, sent = self._first, self.messages[self._first :]
        left = share * sum(len(message.content) for message in sent)
        starts = [i for i, m in enumerate(self.messages) if m.role == "user" and i > before]
        for start in starts:
            self._first = start
            if sum(len(message.content) for message in self.messages[start:]) <= left:
                break
        return self._first > before

"""A conversation with one engine: keeps the messages, drops none of them silently."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol, Unpack

from localllama.engine.api import (
    Done,
    Event,
    Further,
    Message,
    Prefill,
    Ready,
    Sampling,
    Text,
    Truncated,
)
from localllama.errors import ContextFull, InvalidParameter

# Room kept for the reply, so that a full context drops old turns before a reply and not in it.
_REPLY_TOKENS = 512
POLICIES = ("drop-oldest", "stop", "shift")


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
        continue_last: bool = False,
        **further: Unpack[Further],
    ) -> Iterator[Event]:
        """Reply to ``messages``, or go on with the last one."""
        ...


class Session:
    """One conversation. ``messages`` holds all of it; the model sees what fits.

    Under the policy ``drop-oldest``, when the prompt does not leave room for a reply, the oldest
    whole turns stay out of it (never the system prompt, the newest message, or a turn with a
    pinned one), and the stream says so with a Truncated event before the reply. ``shift`` is the
    same, and a reply that fills the context goes on: its oldest tokens, but for those up to the
    last message that must stay, give way with another Truncated event. Under ``stop``, nothing is
    left out and send() raises ContextFull. Raises InvalidParameter for any other.

    What the model has computed may be kept on disk if ``snapshot``, until ``conversation``, if it
    has a name, is forgotten.
    """

    def __init__(
        self,
        engine: Model,
        *,
        system: str = "",
        messages: Iterable[Message] = (),
        policy: str = "drop-oldest",
        conversation: str = "",
        snapshot: bool = True,
    ) -> None:
        if policy not in POLICIES:
            hint = "there are " + ", ".join(POLICIES)
            raise InvalidParameter(f"the context policy {policy!r} is not available", hint)
        self.engine = engine
        self.system = system
        self.policy = policy
        self.conversation = conversation
        self.snapshot = snapshot
        self.messages: list[Message] = list(messages)
        self._pinned: set[int] = set()
        self._left_out: set[int] = set()  # indices of messages that are no longer sent

    def clear(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.messages.clear()
        self._pinned.clear()
        self._left_out.clear()

    def pin(self, index: int, keep: bool = True) -> None:
        """Keep the turn of message ``index`` in the prompt for ever, or no longer.

        A turn that was left out already comes back. Raises InvalidParameter for an index that is
        none.
        """
        if not 0 <= index < len(self.messages):
            raise InvalidParameter(
                f"there is no message {index}", f"the conversation has {len(self.messages)}"
            )
        if keep:
            self._pinned.add(index)
            self._left_out.difference_update(next(turn for turn in self._turns() if index in turn))
        else:
            self._pinned.discard(index)

    def replace(self, messages: Sequence[Message], pinned: Iterable[int] = ()) -> None:
        """Go on with other messages; what was left out stays so up to where they differ."""
        same = 0
        for old, new in zip(self.messages, messages, strict=False):
            if old != new:
                break
            same += 1
        self.messages[same:] = messages[same:]
        self._left_out = {index for index in self._left_out if index < same}
        self._pinned = set()
        for index in pinned:
            self.pin(index)

    def send(self, text: str, sampling: Sampling, *, think: bool | None = None) -> Iterator[Event]:
        """Say ``text`` and yield the events of the reply.

        However the stream ends, what came of the reply is kept in ``messages``. A message that got
        none is not kept: templates refuse two messages of a user in a row.
        """
        self.messages.append(Message("user", text))
        reply: list[str] = []
        try:
            for event in self.reply(sampling, think=think):
                if isinstance(event, Text):
                    reply.append(event.text)
                yield event
        finally:
            if reply:
                self.messages.append(Message("assistant", "".join(reply)))
            else:
                self.messages.pop()

    def reply(self, sampling: Sampling, *, think: bool | None = None) -> Iterator[Event]:
        """Yield the events of a reply to the messages as they stand; keeps nothing of it.

        After a message of the assistant it is the rest of that one.
        """
        before, told = set(self._left_out), False
        try:
            for event, needed in self._fitting(sampling, think):
                dropped = len(self._left_out - before)
                if dropped and not told:
                    yield Truncated(dropped, self._left_out_tokens(event, needed))
                told = True
                yield event
        finally:
            if not told:
                self._left_out = before

    def _fitting(self, sampling: Sampling, think: bool | None) -> Iterator[tuple[Event, int]]:
        """Leave turns out until the prompt fits; yield events, and its tokens before that."""
        reserve = self._reply_tokens(sampling)
        needed = 0
        while True:
            try:
                stream = self.engine.stream(
                    sampling,
                    messages=self._sent(),
                    reserve_tokens=reserve,
                    think=think,
                    continue_last=[m.role for m in self.messages[-1:]] == ["assistant"],
                    **self._further(),
                )
                for event in stream:
                    yield event, needed
                return
            except ContextFull as error:
                prompt_tokens = error.needed_tokens - reserve
                needed = needed or prompt_tokens
                share = self.engine.ready.context_length / 2 / max(1, prompt_tokens)
                if self.policy != "stop" and self._drop_turns(share):
                    continue
                if reserve <= 1:
                    raise
                reserve = 1  # a long message with a short reply is better than none

    def _left_out_tokens(self, first: Event, needed: int) -> int:
        """How much a prompt of ``needed`` tokens has lost; by its text where nobody says."""
        if isinstance(first, Prefill | Done):
            now = first.total if isinstance(first, Prefill) else first.usage.prompt_tokens
            return max(0, needed - now)
        sizes = [len(message.content) for message in self.messages]
        return needed * sum(sizes[index] for index in self._left_out) // max(1, sum(sizes))

    def _further(self) -> Further:
        further = Further(conversation=self.conversation, snapshot=self.snapshot)
        if self.policy == "shift":
            further |= Further(shift=True, keep_messages=self._kept())
        return further

    def _kept(self) -> int:
        """How many of the messages sent stay when the context shifts: to the last that must."""
        pinned = {i for turn in self._turns() if self._pinned.intersection(turn) for i in turn}
        sent = [i for i in range(len(self.messages)) if i not in self._left_out]
        must = (n for n, i in enumerate(sent, 1) if i in pinned or self._stays(i))
        return bool(self.system) + max(must, default=0)

    def _stays(self, index: int) -> bool:
        return self.messages[index].role == "system"

    def _reply_tokens(self, sampling: Sampling) -> int:
        """How much room to make for the reply; without a policy to make it, one token will do."""
        if self.policy == "stop":
            return 1
        limit = sampling.max_tokens if sampling.max_tokens > 0 else _REPLY_TOKENS
        return min(limit, _REPLY_TOKENS, self.engine.ready.context_length // 4)

    def _sent(self) -> tuple[Message, ...]:
        system = (Message("system", self.system),) if self.system else ()
        kept = (m for i, m in enumerate(self.messages) if i not in self._left_out)
        return (*system, *kept)

    def _turns(self) -> Iterator[range]:
        """The indices of each turn: a user's message and what follows up to the next one."""
        starts = [i for i, m in enumerate(self.messages) if m.role == "user" and i > 0]
        for begin, end in pairwise((0, *starts, len(self.messages))):
            yield range(begin, end)

    def _drop_turns(self, share: float) -> bool:
        """Leave the oldest turns out until about ``share`` of the text is left.

        Never the newest turn nor one with a pinned message; False when there is no other. Half a
        context goes at once: what is sent then begins with the same tokens for many turns, and
        each of them costs its new tokens only.
        """
        sizes = [len(message.content) for message in self.messages]
        left = sum(size for i, size in enumerate(sizes) if i not in self._left_out)
        goal, dropped = share * left, False
        for turn in list(self._turns())[:-1]:
            going = [i for i in turn if i not in self._left_out and not self._stays(i)]
            if going and self._pinned.isdisjoint(turn):
                self._left_out.update(going)
                left -= sum(sizes[i] for i in going)
                dropped = True
                if left <= goal:
                    break
        return dropped

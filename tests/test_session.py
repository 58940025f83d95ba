"""A conversation: what is kept, what is dropped and said so, with a scripted engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from localllama.chat.session import Session
from localllama.engine.api import (
    Done,
    Event,
    Message,
    Prefill,
    Ready,
    Sampling,
    Text,
    Timings,
    Truncated,
    Usage,
)
from localllama.errors import ContextFull, WorkerDied


class ScriptedEngine:
    """Counts a word as a token, refuses prompts that do not fit, and replies with ``words``."""

    def __init__(self, context_length: int, words: int = 3) -> None:
        self.ready = Ready(context_length, context_length, "scripted", 0.0)
        self.words = words
        self.sent: list[tuple[Message, ...]] = []
        self.dies_after: int | None = None

    def cancel(self) -> None:
        raise AssertionError("nobody cancels here")

    def stream(
        self,
        sampling: Sampling,
        *,
        messages: tuple[Message, ...],
        reserve_tokens: int = 0,
        think: bool | None = None,
    ) -> Iterator[Event]:
        count = sum(len(message.content.split()) for message in messages)
        if count + reserve_tokens > self.ready.context_length:
            needed = count + reserve_tokens
            raise ContextFull("full", needed_tokens=needed, available_tokens=0)
        self.sent.append(messages)
        yield Prefill(count, count)
        for number in range(self.words):
            if number == self.dies_after:
                raise WorkerDied("gone")
            yield Text(f"word{number} ")
        yield Done("stop", Usage(count, 0, self.words), Timings())


def say(session: Session, text: str) -> list[Event]:
    return list(session.send(text, Sampling(max_tokens=8)))


def test_messages_alternate_and_the_system_prompt_leads() -> None:
    engine = ScriptedEngine(1000)
    session = Session(engine, system="be brief")
    say(session, "one")
    say(session, "two")
    assert [message.role for message in engine.sent[-1]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert [message.role for message in session.messages] == ["user", "assistant"] * 2
    assert session.messages[1].content == "word0 word1 word2 "


def test_old_turns_are_dropped_whole_and_the_stream_says_so() -> None:
    engine = ScriptedEngine(39)
    session = Session(engine, system="be brief")
    for _ in range(2):
        assert not any(isinstance(e, Truncated) for e in say(session, "a b c d e f g h"))
    events = say(session, "a b c d e f g h")
    truncated = events[0]
    # Two turns of 8 + 3 words, the system prompt's 2, a message of 8 and room for a reply of 8 are
    # 40: one too many. What stays is about half the context.
    assert truncated == Truncated(messages=2, tokens=11)
    assert [m.role for m in engine.sent[-1]] == ["system", "user", "assistant", "user"]
    assert len(session.messages) == 6  # the conversation itself loses nothing
    assert not any(isinstance(e, Truncated) for e in say(session, "short"))


def test_a_message_longer_than_the_context_is_refused_and_not_kept() -> None:
    session = Session(ScriptedEngine(40))
    say(session, "hello")
    with pytest.raises(ContextFull) as caught:
        say(session, "word " * 60)
    assert caught.value.needed_tokens >= 60
    assert [message.content for message in session.messages] == ["hello", "word0 word1 word2 "]
    say(session, "still here?")
    assert len(session.messages) == 4


def test_a_long_message_gets_a_short_reply_rather_than_none() -> None:
    engine = ScriptedEngine(40)
    session = Session(engine)
    say(session, "word " * 38)
    assert len(engine.sent) == 1


def test_a_message_without_a_reply_is_not_kept() -> None:
    session = Session(ScriptedEngine(100, words=0))
    say(session, "hello")
    say(session, "hello?")
    assert session.messages == []


def test_a_stopped_reply_is_kept() -> None:
    session = Session(ScriptedEngine(100))
    events = session.send("hello", Sampling())
    assert [type(next(events)) for _ in range(2)] == [Prefill, Text]
    events.close()
    assert [message.content for message in session.messages] == ["hello", "word0 "]


def test_what_came_before_the_worker_died_is_kept() -> None:
    engine = ScriptedEngine(100)
    engine.dies_after = 2
    session = Session(engine)
    with pytest.raises(WorkerDied):
        say(session, "hello")
    assert session.messages[-1] == Message("assistant", "word0 word1 ")


def test_clear_forgets_messages_and_keeps_the_system_prompt() -> None:
    engine = ScriptedEngine(100)
    session = Session(engine, system="be brief")
    say(session, "one")
    session.clear()
    say(session, "two")
    assert [message.content for message in engine.sent[-1]] == ["be brief", "two"]

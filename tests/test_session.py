"""A conversation: what is kept, what is dropped and said so, with a scripted engine."""

from __future__ import annotations

import pytest

from localllama.chat.session import Session
from localllama.engine.api import Event, Message, Prefill, Sampling, Text, Truncated
from localllama.errors import ContextFull, InvalidParameter, WorkerDied
from tests.support.engines import ScriptedEngine


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


def roles_and_texts(messages: tuple[Message, ...]) -> list[str]:
    return [f"{message.role[0]}:{message.content.split()[0]}" for message in messages]


def test_a_pinned_turn_and_the_system_prompt_stay_when_others_go() -> None:
    engine = ScriptedEngine(50)
    session = Session(engine, system="be brief")
    for name in ("alpha", "beta", "gamma"):
        say(session, f"{name} b c d e f g h")
    session.pin(1)  # the reply: its question stays with it
    truncated = say(session, "delta b c d e f g h")[0]
    assert truncated == Truncated(messages=4, tokens=22)
    assert roles_and_texts(engine.sent[-1]) == ["s:be", "u:alpha", "a:word0", "u:delta"]
    session.pin(1, keep=False)
    for name in ("epsilon", "zeta"):
        say(session, f"{name} b c d e f g h")
    assert "u:alpha" not in roles_and_texts(engine.sent[-1])


def test_a_pinned_turn_comes_back() -> None:
    engine = ScriptedEngine(34)
    session = Session(engine)
    for name in ("alpha", "beta", "gamma"):
        say(session, f"{name} b c d e f g h")
    assert roles_and_texts(engine.sent[-1]) == ["u:gamma"]
    session.pin(0)
    say(session, "delta")
    assert roles_and_texts(engine.sent[-1])[:2] == ["u:alpha", "a:word0"]


def test_what_is_pinned_is_never_dropped_even_if_nothing_fits_then() -> None:
    session = Session(ScriptedEngine(30))
    say(session, "alpha " * 15)
    session.pin(0)
    with pytest.raises(ContextFull):
        say(session, "beta " * 15)
    assert len(session.messages) == 2


def test_several_turns_are_counted_in_one_event() -> None:
    engine = ScriptedEngine(60)
    session = Session(engine)
    for _ in range(4):
        say(session, "a b c d e f g h")
    events = say(session, "word " * 30)
    assert [event for event in events if isinstance(event, Truncated)] == [Truncated(8, 44)]


def test_the_policy_stop_drops_nothing_and_tells_both_counts() -> None:
    engine = ScriptedEngine(30)
    session = Session(engine, policy="stop")
    say(session, "a b c d e f g h")
    say(session, "a b c d e f g h")
    with pytest.raises(ContextFull) as caught:
        say(session, "a b c d e f g h")
    assert (caught.value.needed_tokens, caught.value.available_tokens) == (31, 30)
    assert len(session.messages) == 4
    say(session, "a b c")  # what fits, if only with a short reply, is sent
    assert len(engine.sent[-1]) == 5


def test_a_policy_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(InvalidParameter, match="'forget'"):
        Session(ScriptedEngine(10), policy="forget")


def test_a_drop_that_nobody_heard_of_is_told_with_the_next_reply() -> None:
    engine = ScriptedEngine(39)
    session = Session(engine, system="be brief")
    say(session, "a b c d e f g h")
    say(session, "a b c d e f g h")
    engine.gone = True
    with pytest.raises(WorkerDied):
        say(session, "a b c d e f g h")
    engine.gone = False
    assert say(session, "a b c d e f g h")[0] == Truncated(messages=2, tokens=11)


def test_system_messages_of_the_conversation_stay_too() -> None:
    engine = ScriptedEngine(39)
    session = Session(engine, messages=[Message("system", "be brief")])
    for _ in range(3):
        events = say(session, "a b c d e f g h")
    assert events[0] == Truncated(messages=4, tokens=22)
    assert [m.role for m in engine.sent[-1]] == ["system", "user"]


def test_under_shift_all_up_to_the_last_pinned_turn_is_kept() -> None:
    engine = ScriptedEngine(100)
    session = Session(engine, system="be brief", policy="shift", conversation="7")
    say(session, "one")
    assert engine.further == {
        "shift": True,
        "keep_messages": 1,
        "conversation": "7",
        "snapshot": True,
    }
    say(session, "two")
    session.pin(2)
    say(session, "three")
    assert engine.further["keep_messages"] == 5


def test_there_is_no_pin_without_a_message() -> None:
    with pytest.raises(InvalidParameter, match="message 0"):
        Session(ScriptedEngine(10)).pin(0)

"""Conversations that are saved while they are held: versions, cut replies, what survives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllama.chat.conversation import Conversation, LoadedModel
from localllama.chat.history import History
from localllama.chat.records import FAILED, Attachment
from localllama.engine.api import Done, Event, Sampling, Text, Truncated
from localllama.errors import ChatNotFound, InvalidParameter, WorkerDied
from tests.support import chats
from tests.support.engines import ScriptedEngine, wait_until


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "chats.db") as history:
        yield history


@pytest.fixture
def conversation(history: History) -> Conversation:
    return Conversation(history, history.create(model="scripted:latest"))


def model(engine: ScriptedEngine) -> LoadedModel:
    return LoadedModel(engine, "scripted:latest", "ab" * 32)


def reply(conversation: Conversation, engine: ScriptedEngine) -> list[Event]:
    return list(conversation.reply(model(engine), Sampling(temperature=0.5)))


def ask(conversation: Conversation, text: str, engine: ScriptedEngine) -> list[Event]:
    conversation.say(text)
    return reply(conversation, engine)


def saved(conversation: Conversation) -> list[str]:
    return [m.content for m in conversation.history.branch(conversation.chat.id)]


def test_a_reply_is_recorded_with_what_made_it(conversation: Conversation) -> None:
    ask(conversation, "hello", ScriptedEngine(100))
    stored = conversation.history.branch(conversation.chat.id)
    assert stored == conversation.branch
    answer = stored[1]
    assert answer.content == "word0 word1 word2 "
    assert answer.origin is not None
    assert (answer.origin.model, answer.origin.digest) == ("scripted:latest", "ab" * 32)
    assert (answer.origin.parameters, answer.origin.context_length) == ({"temperature": 0.5}, 100)
    assert answer.done is not None
    assert (answer.done.reason, answer.seed, answer.cut) == ("stop", 99, False)


def test_a_message_is_saved_before_the_model_is_asked(conversation: Conversation) -> None:
    engine = ScriptedEngine(100)
    engine.dies_after = 0
    with pytest.raises(WorkerDied):
        ask(conversation, "hello", engine)
    assert saved(conversation) == ["hello"]
    assert reply(conversation, ScriptedEngine(100))  # once more, with another engine
    assert saved(conversation) == ["hello", "word0 word1 word2 "]


def test_what_never_got_a_reply_is_kept_but_not_sent_again(conversation: Conversation) -> None:
    engine = ScriptedEngine(100, words=0)
    ask(conversation, "one", engine)
    engine.words = 2
    ask(conversation, "two", engine)
    assert [message.content for message in engine.sent[-1]] == ["two"]
    assert saved(conversation) == ["one", "two", "word0 word1 "]


def test_the_reply_of_a_dead_worker_is_kept_and_gone_on_with(conversation: Conversation) -> None:
    engine = ScriptedEngine(100)
    engine.dies_after = 2
    with pytest.raises(WorkerDied):
        ask(conversation, "hello", engine)
    cut = conversation.branch[-1]
    assert cut.done is not None
    assert (cut.content, cut.done.reason, cut.cut) == ("word0 word1 ", FAILED, True)
    fresh = ScriptedEngine(100, words=1)
    reply(conversation, fresh)
    assert fresh.sent[-1][-1].content == "word0 word1 "
    assert fresh.continued
    assert saved(conversation) == ["hello", "word0 word1 word0 "]
    assert not conversation.branch[-1].cut


def test_a_failed_attempt_to_go_on_leaves_the_reply_as_it_was(conversation: Conversation) -> None:
    engine = ScriptedEngine(100)
    conversation.say("hello")
    events = conversation.reply(model(engine), Sampling())
    while not isinstance(next(events), Text):
        pass
    events.close()
    cut = conversation.branch[-1]
    engine.dies_after = 0
    with pytest.raises(WorkerDied):
        reply(conversation, engine)
    assert conversation.branch[-1] == cut
    assert conversation.history.branch(conversation.chat.id)[-1] == cut


def test_a_stream_that_is_left_keeps_what_came(conversation: Conversation) -> None:
    conversation.say("hello")
    events = conversation.reply(model(ScriptedEngine(100)), Sampling())
    while not isinstance(next(events), Text):
        pass
    events.close()
    assert saved(conversation) == ["hello", "word0 "]
    assert conversation.branch[-1].cut


def test_another_reply_and_another_question_are_versions(conversation: Conversation) -> None:
    engine = ScriptedEngine(200)
    ask(conversation, "one", engine)
    ask(conversation, "two", engine)
    first_question, first_reply, _, second_reply = conversation.branch
    engine.words = 1
    conversation.again(second_reply.id)
    reply(conversation, engine)
    assert [m.content.split()[0] for m in engine.sent[-1]] == ["one", "word0", "two"]
    conversation.say("uno", at=first_question.id)
    reply(conversation, engine)
    assert [m.content for m in engine.sent[-1]] == ["uno"]
    assert saved(conversation) == ["uno", "word0 "]
    conversation.show(first_question.id)
    assert [m.content for m in conversation.branch] == ["one", first_reply.content, "two", "word0 "]
    ask(conversation, "three", engine)
    assert [m.role for m in engine.sent[-1]] == ["user", "assistant"] * 2 + ["user"]


def test_a_failed_second_try_leaves_the_first_reply_in_place(conversation: Conversation) -> None:
    engine = ScriptedEngine(100)
    ask(conversation, "one", engine)
    before = list(conversation.branch)
    conversation.again(before[-1].id)
    engine.dies_after = 0
    with pytest.raises(WorkerDied):
        reply(conversation, engine)
    assert conversation.branch == before


def test_pinned_messages_stay_when_a_chat_is_opened_again(conversation: Conversation) -> None:
    engine = ScriptedEngine(50)
    for name in ("alpha", "beta", "gamma"):
        ask(conversation, f"{name} b c d e f g h", engine)
    conversation.pin(conversation.branch[1].id)
    again = Conversation(conversation.history, conversation.chat)
    events = ask(again, "delta b c d e f g h", engine)
    assert any(isinstance(event, Truncated) for event in events)
    assert engine.sent[-1][0].content.startswith("alpha")
    assert isinstance(again.history.branch(again.chat.id)[-1].truncated, Truncated)
    with pytest.raises(InvalidParameter):
        again.pin(4711)


def test_attached_texts_and_the_system_prompt_go_to_the_model(history: History) -> None:
    engine = ScriptedEngine(100)
    conversation = Conversation(history, history.create(system="be brief"))
    conversation.say("what is in it?", (Attachment("notes.txt", "milk and eggs"),))
    reply(conversation, engine)
    system, message = engine.sent[-1]
    assert system.content == "be brief"
    assert message.content == '<file name="notes.txt">\nmilk and eggs\n</file>\n\nwhat is in it?'


def test_thinking_is_told_apart_and_goes_back_whole(conversation: Conversation) -> None:
    engine = ScriptedEngine(100)
    engine.texts = ("<think>", "two", " and two</th", "ink>\n\nfour")
    ask(conversation, "2 + 2?", engine)
    assert (conversation.branch[-1].thinking, conversation.branch[-1].content) == (
        "two and two",
        "four",
    )
    ask(conversation, "sure?", engine)
    assert engine.sent[-1][1].content == "<think>two and two</think>four"


def test_text_is_saved_while_no_more_comes(history: History) -> None:
    conversation = Conversation(history, history.create(), save_seconds=0.01)
    engine = ScriptedEngine(100)
    engine.pause = threading.Event()  # after the second word the engine says nothing more
    conversation.say("hello")
    talking = threading.Thread(target=lambda: reply(conversation, engine))
    talking.start()
    wait_until(lambda: saved(conversation) == ["hello", "word0 word1 "])
    unfinished = history.branch(conversation.chat.id)[-1]
    assert unfinished.done is None
    engine.pause.set()
    talking.join()
    assert saved(conversation) == ["hello", "word0 word1 word2 "]


def test_a_chat_that_was_deleted_under_a_reply_is_an_error_not_a_ghost(
    conversation: Conversation,
) -> None:
    conversation.say("hello")
    events = conversation.reply(model(ScriptedEngine(100)), Sampling())
    next(events)
    conversation.history.purge([conversation.chat.id])
    with pytest.raises(ChatNotFound):
        list(events)
    assert conversation.history.chats() == []


def test_there_is_no_reply_to_nothing(conversation: Conversation) -> None:
    with pytest.raises(InvalidParameter, match="nothing to reply to"):
        reply(conversation, ScriptedEngine(10))


def test_done_is_the_last_event(conversation: Conversation) -> None:
    assert isinstance(ask(conversation, "hello", ScriptedEngine(100))[-1], Done)


def test_a_killed_writer_loses_nothing_that_it_showed(tmp_path: Path) -> None:
    chats.kill_writers(tmp_path / "chats.db", kills=3, seed=2)

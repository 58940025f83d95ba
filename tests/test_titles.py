"""Titles that a model makes: which are taken, when it is asked, and what that costs the chat."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localllama.chat import titles
from localllama.chat.conversation import Conversation, LoadedModel
from localllama.chat.history import History
from localllama.config import Config, Tui
from localllama.engine.api import Done, Event, Message, Prefill, Sampling, Text, Timings, Usage
from localllama.tui.screens.chat import ChatScreen
from tests.support import engines
from tests.support.app import Screen, running
from tests.support.engines import ScriptedEngine

Flow = Callable[[Screen], Awaitable[None]]


class Titling(ScriptedEngine):
    """Gives ``title`` where one is asked for, after ``hold`` if there is one."""

    def __init__(self, title: str) -> None:
        super().__init__(4000)
        self.title = title
        self.asked: list[dict[str, Any]] = []
        self.hold: threading.Event | None = None
        self.cancelled = 0

    def cancel(self) -> None:
        """End what is asked."""
        self.cancelled += 1
        if self.hold is not None:
            self.hold.set()
        super().cancel()

    def stream(
        self, sampling: Sampling, *, messages: tuple[Message, ...], **further: Any
    ) -> Iterator[Event]:
        """Reply, or give the title."""
        if "Write a title" not in messages[0].content:
            yield from super().stream(sampling, messages=messages, **further)
            return
        self.asked.append({"text": messages[0].content, "sampling": sampling, **further})
        before = self.cancelled
        yield Prefill(1, 1)
        if self.hold is not None:
            self.hold.wait(60)
        if self.cancelled > before:
            yield Done("cancelled", Usage(), Timings())
            return
        yield Text(self.title)
        yield Done("stop", Usage(), Timings())


def use(home: Path, engine: Titling, flow: Flow, **options: Any) -> None:
    async def go() -> None:
        async with running(home, engine, **{"idle_seconds": 0, **options}) as screen:
            await flow(screen)

    asyncio.run(go())


def chat_screen(screen: Screen) -> ChatScreen:
    shown = screen.app.screen
    assert isinstance(shown, ChatScreen)
    return shown


def titles_in(home: Path) -> list[str]:
    with History(home / "chats.db") as history:
        return [chat.title for chat in history.chats()]


def test_a_chat_gets_a_title_when_nobody_types(home: Path) -> None:
    engine = Titling('The colour of the sky."')

    async def flow(screen: Screen) -> None:
        await screen.type("Why is it blue?")
        await screen.shows("word2", "The colour of the sky")

    use(home, engine, flow)
    assert titles_in(home) == ["The colour of the sky"]
    [asked] = engine.asked
    assert "Why is it blue?" in asked["text"]
    assert "word0 word1 word2" in asked["text"]
    assert asked["snapshot"] is False
    assert "conversation" not in asked
    assert asked["sampling"].temperature == 0
    assert asked["sampling"].seed is None  # a seed would begin in an empty cache


def test_nothing_is_asked_while_somebody_types(home: Path) -> None:
    engine = Titling("Never")

    async def flow(screen: Screen) -> None:
        await screen.type("hello")
        await screen.shows("word2")
        await screen.hides("replying")
        made = chat_screen(screen).titles
        assert made.due
        chat_screen(screen)._make_titles()
        assert not made.busy

    use(home, engine, flow, idle_seconds=3600)
    assert not engine.asked


@pytest.mark.parametrize(
    "said",
    [
        "",
        " \n",
        "...",
        "Name two",
        "name two?",
        "Well, two",
        "Write a title of two to six words",
        "Here is a very long sentence about what you have asked me for",
        "a" * 61,
        "bad\x1b[2Jthing",
    ],
)
def test_nonsense_is_no_title(said: str) -> None:
    assert titles.cleaned(said, "Name two", "Well, two names are") == ""


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ("Two names", "Two names"),
        ("Two names: which of all the many there are to choose", "Two names"),
        (' **Two\nnames**."', "Two names"),
        ("<think>hm</think>\n“Two names”", "Two names"),
        ("二つの名前", "二つの名前"),
    ],
)
def test_a_title_is_freed_of_what_surrounds_it(said: str, title: str) -> None:
    assert titles.cleaned(said, "Name two") == title


def test_nonsense_leaves_the_first_words_and_is_asked_once(home: Path) -> None:
    engine = Titling("first")

    async def flow(screen: Screen) -> None:
        made = chat_screen(screen).titles
        for number, text in enumerate(("first thing", "second")):
            await screen.type(text)
            await screen.until(lambda n=number: len(engine.sent) == n + 1)
            await screen.hides("replying")
            await screen.until(lambda: bool(engine.asked) and not made.busy and not made.due)

    use(home, engine, flow)
    assert titles_in(home) == ["first thing"]
    assert len(engine.asked) == 1


def test_a_title_of_a_person_stays(home: Path) -> None:
    engine = Titling("Made up")
    engine.hold = threading.Event()

    async def flow(screen: Screen) -> None:
        assert engine.hold is not None
        made = chat_screen(screen).titles
        await screen.type("hello")
        await screen.until(lambda: bool(engine.asked))
        await screen.press("ctrl+s", "enter", "r", "ctrl+u")
        await screen.type("Mine")
        await screen.shows("Mine")
        engine.hold.set()
        await screen.until(lambda: not made.busy)

    use(home, engine, flow)
    assert titles_in(home) == ["Mine"]
    assert not engine.cancelled


def test_a_message_does_not_wait_for_a_title(home: Path) -> None:
    engine = Titling("Greetings")
    engine.hold = threading.Event()

    async def flow(screen: Screen) -> None:
        await screen.type("hello")
        await screen.until(lambda: bool(engine.asked))
        await screen.type("and again")
        await screen.until(lambda: len(engine.sent) == 2)
        assert engine.cancelled
        await screen.shows("Greetings")  # asked again when that reply was there

    use(home, engine, flow)
    assert len(engine.asked) == 2
    assert "and again" in engine.asked[1]["text"]


def test_titles_can_be_switched_off(home: Path) -> None:
    engine = Titling("Never")

    async def flow(screen: Screen) -> None:
        await screen.type("hello")
        await screen.shows("word2")
        await screen.hides("replying")
        assert not chat_screen(screen).titles.due

    use(home, engine, flow, config=Config(tui=Tui(model_titles=False)))
    assert not engine.asked


def test_a_chat_that_is_not_kept_gets_one_too(home: Path) -> None:
    async def flow(screen: Screen) -> None:
        await screen.type("hello")
        await screen.shows("word2", "Greetings")

    use(home, Titling("Greetings"), flow, history=History.temporary())
    assert not (home / "chats.db").exists()


def test_asking_for_a_title_leaves_the_chat_in_memory(smollm2: Path, tmp_path: Path) -> None:
    with (
        engines.load(smollm2, tmp_path, slots=4) as engine,
        History.temporary() as history,
    ):
        conversation = Conversation(history, history.create())
        model = LoadedModel(engine, "smol", "")
        conversation.say("Name three colours.")
        sampling = Sampling(temperature=0, max_tokens=24)
        *_, first = conversation.reply(model, sampling)
        assert isinstance(first, Done)
        titles.ask(engine, "Name three colours.", conversation.branch[-1].content, lambda: False)
        conversation.say("And three more?")
        *_, second = conversation.reply(model, sampling)
        assert isinstance(second, Done)
    held = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage.cached_tokens >= held - 1  # the last token was never evaluated

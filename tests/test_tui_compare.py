"""The comparison as a person uses it; both sides speak to one scripted engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from localllama.tui.comparing import Contestant
from tests.support.app import Screen, ScriptedRunner, running
from tests.support.engines import ScriptedEngine


def use(
    home: Path,
    engine: ScriptedEngine,
    flow: Callable[[Screen], Awaitable[None]],
) -> None:
    """Run the app, go to the comparison and do something there."""

    async def go() -> None:
        async with running(home, engine, models=("smol", "big"), size=(120, 24)) as screen:
            await screen.shows("smol:latest Q4_1")
            await screen.press("f5")
            await screen.shows("Ask both")
            await flow(screen)

    asyncio.run(go())


def test_one_prompt_goes_to_two_models(home: Path) -> None:
    engine = ScriptedEngine(100)

    async def flow(screen: Screen) -> None:
        await screen.shows("smol:latest · Q4_1", "big:latest · Q4_1")
        await screen.type("hello")
        await screen.until(lambda: screen.text.count("word0 word1 word2") == 2)
        await screen.until(lambda: screen.text.count("3 tokens") == 2)

    use(home, engine, flow)
    assert [sent[-1].content for sent in engine.sent] == ["hello", "hello"]


def test_two_sets_of_parameters_of_one_model(home: Path) -> None:
    async def flow(screen: Screen) -> None:
        await screen.press("ctrl+r")
        await screen.shows("Which model at the right?")
        await screen.press("up", "enter")
        await screen.press("ctrl+y")
        await screen.type("temperature=hot")
        await screen.shows("temperature must be a number")
        await screen.press("ctrl+u")
        await screen.type("temp=0.5 top_k=3")
        await screen.shows("smol:latest · Q4_1 · temperature 0.5", "top_k 3")

    use(home, ScriptedEngine(100), flow)


def test_escape_stops_both(home: Path) -> None:
    engine = ScriptedEngine(100)
    engine.pause = threading.Event()

    async def flow(screen: Screen) -> None:
        await screen.type("count")
        await screen.until(lambda: screen.text.count("word0 word1") == 2)
        await screen.press("escape")
        await screen.until(lambda: screen.text.count("stopped") == 2)
        await screen.press("escape")
        await screen.shows("A new conversation")

    use(home, engine, flow)


def test_what_does_not_fit_beside_the_other_one_comes_after_it(home: Path) -> None:
    engine = ScriptedEngine(100)
    engine.pause = threading.Event()

    async def flow(screen: Screen) -> None:
        runner = screen.app.runner
        assert isinstance(runner, ScriptedRunner)
        _, right = screen.app.screen._contestants  # type: ignore[attr-defined]
        assert isinstance(right, Contestant)
        await screen.until(lambda: len(runner.opened) == 1)
        runner.no_room_for = right.model.name
        await screen.type("hello")
        await screen.shows("waits for the other one")
        runner.no_room_for = ""
        assert engine.pause is not None
        engine.pause.set()
        await screen.until(lambda: screen.text.count("word2") == 2)
        assert [name for name, _ in runner.opened[1:]].count(right.model.name) == 2

    use(home, engine, flow)

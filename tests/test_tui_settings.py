"""The settings screen as a person uses it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from localllama import config_file, names, paths, presets
from localllama.config import Config, load
from localllama.errors import InvalidConfig
from localllama.store import Store, StoredFile
from localllama.wants import Want
from tests.support.app import Screen, ScriptedRunner, running
from tests.support.engines import ScriptedEngine
from tests.support.gguf_maker import write_tiny_llama

Flow = Callable[[Screen], Awaitable[None]]


def use(home: Path, flow: Flow, *, size: tuple[int, int] = (100, 24)) -> None:
    """Run the app, go to the settings and do something there."""

    async def go() -> None:
        engine = ScriptedEngine(1000)
        async with running(home, engine, models=("smol",), size=size, config=Config()) as screen:
            await screen.shows("smol:latest Q4_1")
            await screen.press("f3")
            await screen.shows("temperature")
            await flow(screen)

    asyncio.run(go())


async def to(screen: Screen, row: str) -> None:
    """Put the cursor on a setting."""
    table = screen.app.screen._table  # type: ignore[attr-defined]
    table.move_cursor(row=table.get_row_index(row))
    await screen.shows(f"{row}: ")


async def begin_reply(screen: Screen, runner: ScriptedRunner) -> None:
    """Go to the chat for a reply that waits before its last word."""
    runner.engine.pause = threading.Event()
    await screen.press("escape")
    await screen.type("hello")
    await screen.shows("word1")


async def end_reply(screen: Screen, runner: ScriptedRunner) -> None:
    """Go to the chat and let the reply end."""
    assert runner.engine.pause is not None
    runner.engine.pause.set()
    await screen.press("escape")
    await screen.until(lambda: not screen.app.screen.busy)
    runner.engine.pause = None


def test_a_parameter_of_chat_model_and_everywhere_shows_which_wins(home: Path) -> None:
    async def flow(screen: Screen) -> None:
        await to(screen, "temperature")
        await screen.shows("► default", "⏎ Change")
        for value in "0.25", "0.5", "0.75":  # the chat's, the model's, everywhere
            await screen.press("enter", "ctrl+u")
            await screen.type(value)
            await screen.shows(value)
            await screen.press("tab")
        await screen.shows("► chat         0.25", "  model        0.5", "  config.toml  0.75")
        await screen.press("backspace")
        await screen.shows("► model        0.5")
        await screen.press("enter", "ctrl+u")
        await screen.type("hot")
        await screen.shows("temperature must be a number", "Enter accepts")
        await screen.press(*(3 * ["backspace"]), *"0.5", "enter")  # what is wrong is mended there
        await screen.hides("Enter accepts")

    use(home, flow)
    place = paths.locate(home)
    assert load(place.config_file, {}).parameters == {"temperature": 0.75}
    model = Store(place).get(names.own("smol"))
    assert model.parameters == {"temperature": 0.5}


def test_a_context_length_that_is_none_is_mended_where_it_was_typed(home: Path) -> None:
    async def flow(screen: Screen) -> None:
        await to(screen, "context length")
        await screen.press("enter")
        await screen.type("12x")
        await screen.shows("the context length is a number", "Enter accepts")
        await screen.press("backspace", "8", "enter")
        await screen.hides("Enter accepts")
        await screen.shows("► chat         128")
        await screen.press("enter", "ctrl+u")
        await screen.type("99999999")
        await screen.shows("the context length must be from 1 to", "Enter accepts")
        await screen.press("escape")
        await screen.shows("► chat         128")

    use(home, flow)


def test_a_chat_begun_beside_a_reply_has_a_context_of_its_own(home: Path) -> None:
    async def flow(screen: Screen) -> None:
        runner = screen.app.runner
        assert isinstance(runner, ScriptedRunner)
        await to(screen, "context length")
        await screen.press("enter")
        await screen.type("512")
        await screen.until(lambda: runner.opened[-1] == ("smol:latest", 512))
        await begin_reply(screen, runner)
        await screen.press("ctrl+n", "f3")
        await to(screen, "context length")
        await screen.shows("  chat         -")
        await end_reply(screen, runner)
        await screen.type("another chat")
        await screen.shows("word2")
        assert runner.opened[-1] == ("smol:latest", 0)
        chats = screen.app.history.chats()
        assert [chat.context_length for chat in chats] == [0, 512]

    use(home, flow)


def test_a_preset_brings_back_prompt_and_parameters(home: Path) -> None:
    async def flow(screen: Screen) -> None:
        await to(screen, "system prompt")
        await screen.press("enter")
        await screen.type("Be brief.")
        await to(screen, "top_k")
        await screen.press("enter")
        await screen.type("7")
        await screen.press("ctrl+s")
        await screen.type("brief")
        await screen.shows("saved as brief")
        await screen.press("backspace")
        await screen.shows("► default")
        await screen.press("p", "enter")
        await screen.shows("► chat         7")
        await screen.press("escape")
        await screen.type("hello")
        await screen.shows("word2")

    use(home, flow)
    saved = presets.load(paths.locate(home).presets_file)
    assert saved == {"brief": presets.Preset("Be brief.", {"top_k": 7})}


def test_what_a_context_costs_is_shown_while_it_is_typed(home: Path) -> None:
    place = paths.locate(home)
    place.partials.mkdir(parents=True)
    tiny = write_tiny_llama(place.partials / "tiny.gguf")[0]

    async def flow(screen: Screen) -> None:
        store = screen.app.store
        model = store.get(names.own("smol"))
        file = StoredFile("tiny.gguf", "cd" * 32, tiny.stat().st_size)
        store.install(replace(model, files=(file,)), {file.sha256: tiny})
        screen.app.models.installed = store.get(names.own("smol"))
        screen.app.screen.edit(screen.app.models.installed)  # type: ignore[attr-defined]
        await to(screen, "context length")
        await screen.press("enter")
        await screen.type("64")
        await screen.until(lambda: store.get(names.own("smol")).parameters == {"num_ctx": 64})
        await screen.press("enter", "ctrl+u")
        await screen.paste("100000000")
        await screen.shows("must be from 1 to 8192 tokens")
        await screen.press("ctrl+u")
        await screen.paste("128")
        await screen.shows("KV cache", "in all", "fits", "128 tokens")
        await screen.press("escape")
        await to(screen, "KV type")
        await screen.press("enter")
        await screen.type("f32")
        await screen.shows("► model        f32")
        kept = store.get(names.own("smol"))
        assert kept.parameters == {"num_ctx": 64, "kv_type": "f32"}
        runner = screen.app.runner
        assert runner.preview(kept, Want(), runner.machine())[1].kv_type == "f32"

    use(home, flow, size=(80, 24))


def test_a_changed_context_is_loaded_at_once_or_after_the_reply(home: Path) -> None:
    async def flow(screen: Screen) -> None:
        runner, models = screen.app.runner, screen.app.models
        assert isinstance(runner, ScriptedRunner)
        await to(screen, "context length")
        await screen.shows("1000 (by the program)", "1000 take 90 MB")
        await screen.press("enter")
        await screen.type("512")
        await screen.shows("loaded again with this", "► chat         512")
        await screen.until(lambda: runner.opened[-1] == ("smol:latest", 512))
        await screen.press("tab", "tab", "enter", "ctrl+u")  # everywhere: the chat's own wins
        await screen.type("600")
        await screen.shows("  config.toml  600")
        assert len(runner.opened) == 2
        await begin_reply(screen, runner)
        await screen.press("f3", "backspace")
        await to(screen, "context length")
        await screen.press("backspace")
        await screen.shows("from the next message", "► config.toml  600")
        assert len(runner.opened) == 2
        await end_reply(screen, runner)
        await screen.shows("word2")
        await screen.type("again")
        await screen.until(lambda: runner.opened[2:] == [("smol:latest", 0)])
        assert not models.outdated

    use(home, flow)


def test_the_theme_is_kept(home: Path) -> None:
    async def flow(screen: Screen) -> None:
        await to(screen, "theme")
        await screen.press("enter", "home", "enter")
        first = sorted(screen.app.available_themes)[0]
        await screen.shows(f"► config.toml  {first}")
        assert screen.app.theme == first
        assert load(file, {}).tui.theme == first
        await screen.press("delete")
        await screen.shows(f"► default      {screen.app.usual_theme}")
        assert screen.app.theme == screen.app.usual_theme
        await screen.press("enter", "home", "enter")
        await screen.shows(f"► config.toml  {first}")

    file = paths.locate(home).config_file
    use(home, flow)
    assert load(file, {}).tui.theme


def test_a_file_that_cannot_be_changed_safely_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    text = 'parameters = { top_k = 5 }\n[run]\nmodel = """smol"""\n'
    file.write_text(text)
    with pytest.raises(InvalidConfig, match="cannot change"):
        config_file.change(file, "parameters", "top_k", 7)
    assert file.read_text() == text
    config_file.change(file, "run", "model", 'a "quoted" näme')
    assert load(file, {}).run.model == 'a "quoted" näme'
    file.write_text("[run]\nctx = 77 # short\nthreads = 1\n")
    config_file.change(file, "run", "context_length", 99, also=("ctx",))
    assert (load(file, {}).run.context_length, load(file, {}).run.threads) == (99, 1)
    config_file.change(file, "run", "model", None)
    assert load(file, {}).run.model == Config().run.model

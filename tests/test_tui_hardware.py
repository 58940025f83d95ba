"""The hardware screen with a real process that holds a model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from localllama.config import Config, Network
from localllama.engine.api import LoadOptions
from localllama.engine.client import Engine
from localllama.engine.registry import Label
from tests.support.app import running
from tests.support.engines import ScriptedEngine
from tests.support.gguf_maker import write_tiny_llama


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
def test_gauges_devices_and_troubles_are_shown(home: Path, size: tuple[int, int]) -> None:
    async def go() -> None:
        config = Config(network=Network(offline=True))
        async with running(home, ScriptedEngine(100), size=size, config=config) as screen:
            await screen.press("f4")
            await screen.shows("CPU", "RAM", "no model is loaded", "llama.cpp", "DEVICE")
            await screen.press("u")
            await screen.shows("No model is loaded")
            await screen.press("escape")
            await screen.shows("A new conversation")

    asyncio.run(go())


def test_a_loaded_model_is_shown_and_unloaded(home: Path, tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf")[0]

    async def go() -> None:
        config = Config(network=Network(offline=True))
        async with running(home, ScriptedEngine(100), config=config) as screen:
            registry = screen.app.runner.registry  # type: ignore[attr-defined]
            options = LoadOptions(paths=(str(model),), context_length=256, threads=1)
            with registry.lock():
                engine = Engine.start(options, registry, Label(name="tiny"))
            await asyncio.to_thread(engine.wait_ready)
            await screen.press("f4")
            await screen.shows("tiny", "100% CPU", str(engine.record.pid), "1 client", "in use")
            await screen.press("u")
            await screen.shows("Unload tiny?", "used by 1")
            await screen.press("y")
            await screen.shows("no model is loaded")
            engine.close()

    asyncio.run(go())

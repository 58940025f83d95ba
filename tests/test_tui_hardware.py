"""The hardware screen with a real process that holds a model."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from localllama import hardware
from localllama.config import Config, Network
from localllama.engine.api import LoadOptions
from localllama.engine.client import Engine
from localllama.engine.registry import Label
from localllama.hardware import Device, Hardware
from localllama.tui.gauges import Gauges
from tests.support.app import ScriptedRunner, running
from tests.support.engines import ScriptedEngine, wait_until
from tests.support.gguf_maker import write_tiny_llama


def machine(*devices: Device) -> Hardware:
    return replace(hardware.described(16 * 10**9), devices=devices)


def test_gpus_that_only_ggml_knows_have_gauges(home: Path) -> None:
    other = Device("RPC0[10.0.0.2:50052]", "", "gpu", "RPC", 6 * 10**9, 8 * 10**9)
    vulkan = Device("Vulkan0", "Radeon", "gpu", "Vulkan", 9 * 10**9, 12 * 10**9)

    async def go() -> None:
        config = Config(network=Network(offline=True))
        async with running(home, ScriptedEngine(100), config=config) as screen:
            runner = screen.app.runner
            assert isinstance(runner, ScriptedRunner)
            runner.probe = lambda: machine(other, vulkan)
            await screen.press("f4")
            await screen.shows("RPC0[10.0.0.2:50052]  █████", "2.0 GB of 8.0 GB")
            await screen.shows("Vulkan0               █████", "3.0 GB of 12 GB")

    asyncio.run(go())


def test_ggml_is_asked_once_where_no_gpu_is() -> None:
    asked = []

    def probe() -> Hardware:
        asked.append(1)
        return machine(Device("CPU", "", "cpu", "CPU", 1, 1))

    gauges = Gauges(probe)
    for times in (1, 2):
        gauges.again()
        gauges.read()
        wait_until(lambda: gauges._ask_at > 0)
        assert [gauge.name for gauge in gauges.read()][:2] == ["CPU", "RAM"]
        assert len(asked) == times


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
            await screen.shows("tiny", "100% CPU", str(engine.record.pid), "1 other", "in use")
            await screen.press("u")
            await screen.shows("Unload tiny?", "Used by 1 other:")
            await screen.press("n")
            loaded = screen.app.models.engine
            assert isinstance(loaded, ScriptedEngine)
            loaded.record = engine.record
            await screen.shows("this app")
            await screen.press("u")
            await screen.shows("Unload tiny?", "next message loads it again")
            await screen.hides("1 other")
            await screen.press("y")
            await screen.shows("no model is loaded")
            engine.close()

    asyncio.run(go())

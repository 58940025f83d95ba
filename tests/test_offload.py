"""Layers on llama.cpp's RPC servers on loopback, which stand in for GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localllama import names, paths, plan, pull
from localllama.config import Config
from localllama.engine.api import Sampling, Text
from localllama.engine.client import Engine
from localllama.runner import Runner
from localllama.store import Installed, Store
from localllama.wants import Want
from tests.support import cli, rpc

pytestmark = pytest.mark.skipif(not rpc.available(), reason="this llama.cpp was built without RPC")
MB = 10**6
WANT = Want(context_length=512, kv_type="f16", threads=1, keep_alive_seconds=3600)
GREEDY = Sampling(temperature=0, max_tokens=12)


@pytest.fixture
def runner(home: Path) -> Iterator[Runner]:
    runner = Runner(Store(paths.locate()), Config(), paths.locate())
    yield runner
    for running in runner.running():
        runner.stop(running.record)


@pytest.fixture
def model(smollm2: Path) -> Installed:
    return pull.describe(names.parse(str(smollm2)))


def reply(engine: Engine) -> str:
    # No step of it is near a tie, which rounding would decide: GPUs compute attention otherwise.
    events = engine.stream(GREEDY, prompt="1, 2, 3, 4, 5, 6, 7,")
    return "".join(event.text for event in events if isinstance(event, Text))


@pytest.mark.parametrize("servers", [1, 2])
def test_the_reply_is_the_same_wherever_layers_are(
    servers: int, runner: Runner, model: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runner.open(model, WANT) as engine:
        expected = reply(engine)
    wants = {
        "none": replace(WANT, no_gpu=True),
        "some": replace(WANT, gpu_memory_bytes=(60 * MB,)),
        "all": replace(WANT, gpu_memory_bytes=(160 * MB if servers == 1 else 90 * MB,)),
    }
    words = {"none": "100% CPU", "some": "% CPU/GPU", "all": "100% GPU"}
    with rpc.servers(servers) as endpoints:
        monkeypatch.setenv("LOCALLLAMA_RPC", ",".join(endpoints))
        for part, want in wants.items():
            with runner.open(model, want) as engine:
                assert reply(engine) == expected
                label, took = engine.record.label, engine.ready.devices
            assert (label.gpu_layers > 0) == (part != "none")
            assert (label.gpu_layers == label.layers) == (part == "all")
            on_gpus = [held.total_bytes for held in took if held.device != plan.HOST]
            if part == "none":
                assert sum(on_gpus) == 0
            else:
                assert len(on_gpus) == servers
                assert all(0 < taken <= want.gpu_memory_bytes[0] for taken in on_gpus)
            (running,) = (r for r in runner.running() if r.record.id == engine.record.id)
            assert words[part] in running.processor
            runner.stop(engine.record)


def test_what_a_load_took_is_kept_and_told(
    runner: Runner, model: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rpc.servers(1) as endpoints:
        monkeypatch.setenv("LOCALLLAMA_RPC", endpoints[0])
        with runner.open(model, WANT):
            pass
    loads = plan.loads(runner.paths.loads_file)
    assert {load.device for load in loads} == {"RPC", "CPU"}
    told = cli.data("doctor", env={"LOCALLLAMA_OFFLINE": "1", "LOCALLLAMA_RPC": ""})["planner"]
    assert {error["device"] for error in told} == {"RPC", "CPU"}
    for error in told:
        assert abs(error["weights"]) <= 0.01
        assert abs(error["kv"]) <= 0.01
        assert abs(error["compute"]) <= 0.15

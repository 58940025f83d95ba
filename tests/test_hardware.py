"""Devices and memory of this machine, and of machines described."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from localllama import hardware
from localllama.errors import EngineError, InvalidConfig
from localllama.hardware import Device, Hardware, Memory
from localllama.native import child, ggml
from tests.support import rpc

needs_rpc = pytest.mark.skipif(not rpc.available(), reason="this llama.cpp was built without RPC")
MEMORY = Memory(8 << 30, 16 << 30, 4, 4)


def gpu(name: str, kind: str = "gpu", backend: str = "CUDA", device_id: str = "") -> Device:
    return Device(name, name, kind, backend, 1 << 30, 1 << 30, device_id=device_id)


def machine(*devices: Device) -> Hardware:
    return Hardware(MEMORY, devices)


def test_memory_is_that_of_the_host() -> None:
    found = hardware.memory()
    assert 0 < found.available_bytes <= found.total_bytes
    assert 1 <= found.performance_cores <= found.cores


def test_the_probe_finds_the_processor() -> None:
    found = hardware.probe(())
    (processor,) = [device for device in found.devices if device.kind == "cpu"]
    assert processor.free_bytes == found.memory.available_bytes
    assert "CPU" in found.backends
    assert found.cpu_features
    assert found.llama_cpp
    assert not found.problems


def test_a_build_without_gpus_is_asked_once(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "devices.json"
    first = hardware.probe((), remembered=file)
    if {*first.backends} - {"CPU", "RPC", "BLAS"}:
        assert not file.exists()
        return
    kept = json.loads(file.read_bytes())
    kept["answer"]["cpu_features"] = ["REMEMBERED"]
    file.write_text(json.dumps(kept))
    assert hardware.probe((), remembered=file).cpu_features == {"REMEMBERED"}
    kept["build"] = "another"
    file.write_text(json.dumps(kept))
    assert hardware.probe((), remembered=file).cpu_features == first.cpu_features
    file.write_text("{")
    assert hardware.probe((), remembered=file).cpu_features == first.cpu_features


def test_a_server_that_is_away_is_a_problem_and_no_crash() -> None:
    found = hardware.probe(("127.0.0.1:1",))
    assert any(device.kind == "cpu" for device in found.devices)
    assert "127.0.0.1:1 does not answer" in found.problems[0]


@needs_rpc
def test_rpc_servers_are_devices() -> None:
    with rpc.servers(2) as endpoints:
        found = hardware.probe(endpoints)
    assert [gpu.name for gpu in found.gpus] == ["RPC0", "RPC1"]
    assert [gpu.description for gpu in found.gpus] == list(endpoints)
    assert all(gpu.total_bytes > 1 << 30 for gpu in found.gpus)
    assert all(gpu.buffer == f"RPC0[{gpu.description}]" for gpu in found.gpus)


@pytest.mark.parametrize("endpoint", ["", "host", "127.0.0.1:", "127.0.0.1:x"])
def test_what_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidConfig, match="no address"):
        ggml.add_rpc_servers([endpoint])


def test_servers_come_from_the_environment() -> None:
    assert hardware.rpc_servers_of({"LOCALLLAMA_RPC": " a:1, b:2,"}) == ("a:1", "b:2")
    assert hardware.rpc_servers_of({}) == ()


def test_gpus_come_in_the_order_of_llama_cpp() -> None:
    remote = gpu("RPC0", backend="RPC")
    integrated = gpu("Vulkan0", kind="igpu", backend="Vulkan")
    cards = (gpu("CUDA0", device_id="0000:01:00.0"), gpu("CUDA1", device_id="0000:02:00.0"))
    same_card = gpu("Vulkan1", backend="Vulkan", device_id="0000:01:00.0")
    found = machine(gpu("CPU", kind="cpu"), *cards, same_card, integrated, remote)
    assert found.gpus == (remote, *cards)
    assert machine(integrated).gpus == (integrated,)


def test_memory_is_shared_on_apple_and_integrated_gpus() -> None:
    assert gpu("MTL0", backend="MTL").unified
    assert gpu("Vulkan0", kind="igpu", backend="Vulkan").unified
    assert not gpu("CUDA0").unified


def test_a_machine_can_be_described() -> None:
    cards = hardware.described(16_000_000_000, (8_000_000_000, 4_000_000_000))
    assert [gpu.free_bytes for gpu in cards.gpus] == [8_000_000_000, 4_000_000_000]
    (apple,) = hardware.described(16_000_000_000, unified=True).gpus
    assert apple.unified
    assert apple.free_bytes < 16_000_000_000


def write_module(folder: Path, name: str, source: str) -> None:
    (folder / f"{name}.py").write_text(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os; os.abort()", "was ended by SIGABRT"),
        ("import sys; sys.exit('the driver is gone')", "failed: the driver is gone"),
        ("import threading; threading.Event().wait()", "did not answer within 1 seconds"),
    ],
)
def test_a_child_that_dies_or_hangs_says_why(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(tmp_path, "task_of_a_child", source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=reason):
        child.ask("task_of_a_child", {}, timeout_seconds=1)


# What nvidia-ml-py offers, for a card that no test machine has.
PYNVML = """
from types import SimpleNamespace as S
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetMemoryInfo(handle): return S(free=3, total=8)
def nvmlDeviceGetName(handle): return "RTX"
def nvmlSystemGetDriverVersion(): return "550.54"
def nvmlSystemGetCudaDriverVersion(): return 12040
def nvmlDeviceGetComputeRunningProcesses(handle): return [S(pid=1, usedGpuMemory=5)]
"""


def test_the_nvidia_driver_tells_who_uses_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(tmp_path, "pynvml", PYNVML)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    (card,) = hardware.nvidia()
    monkeypatch.delitem(sys.modules, "pynvml")
    assert (card.name, card.driver, card.cuda) == ("RTX", "550.54", (12, 4))
    assert [(process.pid, process.used_bytes) for process in card.processes] == [(1, 5)]
    assert replace(card, processes=()).free_bytes == 3

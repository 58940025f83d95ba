"""Deaths: of the worker under its front ends, and of the front end over a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from localllama.engine.api import Sampling, Text
from localllama.engine.client import Engine
from localllama.engine.registry import Registry
from localllama.errors import WorkerDied
from tests.support.engines import left_in, load, wait_until

FRONT_END = """
import sys
from pathlib import Path
from localllama.engine.api import Sampling, Text
from tests.support.engines import load

engine = load(Path(sys.argv[1]), Path(sys.argv[2]), keep_alive_seconds=float(sys.argv[3]))
stream = engine.stream(Sampling(), prompt="1, 2, 3, 4,")
while not isinstance(next(stream), Text):
    pass
print(engine.pid, flush=True)
for event in stream if sys.argv[4] == "busy" else sys.stdin:
    pass
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("number", "explanation"),
    [
        (signal.SIGKILL, "out of memory"),
        (signal.SIGABRT, "stopped itself"),
        (signal.SIGSEGV, "SIGSEGV"),
    ],
)
def test_a_killed_worker_is_explained_and_replaced(
    smollm2: Path, tmp_path: Path, number: signal.Signals, explanation: str
) -> None:
    with load(smollm2, tmp_path, 512) as engine:
        stream = engine.stream(Sampling(), prompt="1, 2, 3, 4,")
        while not isinstance(next(stream), Text):
            pass
        os.kill(engine.pid, number)
        with pytest.raises(WorkerDied, match=explanation) as caught:
            list(stream)
        assert "llama" in caught.value.log
        assert not psutil.pid_exists(engine.pid)
        with pytest.raises(WorkerDied):
            list(engine.stream(Sampling(), prompt="Hello"))
    assert [Path(name).suffix for name in left_in(tmp_path)] == [".log"]  # says more than an error
    with load(smollm2, tmp_path, 512) as engine:
        assert list(engine.stream(Sampling(max_tokens=2), prompt="Hello"))


def test_the_death_is_explained_to_who_joined_too(smollm2: Path, tmp_path: Path) -> None:
    with load(smollm2, tmp_path, 512) as engine:
        joined = Engine.join(engine.record, Registry(tmp_path, tmp_path / "logs"), 0)
        assert joined is not None
        with joined.wait_ready():
            stream = joined.stream(Sampling(), prompt="1, 2, 3, 4,")
            next(stream)
            os.kill(engine.pid, signal.SIGKILL)
            with pytest.raises(WorkerDied, match="crashed or was killed") as caught:
                list(stream)
            assert "llama" in caught.value.log


def test_a_worker_that_dies_between_replies_is_noticed(smollm2: Path, tmp_path: Path) -> None:
    with load(smollm2, tmp_path, 512) as engine:
        worker = psutil.Process(engine.pid)
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: has_ended(worker))
        engine.cancel()
        with pytest.raises(WorkerDied, match="signal 9"):
            list(engine.stream(Sampling(), prompt="Hello"))


def test_a_worker_told_to_end_leaves_nothing(smollm2: Path, tmp_path: Path) -> None:
    with load(smollm2, tmp_path, 512, keep_alive_seconds=-1) as engine:
        os.kill(engine.pid, signal.SIGTERM)
        stream = engine.stream(Sampling(), prompt="1, 2, 3, 4,")
        with pytest.raises(WorkerDied, match="told to end"):
            list(stream)
    assert left_in(tmp_path) == []


def start_front_end(
    model: Path, folder: Path, keep_alive: str, state: str
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", FRONT_END, str(model), str(folder), keep_alive, state]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_without_a_keep_alive_a_worker_does_not_outlive_its_front_end(
    smollm2: Path, tmp_path: Path, state: str
) -> None:
    with start_front_end(smollm2, tmp_path, "0", state) as front_end:
        assert front_end.stdout is not None
        worker = psutil.Process(int(front_end.stdout.readline()))
        front_end.kill()
    wait_until(lambda: has_ended(worker))
    assert left_in(tmp_path) == []


def test_a_worker_whose_front_end_is_killed_stops_generating(smollm2: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path, tmp_path / "logs")
    with start_front_end(smollm2, tmp_path, "3600", "busy") as front_end:
        assert front_end.stdout is not None
        worker = psutil.Process(int(front_end.stdout.readline()))
        (record,) = registry.records()
        before = registry.status(record)
        assert before is not None
        assert (before.clients, before.running, before.seconds_left) == (1, 1, None)
        front_end.kill()
    wait_until(lambda: (registry.status(record) or before).clients == 0)
    after = registry.status(record)
    assert after is not None
    assert after.running == 0
    assert 3000 < (after.seconds_left or 0) <= 3600
    joined = Engine.join(record, registry, 0)
    assert joined is not None
    with joined.wait_ready():
        assert list(joined.stream(Sampling(max_tokens=1), prompt="1, 2, 3, 4,"))
    wait_until(lambda: has_ended(worker))
    assert left_in(tmp_path) == []


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone, or waits for a parent that may be busy with other things."""
    try:
        ended: bool = process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    return ended

"""Deaths: of the worker under a front end, and of the front end over a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from localllama.engine.api import LoadOptions, Sampling, Text
from localllama.engine.client import Engine
from localllama.errors import WorkerDied

FRONT_END = """
import sys
from pathlib import Path
from localllama.engine.api import LoadOptions, Sampling, Text
from localllama.engine.client import Engine

options = LoadOptions(paths=(sys.argv[1],), context_length=2048, threads=1)
engine = Engine.start(options, log_dir=Path(sys.argv[2]))
stream = engine.stream(Sampling(), prompt="1, 2, 3, 4,")
while not isinstance(next(stream), Text):
    pass
print(engine.pid, flush=True)
for event in stream if sys.argv[3] == "busy" else sys.stdin:
    pass
sys.stdin.read()
"""


def load(model: Path, logs: Path) -> Engine:
    options = LoadOptions(paths=(str(model),), context_length=512, threads=1)
    return Engine.start(options, log_dir=logs)


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
    with load(smollm2, tmp_path) as engine:
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
    assert list(tmp_path.glob("worker-*.log"))  # kept: it says more than the message
    with load(smollm2, tmp_path) as engine:
        assert list(engine.stream(Sampling(max_tokens=2), prompt="Hello"))


def test_a_worker_that_dies_between_replies_is_noticed(smollm2: Path, tmp_path: Path) -> None:
    with load(smollm2, tmp_path) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        os.waitid(os.P_PID, engine.pid, os.WEXITED | os.WNOWAIT)  # leaves it to be reaped
        engine.cancel()
        with pytest.raises(WorkerDied, match="signal 9"):
            list(engine.stream(Sampling(), prompt="Hello"))


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_a_worker_does_not_outlive_its_front_end(smollm2: Path, tmp_path: Path, state: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", FRONT_END, str(smollm2), str(tmp_path), state]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as front_end:
        assert front_end.stdout is not None
        worker = psutil.Process(int(front_end.stdout.readline()))
        front_end.kill()
        _, alive = psutil.wait_procs([worker], timeout=30)
    assert not alive

"""Pulls killed with SIGKILL at random moments, for the suite (few, small) and `make accept`."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.support import cli
from tests.support.gguf_maker import write_tiny_llama
from tests.support.hub import Hub


def large_model(folder: Path, size_bytes: int) -> Path:
    """Write a valid GGUF of a little over ``size_bytes``, no two blocks of which are alike."""
    padding = np.arange(size_bytes // 4, dtype=np.float32)
    path = folder / "large-F32.gguf"
    write_tiny_llama(path, extra=lambda writer: writer.add_tensor("padding.weight", padding))
    return path


def pull_with_kills(
    hub: Hub, name: str, env: dict[str, str], *, kills: int, size_bytes: int, seed: int
) -> int:
    """Kill a pull of ``name`` as often as asked, let the last one finish; return the bytes sent.

    The moments are random amounts of bytes that the hub has sent since the pull began.
    """
    moments = random.Random(seed)
    for _ in range(kills):
        process = subprocess.Popen(
            [*cli.COMMAND, "pull", "--yes", name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=env,
        )
        goal = hub.bytes_sent() + moments.randrange(size_bytes // (kills + 1))
        _wait(lambda goal=goal, process=process: hub.bytes_sent() > goal or ended(process))
        process.kill()
        process.wait()
    result = cli.run("pull", "--yes", name, env=env)
    assert result.returncode == 0, result.stderr
    return hub.bytes_sent()


def ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process is over by itself."""
    return process.poll() is not None


def _wait(condition: Callable[[], bool]) -> None:
    # The hub counts in threads of this process; there is nothing to wait on but the count.
    while not condition():
        pass

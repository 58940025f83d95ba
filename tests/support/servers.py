"""The real server in a process of its own, on a free port, over a home that has the real model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time_ns

from localllama import paths
from localllama.config import Config
from localllama.runner import Runner
from localllama.store import Store
from tests.support import cli
from tests.support.engines import left_in, wait_until

MODEL = "smol"
_READY = re.compile(r"serving (http://\S+?),")


@dataclass(frozen=True)
class Server:
    """A server that answers; ``home`` is its LOCALLLAMA_HOME."""

    url: str
    home: Path
    process: subprocess.Popen[str]
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def runner(self) -> Runner:
        """A runner that sees the server's workers."""
        where = paths.locate(self.home)
        return Runner(Store(where), Config(), where)

    @property
    def replies_under_way(self) -> int:
        """What the workers are doing."""
        return sum(one.status.running for one in self.runner.running() if one.status)


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a server and of commands beside it: small, with one thread."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OLLAMA_", "LOCALLLAMA_"))}
    return kept | {
        "LOCALLLAMA_HOME": str(home),
        "LOCALLLAMA_THREADS": "1",
        "OLLAMA_CONTEXT_LENGTH": "1024",
        "LOCALLLAMA_OFFLINE": "1",
    }


def install(home: Path, model: Path) -> None:
    """Put the real model into a home."""
    result = cli.run("pull", str(model), "--as", MODEL, env=environment(home))
    assert result.returncode == 0, result.stderr


@contextmanager
def served(home: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Run ``localllama serve`` until the block ends; then nothing of it is left."""
    log = home.parent / f"server-{time_ns()}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "localllama", "serve", "--port", "0", *arguments],
            env=environment(home) | (env or {}),
            stderr=stderr,
            text=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or bool(_READY.search(log.read_text())))
        found = _READY.search(log.read_text())
        assert found, log.read_text()
        server = Server(found[1].replace("0.0.0.0", "127.0.0.1"), home, process, log)
        yield server
    finally:
        process.terminate()
        process.wait(60)
    for running in server.runner.running():
        server.runner.stop(running.record)
    assert left_in(paths.locate(home).runtime) == []
    assert "Traceback" not in log.read_text(), log.read_text()

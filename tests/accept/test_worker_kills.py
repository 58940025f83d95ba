"""A worker killed in mid-reply fifty times: nothing is lost but the reply, and nothing is left."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import psutil
import pytest

from localllama import names, paths
from localllama.chat.session import Session
from localllama.config import Config
from localllama.engine.api import Done, Sampling, Text
from localllama.errors import WorkerDied
from localllama.runner import Runner
from localllama.store import Store
from localllama.wants import Want
from tests.support import cli
from tests.support.engines import left_in

pytestmark = pytest.mark.accept

KILLS = 50
WANT = Want(context_length=1024, threads=1, keep_alive_seconds=0)


def test_the_next_message_works_after_every_kill(home: Path, smollm2: Path) -> None:
    assert cli.run("pull", str(smollm2), "--as", "smol").returncode == 0
    place = paths.locate()
    runner = Runner(Store(place), Config(), place)
    model = runner.store.get(names.parse("smol:latest"))
    moments = random.Random(1)
    open_files = psutil.Process().num_fds()
    for _ in range(KILLS):
        with runner.open(model, WANT) as engine:
            session = Session(engine)
            text, left = "", moments.randrange(1, 8)
            with pytest.raises(WorkerDied, match="killed"):
                for event in session.send("Count to a thousand.", Sampling(temperature=0)):
                    if isinstance(event, Text):
                        text += event.text
                        left -= 1
                        if left == 0:
                            os.kill(engine.pid, signal.SIGKILL)
            assert session.messages[-1].content == text
        with runner.open(model, WANT) as engine:
            session.engine = engine
            *_, done = session.send("Go on.", Sampling(temperature=0, max_tokens=4))
            assert isinstance(done, Done)
            assert done.usage.completion_tokens > 0
    assert psutil.Process().num_fds() == open_files
    assert psutil.Process().children() == []
    assert runner.running() == []
    assert left_in(place.runtime) == []
    assert len(list(place.log.iterdir())) <= 10  # those of the latest crashes

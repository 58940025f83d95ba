"""Fixtures that every part of the suite shares."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import models, servers

# Where a shell runs the tests in the background, SIGINT is ignored, and so it would be by the
# processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The file of the real model."""
    return models.smollm2()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[servers.Server]:
    """A server of the real model, for one file of tests."""
    home = tmp_path_factory.mktemp("served") / "home"
    servers.install(home, smollm2)
    with servers.served(home) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh localllama home, which commands run in this process and in children use."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LOCALLLAMA_HOME", str(folder))
    monkeypatch.setenv("LOCALLLAMA_KEEP_ALIVE", "0")  # no model outlives the test that loads it
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return folder

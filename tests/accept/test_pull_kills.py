"""A pull of 200 MB, killed at 20 random moments, ends verified and costs little more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import cli, kills
from tests.support.hub import Hub

pytestmark = pytest.mark.accept


@pytest.mark.parametrize("name", ["hf.co/owner/large-GGUF:F32", "ollama.com/large:1b"])
def test_twenty_kills(home: Path, tmp_path: Path, name: str) -> None:
    large = kills.large_model(tmp_path, 200_000_000)
    size = large.stat().st_size
    with Hub() as hub:
        hub.add_repo("owner/large-GGUF", {large.name: large})
        hub.add_ollama("library/large", "1b", {"model": large})
        hub.fault("", "slow", times=None, rate=50_000_000)
        env = {**os.environ, "HF_ENDPOINT": hub.url, "LOCALLLAMA_OLLAMA_REGISTRY": hub.url}
        sent = kills.pull_with_kills(hub, name, env, kills=20, size_bytes=size, seed=20)
    print(f"{name}: {sent / size:.3f} of the size downloaded")
    assert sent < 1.2 * size
    assert cli.data("verify")["problems"] == []
    assert [model["name"] for model in cli.data("list")["models"]] == [name]

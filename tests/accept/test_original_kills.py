"""A pull of original weights, killed at 10 random moments: the digest of one that is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import cli, kills, origins
from tests.support.checkpoints import Shape
from tests.support.hub import Hub

pytestmark = pytest.mark.accept

SHAPE = Shape(layers=12, width=512, heads=8, kv_heads=4, hidden=1536, vocabulary=400)
NAME = "hf.co/owner/small-hf:Q4_K_M"


def test_ten_kills(home: Path, tmp_path: Path) -> None:
    folder = origins.write_hugging_face(tmp_path / "small-hf", SHAPE, shards=6)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with Hub() as hub:
        origins.publish(hub, "owner/small-hf", folder)
        env = {**os.environ, "HF_ENDPOINT": hub.url, "NO_PROXY": "*"}
        assert cli.run("pull", NAME, env=env).returncode == 0
        undisturbed = cli.data("show", NAME)["files"]
        assert cli.run("rm", NAME).returncode == 0
        hub.fault(".safetensors", "slow", times=None, rate=25_000_000)
        before = hub.bytes_sent()
        sent = kills.pull_with_kills(hub, NAME, env, kills=10, size_bytes=size, seed=10) - before
    print(f"{size / 1e6:.0f} MB of weights, 10 kills: {sent / size:.3f} of the size downloaded")
    assert sent < 1.5 * size
    assert cli.data("show", NAME)["files"] == undisturbed
    assert cli.data("verify")["problems"] == []
    assert list((home / "models" / "partials").iterdir()) == []

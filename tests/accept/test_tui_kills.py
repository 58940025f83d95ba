"""The app killed twenty times in mid-reply: what came a second before is there afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import cli
from tests.support.streamed import kill_apps

pytestmark = pytest.mark.accept

KILLS = 20


def test_every_kill_leaves_the_messages_and_the_reply(home: Path, smollm2: Path) -> None:
    assert cli.run("pull", str(smollm2), "--as", "smol").returncode == 0
    settings = "[run]\nthreads = 1\n[parameters]\nignore_eos = true\nmax_tokens = 4000\n"
    (home / "config.toml").write_text(settings)
    proofs = kill_apps(home, dict(os.environ), kills=KILLS, seed=1)
    print(f"{proofs} of {KILLS} kills came more than a second after text of the reply")
    assert proofs >= KILLS // 4

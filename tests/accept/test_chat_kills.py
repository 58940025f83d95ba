"""A process killed twenty times while it saves replies: what it had shown is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import chats

pytestmark = pytest.mark.accept


def test_every_kill_leaves_what_was_shown(tmp_path: Path) -> None:
    chats.kill_writers(tmp_path / "chats.db", kills=20, seed=1)

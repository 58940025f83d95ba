"""What the screens show, word by word; ``make screenshots`` writes what is compared."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import screenshots

FOLDER = Path(__file__).parent / "snapshots"


@pytest.mark.parametrize("name", screenshots.SNAPSHOTS)
@pytest.mark.parametrize("size", screenshots.SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_screen_shows_the_same_words(name: str, size: tuple[int, int]) -> None:
    picture = asyncio.run(screenshots.take(screenshots.SNAPSHOTS[name], size))
    kept = FOLDER / f"{name}-{size[0]}x{size[1]}.txt"
    assert screenshots.words(picture) == kept.read_text()

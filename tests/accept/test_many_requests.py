"""10,000 requests through one worker: each gets its own answer, and memory does not grow."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.support.engines import load
from tests.support.markers import wrong_answers

pytestmark = [pytest.mark.accept, pytest.mark.timeout(0)]

REQUESTS, WARM_UP = 10_000, 1_000


def test_none_is_lost_none_crossed_and_no_memory_either(smollm2: Path, tmp_path: Path) -> None:
    with load(smollm2, tmp_path, slots=4) as engine:
        worker = psutil.Process(engine.pid)
        assert wrong_answers(engine, range(WARM_UP)) == []
        before = worker.memory_info().rss
        assert wrong_answers(engine, range(WARM_UP, REQUESTS)) == []
        after = worker.memory_info().rss
        print(f"{before / 2**20:.1f} MiB after {WARM_UP} requests, {after / 2**20:.1f} at the end")
        assert after <= 1.05 * before

"""Acceptance 6: 500 damaged headers through the command line, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.gguf_maker import write_tiny_llama
from tests.support.gguf_mutations import dissect, fatal, write_sparse

# About 0.7 s for each of the 500 on two busy cores.
pytestmark = [pytest.mark.accept, pytest.mark.timeout(1800)]

# As `python -m localllama` does, under the memory limit of the acceptance list.
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_AS, (200_000_000, 200_000_000))
sys.argv[0] = "localllama"
runpy.run_module("localllama", run_name="__main__")
"""
UNSUPPORTED_OR_CORRUPT = 5


def show(path: Path, home: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, "show", str(path)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "LOCALLLAMA_HOME": str(home)},
    )


def test_500_damaged_headers(smollm2: Path, tmp_path: Path) -> None:
    tiny = write_tiny_llama(tmp_path / "tiny.gguf")[0]
    home = tmp_path / "home"
    start = time.monotonic()
    assert show(tiny, home, timeout=60).returncode == 0
    # What a healthy file takes, three times over for a busy machine, and the second it may hang.
    timeout = 3 * (time.monotonic() - start) + 1

    wrong: list[str] = []
    damaged = tmp_path / "damaged.gguf"
    for specimen, count in ((dissect(tiny), 250), (dissect(smollm2), 250)):
        for done, header, size in fatal(specimen, seed=6, count=count):
            write_sparse(damaged, header, size)
            result = show(damaged, home, timeout)
            refused = result.returncode == UNSUPPORTED_OR_CORRUPT
            if not refused or "Traceback" in result.stderr or not result.stderr:
                wrong.append(f"{done}: exit code {result.returncode}: {result.stderr[-300:]}")
    assert wrong == []

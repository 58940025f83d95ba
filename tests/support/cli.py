"""Runs the real command in a real process, as a user's shell does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

COMMAND = (sys.executable, "-m", "localllama")


def run(
    *arguments: str, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``localllama ARGUMENTS`` to its end; the home is that of the environment."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=100,
    )


def data(*arguments: str, **options: Any) -> Any:
    """Run a command that must succeed and return its JSON."""
    result = run(*arguments, "--json", **options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)

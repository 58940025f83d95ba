"""Asks llama.cpp in a process of its own: whatever the native code does, this one lives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from localllama.errors import EngineError

_LONGEST_REASON = 300


def ask(module: str, question: object, *, timeout_seconds: float) -> Any:
    """Return the JSON that ``python -m module`` prints when it reads ``question`` as JSON.

    Raises EngineError, with the child's last words, when it fails, dies or takes too long.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "GGML_NO_BACKTRACE": "1",  # an abort would start gdb and take seconds to end
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=timeout_seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"llama.cpp did not answer within {timeout_seconds:.0f} seconds",
            "a driver may hang: restart the machine, or use --no-gpu",
        ) from error
    except OSError as error:
        raise EngineError(f"cannot start Python for llama.cpp: {error.strerror}") from error
    if done.returncode:
        raise EngineError(f"llama.cpp {_end(done.returncode)}: {_last_words(done.stderr)}")
    return json.loads(done.stdout)


def _end(status: int) -> str:
    """How a process ended, in words."""
    if status > 0:
        return "failed"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1][-_LONGEST_REASON:] if lines else "it gave no reason"

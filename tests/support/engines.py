"""Workers for tests: one thread, in a folder of their own, gone when they are closed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

from localllama.engine.api import LoadOptions
from localllama.engine.client import Engine
from localllama.engine.registry import Label, Registry

_PATIENCE_SECONDS = 60.0  # for a hang, not a measure


def load(
    model: Path,
    folder: Path,
    context_length: int = 2048,
    *,
    keep_alive_seconds: float = 0,
    on_progress: Callable[[float], None] | None = None,
) -> Engine:
    """Start a worker that keeps its files in ``folder`` and its ``logs``."""
    registry = Registry(folder, folder / "logs")
    # One thread: with two, decoding waits at barriers for whatever else the machine is doing.
    options = LoadOptions(
        paths=(str(model),),
        context_length=context_length,
        threads=1,
        keep_alive_seconds=keep_alive_seconds,
    )
    with registry.lock():
        engine = Engine.start(options, registry, Label(name=model.stem))
    return engine.wait_ready(on_progress)


def left_in(folder: Path) -> list[str]:
    """Return the names of what workers left in ``folder`` and its ``logs``."""
    return [path.name for path in folder.rglob("*") if path.name not in (".lock", "logs")]


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when ``condition()`` holds."""
    deadline = monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert monotonic() < deadline
        sleep(0.01)  # leaves the core to whatever is waited for

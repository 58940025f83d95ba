"""Engines for tests: real workers in a folder of their own, and a scripted one without a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Unpack

from localllama.engine.api import (
    DeviceBytes,
    Done,
    Event,
    Further,
    LoadOptions,
    Message,
    Prefill,
    Ready,
    Sampling,
    SnapshotOptions,
    Text,
    Timings,
    Usage,
)
from localllama.engine.client import Engine
from localllama.engine.registry import Label, Record, Registry
from localllama.errors import ContextFull, WorkerDied

_PATIENCE_SECONDS = 60.0  # for a hang, not a measure


def load(
    model: Path,
    folder: Path,
    context_length: int = 2048,
    *,
    slots: int = 1,
    cells: int = 0,
    keep_alive_seconds: float = 0,
    snapshots: SnapshotOptions | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Engine:
    """Start a worker that keeps its files in ``folder`` and its ``logs``."""
    registry = Registry(folder, folder / "logs")
    # One thread: with two, decoding waits at barriers for whatever else the machine is doing.
    options = LoadOptions(
        paths=(str(model),),
        context_length=context_length,
        threads=1,
        slots=slots,
        cells=cells,
        keep_alive_seconds=keep_alive_seconds,
        snapshots=snapshots or SnapshotOptions(),
    )
    with registry.lock():
        engine = Engine.start(options, registry, Label(name=model.stem))
    return engine.wait_ready(on_progress)


def left_in(folder: Path) -> list[str]:
    """Return the names of what workers left in ``folder`` and its ``logs``."""
    return [path.name for path in folder.rglob("*") if path.name not in (".lock", "logs")]


def wait_until(
    condition: Callable[[], bool], *, patience_seconds: float = _PATIENCE_SECONDS
) -> None:
    """Return when ``condition()`` holds."""
    deadline = monotonic() + patience_seconds
    while not condition():
        assert monotonic() < deadline
        sleep(0.01)  # leaves the core to whatever is waited for


class ScriptedEngine:
    """Counts a word as a token, refuses prompts that do not fit, and replies with ``texts``.

    Before the last of them it waits for ``pause``, if there is one, or until it is cancelled.
    """

    def __init__(self, context_length: int, words: int = 3) -> None:
        self.ready = Ready(context_length, context_length, "scripted", 0.0)
        self.record = Record(
            id="scripted",
            pid=0,
            process_started=0,
            label=Label(
                devices=(
                    DeviceBytes(device="CPU", kv_bytes=9 * 10**7),
                    DeviceBytes(device="CUDA0"),
                ),
                layers=31,
                gpu_layers=10,
            ),
            context_length=context_length,
            started_at="",
        )
        self.words = words
        self.timings = Timings()
        self.sent: list[tuple[Message, ...]] = []
        self.dies_after: int | None = None
        self.pause: threading.Event | None = None
        self.continued = False  # the last request was for the rest of a reply
        self.further = Further()
        self.gone = False  # the worker, before it says a word
        self.ended = False  # the worker, as the engine knows
        self._cancelled = False

    @property
    def label(self) -> Label:
        return self.record.label

    @property
    def alive(self) -> bool:
        return not self.ended

    @property
    def words(self) -> int:
        """How many texts a reply has; set, they are word0, word1 and so on."""
        return len(self.texts)

    @words.setter
    def words(self, count: int) -> None:
        self.texts = tuple(f"word{number} " for number in range(count))

    def cancel(self) -> None:
        """End the running reply before its next word."""
        self._cancelled = True
        if self.pause is not None:
            self.pause.set()

    def close(self) -> None:
        """Nothing to leave."""

    def stream(
        self,
        sampling: Sampling,
        *,
        messages: tuple[Message, ...],
        reserve_tokens: int = 0,
        think: bool | None = None,
        continue_last: bool = False,
        **further: Unpack[Further],
    ) -> Iterator[Event]:
        """Reply with the texts."""
        count = sum(len(message.content.split()) for message in messages)
        if count + reserve_tokens > self.ready.context_length:
            needed = count + reserve_tokens
            available = self.ready.context_length
            raise ContextFull("full", needed_tokens=needed, available_tokens=available)
        self.sent.append(messages)
        self.continued = continue_last
        self.further = further
        self._cancelled = False
        if self.gone:
            raise WorkerDied("gone")
        yield Prefill(count, count)
        for number, text in enumerate(self.texts):
            if number == self.dies_after:
                raise WorkerDied("gone")
            if number == len(self.texts) - 1 and self.pause is not None:
                self.pause.wait(_PATIENCE_SECONDS)
            if self._cancelled:
                yield Done("cancelled", Usage(count, 0, number), Timings(), 99)
                return
            yield Text(text)
        yield Done("stop", Usage(count, 0, len(self.texts)), self.timings, 99)

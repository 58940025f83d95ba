"""Progress values: long work is a generator that yields them and returns its result."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment of a long piece of work.

    ``phase`` is a stable word (``resolve``, ``download``, ``verify``, ``extract``, ``install``,
    ``convert``, ``wait``); ``item`` names the file or model. Within one phase and item
    ``done_bytes`` never falls. ``note`` is a sentence for the user (a retry, a wait), else empty;
    ``detail`` names the part of the item that is worked on.
    """

    phase: str
    item: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_second: float = 0.0
    note: str = ""
    detail: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Time to the end of this phase at the present rate, or None while it is unknown."""
        if self.bytes_per_second <= 0 or self.total_bytes <= 0:
            return None
        return max(0.0, (self.total_bytes - self.done_bytes) / self.bytes_per_second)


def finish(work: Generator[Progress, None, T]) -> T:
    """Run a progress generator to its end, silently, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result

"""How much of processor and memories is in use at this moment."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from localllama import hardware
from localllama.amounts import size

_CELLS = 20


@dataclass(frozen=True, slots=True)
class Gauge:
    """One bar; ``share`` from 0 to 1."""

    name: str
    share: float
    text: str

    @property
    def line(self) -> str:
        """The bar with its name and figures."""
        filled = round(min(1.0, max(0.0, self.share)) * _CELLS)
        return f"{self.name:12} {'█' * filled}{'░' * (_CELLS - filled)} {self.text}"


def read() -> list[Gauge]:
    """Return processor, memory, and each NVIDIA card; takes milliseconds.

    The processor's share is that since the call before.
    """
    processor = psutil.cpu_percent(interval=None) / 100
    memory = hardware.memory()
    gauges = [
        Gauge("CPU", processor, f"{processor:.0%} of {memory.cores} cores"),
        _held("RAM", memory.total_bytes - memory.available_bytes, memory.total_bytes),
    ]
    cards = hardware.nvidia()
    for number, card in enumerate(cards):
        name = "VRAM" if len(cards) == 1 else f"VRAM {number}"
        gauges.append(_held(name, card.total_bytes - card.free_bytes, card.total_bytes))
    return gauges


def _held(name: str, used_bytes: int, total_bytes: int) -> Gauge:
    return Gauge(name, used_bytes / total_bytes, f"{size(used_bytes)} of {size(total_bytes)}")

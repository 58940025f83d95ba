"""How much of processor and memories is in use at this moment."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import psutil

from localllama import hardware
from localllama.amounts import size
from localllama.hardware import Hardware

_CELLS = 20
# Between two questions to ggml: a child of 0.3 s and more, which should not be what is measured.
_ASK_SECONDS, _ASK_TIMES = 5.0, 20


@dataclass(frozen=True, slots=True)
class Gauge:
    """One bar; ``share`` from 0 to 1."""

    name: str
    share: float
    text: str


class Gauges:
    """Reads them; ``probe`` asks ggml, in a child, for what no driver here tells in milliseconds.

    Those are Apple's and AMD's GPUs, Vulkan's devices, and other machines.
    """

    def __init__(self, probe: Callable[[], Hardware]) -> None:
        self._probe = probe
        self._asking = False
        self._ask_at = 0.0
        self._devices: list[Gauge] = []

    def read(self) -> list[Gauge]:
        """Return processor, memory and GPUs; takes milliseconds.

        The processor's share is that since the call before; what ggml says is some seconds old.
        """
        cards = _cards()
        if not self._asking and monotonic() >= self._ask_at:
            self._asking = True
            threading.Thread(target=self._ask, args=(bool(cards),), daemon=True).start()
        return [*_host(), *cards, *self._devices]

    def again(self) -> None:
        """Ask ggml also where there was nothing to ask for the last time."""
        self._ask_at = 0.0

    def _ask(self, nvidia: bool) -> None:
        begun = monotonic()
        known = ("CUDA",) if nvidia else ()
        devices = [d for d in self._probe().gpus if d.backend not in known and d.total_bytes]
        self._devices = [
            _held(d.name, d.total_bytes - d.free_bytes, d.total_bytes) for d in devices
        ]
        wait = max(_ASK_SECONDS, _ASK_TIMES * (monotonic() - begun))
        self._ask_at = monotonic() + wait if devices else math.inf
        self._asking = False


def lines(gauges: Sequence[Gauge]) -> list[str]:
    """Return the bars with their names and figures."""
    width = max(len(gauge.name) for gauge in gauges)
    return [_line(gauge, width) for gauge in gauges]


def _line(gauge: Gauge, width: int) -> str:
    filled = round(min(1.0, max(0.0, gauge.share)) * _CELLS)
    return f"{gauge.name:{width}}  {'█' * filled}{'░' * (_CELLS - filled)} {gauge.text}"


def _host() -> list[Gauge]:
    processor = psutil.cpu_percent(interval=None) / 100
    memory = hardware.memory()
    return [
        Gauge("CPU", processor, f"{processor:.0%} of {memory.cores} cores"),
        _held("RAM", memory.total_bytes - memory.available_bytes, memory.total_bytes),
    ]


def _cards() -> list[Gauge]:
    """NVIDIA's, whose driver answers at once."""
    cards = hardware.nvidia()
    names = ["VRAM"] if len(cards) == 1 else [f"VRAM {number}" for number in range(len(cards))]
    return [
        _held(name, card.total_bytes - card.free_bytes, card.total_bytes)
        for name, card in zip(names, cards, strict=True)
    ]


def _held(name: str, used_bytes: int, total_bytes: int) -> Gauge:
    return Gauge(name, used_bytes / total_bytes, f"{size(used_bytes)} of {size(total_bytes)}")

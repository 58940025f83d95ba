"""What loads really took beside what was planned, kept in a file; later plans are corrected by it.

Compute buffers are formulas for one family of graphs: their ratio to what llama.cpp allocated is
kept per architecture, kind of device and build of llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from localllama.files import write_atomic

_KEPT = 100
_LARGEST_RATIO = 4.0  # a larger one says that something else is wrong


@dataclass(frozen=True, slots=True)
class Load:
    """What one load took of one kind of device (CPU, CUDA, RPC…), planned without correction."""

    build: str
    architecture: str
    device: str
    weights_bytes: int
    planned_weights_bytes: int
    kv_bytes: int
    planned_kv_bytes: int
    compute_bytes: int
    planned_compute_bytes: int


def kind_of(device: str) -> str:
    """Return the kind of device that has this name.

    >>> kind_of("CUDA0")
    'CUDA'
    """
    return device.rstrip("0123456789")


def loads(file: Path) -> list[Load]:
    """Return the loads in a file, none where it is missing or of another version."""
    with suppress(OSError, ValueError, TypeError):
        return [Load(**load) for load in json.loads(file.read_bytes())]
    return []


def record(file: Path, more: Iterable[Load]) -> None:
    """Add loads to a file; a disk that is full or read-only costs a correction, nothing else."""
    kept = [*loads(file), *more][-_KEPT:]
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps([asdict(load) for load in kept]).encode())


def ratios(loads: Iterable[Load], architecture: str, build: str) -> dict[str, float]:
    """Return by what to multiply the compute buffers of each kind of device, where loads tell it.

    The largest ratio above 1 counts: a buffer that is smaller than planned does no harm, and those
    of another context or KV type may not be.
    """
    found: dict[str, float] = {}
    for load in loads:
        is_alike = (load.build, load.architecture) == (build, architecture)
        if is_alike and load.planned_compute_bytes and load.compute_bytes:
            ratio = min(_LARGEST_RATIO, load.compute_bytes / load.planned_compute_bytes)
            found[load.device] = max(ratio, found.get(load.device, 1.0))
    return found


@dataclass(frozen=True, slots=True)
class Error:
    """The largest relative errors of plans before correction, over ``loads`` of one kind."""

    architecture: str
    device: str
    build: str
    loads: int
    weights: float
    kv: float
    compute: float


def errors(loads: Iterable[Load]) -> list[Error]:
    """Return the errors per architecture, kind of device and build."""
    kinds: dict[tuple[str, str, str], list[Load]] = {}
    for load in loads:
        kinds.setdefault((load.architecture, load.device, load.build), []).append(load)
    return [
        Error(
            *kind,
            len(alike),
            _largest((load.planned_weights_bytes, load.weights_bytes) for load in alike),
            _largest((load.planned_kv_bytes, load.kv_bytes) for load in alike),
            _largest((load.planned_compute_bytes, load.compute_bytes) for load in alike),
        )
        for kind, alike in sorted(kinds.items())
    ]


def _largest(pairs: Iterable[tuple[int, int]]) -> float:
    found = ((planned - took) / took for planned, took in pairs if took)
    return max(found, key=abs, default=0.0)

"""What this machine has: memory, cores, free disk. Asks psutil and the disk, holds nothing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Hardware:
    """What is available now."""

    memory_bytes: int  # that a new process can take without swapping
    total_memory_bytes: int
    cores: int  # physical: llama.cpp gains nothing from their twins


def probe() -> Hardware:
    """Return what this machine has at this moment."""
    import psutil

    memory = psutil.virtual_memory()
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return Hardware(memory.available, memory.total, cores)


def free_disk_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that ``folder`` is on, or will be made on."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free

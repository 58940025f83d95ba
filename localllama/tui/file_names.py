"""Files and folders of this machine by the beginning of their names, while one writes."""

from __future__ import annotations

import os
from pathlib import Path


def beginning(folder: Path, begin: str) -> list[Path]:
    """Return what is in a folder and begins so, none where it cannot be read.

    Hidden entries count only once their dot is written.
    """
    try:
        return [
            entry
            for entry in folder.iterdir()
            if entry.name.startswith(begin) and entry.name.startswith(".") == begin.startswith(".")
        ]
    except OSError:  # no such folder, or not ours to read
        return []


def ggufs(path: str) -> list[str]:
    """Return what the last part of a path may become: folders, ending in a slash, and GGUFs."""
    folder, begin = os.path.split(path)
    try:
        entries = beginning(Path(folder).expanduser(), begin)
    except RuntimeError:  # ~somebody whom this machine does not know
        return []
    return sorted(
        entry.name + (os.sep if entry.is_dir() else "")
        for entry in entries
        if entry.suffix.lower() == ".gguf" or entry.is_dir()
    )

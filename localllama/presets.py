"""Settings saved under names: a system prompt and sampling parameters, in one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from localllama.errors import InvalidConfig
from localllama.files import storing, write_atomic


@dataclass(frozen=True, slots=True)
class Preset:
    """What a chat can be set to at once."""

    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def load(file: Path) -> dict[str, Preset]:
    """Return the presets by name; raises InvalidConfig for a file that holds something else."""
    with storing(file):
        if not file.exists():
            return {}
        text = file.read_bytes()
    try:
        return {name: Preset(**values) for name, values in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidConfig(
            f"{file} does not hold presets: {error}", "mend it, or move it away"
        ) from error


def save(file: Path, name: str, preset: Preset) -> None:
    """Save a preset, over one of the same name."""
    _write(file, {**load(file), name: preset})


def remove(file: Path, name: str) -> None:
    """Forget a preset."""
    _write(file, {other: preset for other, preset in load(file).items() if other != name})


def _write(file: Path, presets: Mapping[str, Preset]) -> None:
    values = {name: asdict(preset) for name, preset in presets.items()}
    with storing(file):
        write_atomic(file, json.dumps(values, ensure_ascii=False, indent=2).encode())

"""Converts what tests made."""

from __future__ import annotations

from pathlib import Path

from localllama.convert import opening, types, writer
from localllama.convert.layout import Recipe, lay_out
from localllama.progress import finish


def convert(source: Path, out: Path, quant: str = "F32") -> Path:
    """Convert the checkpoint or file ``source`` and return ``out``."""
    model, origin = opening.open_path(source)
    finish(writer.write(lay_out(model, Recipe(types.parse(quant)), origin), out, threads=1))
    return out

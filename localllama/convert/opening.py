"""What a path is: GGUF files or the folder of a checkpoint, opened as something to convert."""

from __future__ import annotations

from pathlib import Path

from localllama.convert import gguf_source
from localllama.convert.model import Model
from localllama.convert.provenance import Input, Origin
from localllama.errors import ModelNotFound, UnsupportedFile


def open_path(path: Path) -> tuple[Model, Origin]:
    """Return the model at ``path`` and what it is made of; reads headers only.

    Raises ModelNotFound, BadFile and its like.
    """
    if not path.exists():
        raise ModelNotFound(f"there is no {path}", "check the path")
    if path.is_dir():
        raise UnsupportedFile(f"{path} is a folder", "give the path of a GGUF file", str(path))
    parts = gguf_source.parts_of(path)
    return gguf_source.open_model(parts), Origin(tuple(Input(part.name, part) for part in parts))

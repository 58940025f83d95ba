"""What a path is: a GGUF or GGML file, or a checkpoint's folder, opened for conversion."""

from __future__ import annotations

import re
from pathlib import Path

from localllama.convert import ggml, gguf_source
from localllama.convert.checkpoint import open_checkpoint
from localllama.convert.model import Model
from localllama.convert.provenance import Input, Origin
from localllama.convert.source import Folder, Source, read_text
from localllama.errors import ModelNotFound, UsageProblem

# What a checkpoint's folder holds besides weights: its configuration, vocabulary and template.
_DESCRIBES = re.compile(r"[^/]+\.(json|model|jinja)|merges\.txt")
_PARTS = (".safetensors", ".bin", ".pth")
_LICENCE = re.compile(r"licen[cs]e(\.(txt|md))?$", re.IGNORECASE)


def open_path(path: Path, eps: float | None = None) -> tuple[Model, Origin]:
    """Return the model at ``path`` and what it is made of; reads headers only.

    ``eps`` is the epsilon of the norms for GGML files, which do not tell it. Raises ModelNotFound,
    UsageProblem, BadFile and its like.
    """
    if not path.exists():
        raise ModelNotFound(f"there is no file or folder {path}", "check the path")
    if path.is_file() and ggml.is_legacy(path):
        return ggml.open_legacy(path, eps=eps), Origin((Input(path.name, path),))
    if eps is not None:
        raise UsageProblem(f"{path} tells the epsilon of its norms itself", "leave --eps out")
    if path.is_dir():
        return open_source(Folder.of(path))
    if path.suffix in _PARTS:
        raise UsageProblem(f"{path} is one file of a checkpoint", f"give the folder: {path.parent}")
    parts = gguf_source.parts_of(path)
    return gguf_source.open_model(parts), Origin(tuple(Input(part.name, part) for part in parts))


def open_source(source: Source) -> tuple[Model, Origin]:
    """Return the checkpoint in ``source`` and what it is made of; reads headers only.

    Raises BadFile and its like.
    """
    model = open_checkpoint(source)
    weights = {name for tensor in model.tensors for name in tensor.files}
    names = [name for name in sorted(source.sizes) if name in weights or _DESCRIBES.fullmatch(name)]
    licence = next((name for name in sorted(source.sizes) if _LICENCE.match(name)), "")
    return model, Origin(
        inputs=tuple(Input(name, source.path(name)) for name in names),
        licence=read_text(source, licence).decode(errors="replace") if licence else "",
    )

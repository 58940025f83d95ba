"""What the files of a model say, as far as its manifest wants to know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from localllama import gguf_file
from localllama.errors import BadFile, UnsupportedFile
from localllama.files import storing
from localllama.gguf_file import ModelInfo
from localllama.store import StoredFile

_LARGEST_TEXT_BYTES = 1 << 20


def inspect(stored: list[StoredFile], paths: list[Path]) -> ModelInfo:
    """Return what the header of the weights says; removes those that are damaged at the source.

    Raises BadFile, and UnsupportedFile for files that this program cannot use.
    """
    weights = [path for file, path in zip(stored, paths, strict=True) if file.role == "model"]
    if not weights:
        raise UnsupportedFile("the source lists no model file", "pull a repository with GGUF files")
    for file in stored:
        if file.role == "adapter":
            raise UnsupportedFile(
                f"the model needs an adapter ({file.name}), which this version does not apply",
                "pull the model it is based on",
            )
    try:
        return read(weights)
    except BadFile as error:
        # Its bytes are what the source has, so no resume can mend it.
        for file, path in zip(stored, paths, strict=True):
            if path.parent.name == "partials":
                path.unlink(missing_ok=True)
            for spelled in (str(path), path.name):
                error.message = error.message.replace(spelled, file.name)
        raise


def read(weights: list[Path]) -> ModelInfo:
    """Return what the header says of a model in one or several parts; raises BadFile."""
    if len(weights) == 1:
        return gguf_file.read_info(weights[0])
    return gguf_file.read_split_info(weights)


def scalars(info: ModelInfo) -> dict[str, Any]:
    """The header's facts that a manifest keeps: no tensors, no vocabulary, no long texts."""
    left_out = {"metadata", "tensors", "chat_template", "file_bytes", "data_offset", "alignment"}
    return {
        key: value
        for key in info.__dataclass_fields__
        if key not in left_out and not callable(value := getattr(info, key))
    }


def texts(stored: list[StoredFile], paths: list[Path]) -> dict[str, str]:
    """Return role -> text of the small files that come with a model."""
    found: dict[str, str] = {}
    for file, path in zip(stored, paths, strict=True):
        if file.role in ("template", "system", "params", "messages"):
            with storing(path), path.open("rb") as opened:
                found[file.role] = opened.read(_LARGEST_TEXT_BYTES).decode(errors="replace")
    return found


def parameters(text: str) -> dict[str, Any]:
    """Return the parameters that a model comes with; none where they are unreadable."""
    try:
        data = json.loads(text) if text else {}
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def messages(text: str) -> tuple[dict[str, str], ...]:
    """Return the messages a model begins with; raises UnsupportedFile for anything but text."""
    try:
        found = [{"role": m["role"], "content": m["content"]} for m in json.loads(text or "[]")]
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedFile(
            "the model comes with messages that cannot be read", "pull the model it is based on"
        ) from error
    if not all(isinstance(part, str) for message in found for part in message.values()):
        raise UnsupportedFile("the model comes with messages that are no text")
    return tuple(found)

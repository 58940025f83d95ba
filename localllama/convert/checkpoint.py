"""Checkpoints of any layout as a Model, from headers alone.

    open_checkpoint(Folder.of(path)) -> Model           a folder
    open_checkpoint(source) -> Model                    files that are still to come

Hugging Face's layout has ``config.json`` beside safetensors or ``pytorch_model*.bin``, Meta's has
``params.json`` beside ``consolidated.NN.pth``. Weights are read when the writer asks for them,
through ``source.path``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from localllama.convert import (
    general,
    hyperparameters,
    llama,
    meta,
    safetensors,
    torch_files,
    vocabulary,
)
from localllama.convert.hyperparameters import Hyperparameters
from localllama.convert.model import Field, Model, Tensor
from localllama.convert.naming import HUGGING_FACE, META
from localllama.convert.source import Source
from localllama.convert.weights import Stored
from localllama.errors import UnsupportedFile


def open_checkpoint(source: Source) -> Model:
    """Return the model in ``source``.

    Raises BadFile for files that are missing, damaged or of different models, UnsupportedFile
    for a layout, architecture or tokenizer that cannot be converted.
    """
    if safetensors.is_here(source):
        return _hugging_face(source, safetensors.read)
    if torch_files.is_here(source):
        return _hugging_face(source, torch_files.read)
    if meta.is_here(source):
        return _meta(source)
    raise UnsupportedFile(
        f"{source.name} holds no weights that can be converted",
        "these can: *.safetensors or pytorch_model*.bin beside a config.json, and "
        "consolidated.*.pth beside a params.json",
        source.name,
    )


def _hugging_face(source: Source, read: Callable[[Source], list[Stored]]) -> Model:
    shape = hyperparameters.read(source)  # first, as it may name another architecture
    tensors = llama.tensors(shape, read(source), HUGGING_FACE, permuted=True, place=source.name)
    return _model(source, shape, tensors, vocabulary.fields(source, shape.vocab_size))


def _meta(source: Source) -> Model:
    found = meta.read(source)
    shape = meta.hyperparameters(source, found)
    tensors = llama.tensors(shape, found, META, permuted=False, place=source.name)
    words = vocabulary.fields(source, shape.vocab_size)
    return _model(source, shape, tensors, meta.special_tokens(words) | words)


def _model(
    source: Source, shape: Hyperparameters, tensors: Sequence[Tensor], words: dict[str, Field]
) -> Model:
    metadata = general.fields(source, tensors) | hyperparameters.metadata(shape) | words
    return Model("llama", metadata, tensors)

"""Checkpoints of any layout as a Model, from headers alone.

    open_checkpoint(Folder.of(path)) -> Model           a folder
    open_checkpoint(source) -> Model                    files that are still to come

Hugging Face's layout has ``config.json`` beside safetensors or ``pytorch_model*.bin``. Weights are
read when the writer asks for them, through ``source.path``.
"""

from __future__ import annotations

from localllama.convert import general, hyperparameters, llama, safetensors, vocabulary
from localllama.convert.model import Model
from localllama.convert.naming import HUGGING_FACE
from localllama.convert.source import Source
from localllama.errors import UnsupportedFile


def open_checkpoint(source: Source) -> Model:
    """Return the model in ``source``.

    Raises BadFile for files that are missing, damaged or of different models, UnsupportedFile
    for a layout, architecture or tokenizer that cannot be converted.
    """
    if safetensors.is_here(source):
        return _hugging_face(source)
    raise UnsupportedFile(
        f"{source.name} holds no weights that can be converted",
        "these are: *.safetensors or pytorch_model*.bin beside a config.json, "
        "consolidated.*.pth beside a params.json, *.ggmlv3.*.bin",
        source.name,
    )


def _hugging_face(source: Source) -> Model:
    shape = hyperparameters.read(source)
    tensors = llama.tensors(
        shape, safetensors.read(source), HUGGING_FACE, permuted=True, place=source.name
    )
    metadata = (
        general.fields(source, tensors)
        | hyperparameters.metadata(shape)
        | vocabulary.fields(source, shape.vocab_size)
    )
    return Model("llama", metadata, tensors)

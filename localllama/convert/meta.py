"""Meta's own layout: ``params.json`` beside ``consolidated.NN.pth``, one file for each GPU.

Each file holds a slice of every matrix: of the rows where a layer's outputs are shared out, of
the columns where its inputs are. Axes: llama/model.py of Meta's repository.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import msgspec
import numpy as np

from localllama.convert import torch_files
from localllama.convert.hyperparameters import (
    Count,
    Hyperparameters,
    Layers,
    Positions,
    Ratio,
    Rope,
    check,
)
from localllama.convert.model import Field
from localllama.convert.source import Source, bad, read_json
from localllama.convert.weights import Raw, Stored

PARAMS = "params.json"
_PART = re.compile(r"consolidated\.(\d\d)\.pth")
_EMBEDDING, _INNER = "tok_embeddings.weight", "layers.0.feed_forward.w1.weight"
_BY_COLUMNS = (".attention.wo.weight", ".feed_forward.w2.weight")
# How a text begins and ends, in the vocabularies of Llama 1 and 2, and 3.
_TOKENS = {
    "bos_token_id": ("<s>", "<|begin_of_text|>"),
    "eos_token_id": ("</s>", "<|end_of_text|>"),
    "unknown_token_id": ("<unk>",),
}
_CODE_LLAMA_THETA, _LLAMA_3_THETA = 1e6, 5e5


class _Params(msgspec.Struct, frozen=True):
    dim: Count
    n_layers: Layers
    n_heads: Count
    norm_eps: Ratio
    n_kv_heads: Count | None = None
    rope_theta: Ratio | None = None
    use_scaled_rope: bool = False
    rope_scaling_factor: Ratio | None = None
    max_seq_len: Positions | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    """A matrix whose slices lie in several files, beside (``axis`` 1) or below each other (0)."""

    parts: tuple[Stored, ...]
    axis: int

    @property
    def name(self) -> str:
        return self.parts[0].name

    @property
    def type(self) -> str:
        return self.parts[0].type

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.parts[0].shape
        count = len(self.parts)
        return (rows, columns * count) if self.axis else (rows * count, columns)

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(part.file_name for part in self.parts)

    @property
    def path(self) -> str:
        return self.parts[0].path

    def rows(self, begin: int, end: int) -> Raw:
        """Return the rows from ``begin`` up to ``end`` of the whole; raises BadFile."""
        if self.axis:
            return np.concatenate([part.rows(begin, end) for part in self.parts], axis=1)
        height = self.parts[0].shape[0]
        slices = [
            part.rows(max(begin - first, 0), min(end - first, height))
            for first, part in zip(range(0, end, height), self.parts, strict=False)
            if begin < first + height
        ]
        return slices[0] if len(slices) == 1 else np.concatenate(slices)


def is_here(source: Source) -> bool:
    """Whether the source has weights in this layout."""
    return PARAMS in source.sizes and any(map(_PART.fullmatch, source.sizes))


def read(source: Source) -> list[Joined | Stored]:
    """Return every tensor, whole; raises BadFile for slices that do not belong together."""
    names = sorted(filter(_PART.fullmatch, source.sizes))
    if names != [f"consolidated.{number:02}.pth" for number in range(len(names))]:
        raise bad(source, names[-1], "is there, but not all of the files before it")
    width = read_json(source, PARAMS, _Params).dim
    files = [{tensor.name: tensor for tensor in torch_files.read_file(source, n)} for n in names]
    for name, tensors in zip(names[1:], files[1:], strict=True):
        odd = sorted(tensors.keys() ^ files[0].keys())
        if odd:
            raise bad(source, name, f"and {names[0]} do not both hold the tensor {odd[0]!r}")
    return [_joined(source, [file[tensor] for file in files], width) for tensor in files[0]]


def _joined(source: Source, parts: Sequence[Stored], width: int) -> Joined | Stored:
    first = parts[0]
    for part in parts[1:]:
        if (part.shape, part.type) != (first.shape, first.type):
            problem = f"holds another slice of {first.name!r} than {first.file_name}"
            raise bad(source, part.file_name, f"{problem}: {list(part.shape)} of {part.type}")
    if len(parts) == 1 or len(first.shape) != 2:  # norms are the same in every file
        return first
    by_columns = first.name.endswith(_BY_COLUMNS)
    if first.name == _EMBEDDING:  # Llama 3 shares out its rows, the others the columns
        by_columns = first.shape[1] != width
    return Joined(tuple(parts), int(by_columns))


def hyperparameters(source: Source, tensors: Sequence[Joined | Stored]) -> Hyperparameters:
    """Return what params.json and the shapes say; raises BadFile.

    The context length, which Meta's files leave out, is that of the family: Llama 1, 2, Code
    Llama, 3, 3.1.
    """
    params = read_json(source, PARAMS, _Params)
    theta = params.rope_theta or 10000.0
    if params.use_scaled_rope:
        context = 131_072
    elif theta == _CODE_LLAMA_THETA:
        context = 16_384
    elif theta == _LLAMA_3_THETA:
        context = 8_192
    else:
        context = 4_096 if params.norm_eps == 1e-5 else 2_048
    rope = Rope(
        rope_type="llama3" if params.use_scaled_rope else None,
        factor=params.rope_scaling_factor,
        original_max_position_embeddings=8192,
    )
    found = Hyperparameters(
        hidden_size=params.dim,
        intermediate_size=_rows(source, tensors, _INNER),
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        num_key_value_heads=params.n_kv_heads,
        vocab_size=_rows(source, tensors, _EMBEDDING),
        max_position_embeddings=params.max_seq_len or context,
        rms_norm_eps=params.norm_eps,
        rope_theta=theta,
        rope_scaling=rope,
    )
    check(found, source, PARAMS)
    return found


def _rows(source: Source, tensors: Sequence[Joined | Stored], name: str) -> int:
    for tensor in tensors:
        if tensor.name == name and len(tensor.shape) == 2:
            return tensor.shape[0]
    raise bad(source, PARAMS, f"has no matrix {name!r} in the files beside it")


def special_tokens(vocabulary: Mapping[str, Field]) -> dict[str, Field]:
    """Return the numbers that Meta's code knows by heart, found by the tokens' texts."""
    tokens = vocabulary["tokenizer.ggml.tokens"].value
    numbers = {text: index for index, text in enumerate(cast(list[str], tokens))}
    found = {
        f"tokenizer.ggml.{key}": Field("u32", numbers[text])
        for key, texts in _TOKENS.items()
        for text in texts
        if text in numbers
    }
    return {"tokenizer.ggml.add_bos_token": Field("bool", True), **found}

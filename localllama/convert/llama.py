"""A Llama's tensors: those of a checkpoint, checked, named and ordered as in a GGUF."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from localllama.convert.hyperparameters import Hyperparameters, frequency_factors
from localllama.convert.model import Rows, Tensor
from localllama.convert.naming import Naming
from localllama.convert.sharded import some
from localllama.convert.weights import (
    TYPES,
    Described,
    Matrix,
    Read,
    interleaved,
    interleaved_bias,
    widened,
)
from localllama.errors import BadFile, UnsupportedFile

M = TypeVar("M", bound=Described)

# What older checkpoints store besides weights: it follows from the hyperparameters.
_NEEDLESS = ("rotary_emb.inv_freq", "attention.masked_bias", "attention.bias", "rope.freqs")


def tensors(
    of: Hyperparameters, found: Iterable[Matrix], naming: Naming, *, permuted: bool, place: str
) -> list[Tensor]:
    """Return the GGUF's tensors in the order of the files.

    ``permuted`` says that Q and K are in Hugging Face's order, ``place`` names the checkpoint.
    Raises what ``named`` raises, and UnsupportedFile for a tensor of no floating point numbers.
    """
    wanted = (matrix for matrix in found if not matrix.name.endswith(_NEEDLESS))
    made = [
        _tensor(of, matrix, name, permuted)
        for name, matrix in named(of, wanted, naming, place).items()
    ]
    return [*_frequency_tensor(of), *made]


def named(of: Hyperparameters, found: Iterable[M], naming: Naming, place: str) -> dict[str, M]:
    """Return the tensors by their names in a GGUF.

    Raises BadFile for a tensor that is missing, extra or of a wrong shape.
    """
    shapes = _shapes(of)
    made: dict[str, M] = {}
    for matrix in found:
        name = naming.in_gguf(matrix.name)
        if name not in shapes:
            raise _bad(matrix, "is none that such a Llama has")
        if matrix.shape != shapes[name]:
            wanted = f"where the hyperparameters ask for {list(shapes[name])}"
            raise _bad(matrix, f"has the shape {list(matrix.shape)} {wanted}")
        if name in made:
            raise _bad(matrix, "is there twice")
        made[name] = matrix
    missing = [name for name in shapes if name not in made and not _is_optional(name, of)]
    if missing:
        raise BadFile(
            f"{place} lacks {some([naming.in_file(name) for name in missing])}",
            "download or copy it again, all of its files",
            place,
        )
    return made


def _shapes(of: Hyperparameters) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that such a Llama may have."""
    width, hidden = of.hidden_size, of.intermediate_size
    query, key = of.num_attention_heads * of.head, of.kv_heads * of.head
    matrices = {
        "attn_q": (query, width),
        "attn_k": (key, width),
        "attn_v": (key, width),
        "attn_output": (width, query),
        "ffn_gate": (hidden, width),
        "ffn_up": (hidden, width),
        "ffn_down": (width, hidden),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (of.vocab_size, width),
        "output_norm.weight": (width,),
        "output.weight": (of.vocab_size, width),
    }
    for layer in range(of.num_hidden_layers):
        for part, shape in matrices.items():
            shapes[f"blk.{layer}.{part}.weight"] = shape
            shapes[f"blk.{layer}.{part}.bias"] = shape[:1]
        for part in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{layer}.{part}.weight"] = (width,)
    return shapes


def _is_optional(name: str, of: Hyperparameters) -> bool:
    if name.endswith(".bias"):
        return not (of.attention_bias if ".attn_" in name else of.mlp_bias)
    return name == "output.weight" and of.tie_word_embeddings


def _bad(matrix: Described, problem: str) -> BadFile:
    return BadFile(
        f"{matrix.path}: the tensor {matrix.name!r} {problem}",
        "check that all files are of the same model, and download or copy them again",
        matrix.path,
    )


def _tensor(of: Hyperparameters, matrix: Matrix, name: str, permuted: bool) -> Tensor:
    if matrix.type not in TYPES:
        raise UnsupportedFile(
            f"{matrix.path}: the tensor {matrix.name!r} is of the type {matrix.type}; those that "
            f"can be converted are {', '.join(TYPES)}",
            "look for the original weights in one of these types, or for a ready GGUF",
            matrix.path,
        )
    read: Read = matrix.rows
    if permuted and ".attn_q." in name:
        read = _interleaved(read, of.num_attention_heads, matrix.shape)
    if permuted and ".attn_k." in name:
        read = _interleaved(read, of.kv_heads, matrix.shape)
    return Tensor(name, matrix.shape, matrix.type, matrix.files, _wide(read, matrix.type))


def _interleaved(read: Read, heads: int, shape: Sequence[int]) -> Read:
    if len(shape) == 1:
        return interleaved_bias(read, heads)
    return interleaved(read, heads, shape[0])


def _wide(read: Read, kind: str) -> Callable[[int, int], Rows]:
    return lambda begin, end: widened(read(begin, end), kind)


def _frequency_tensor(of: Hyperparameters) -> list[Tensor]:
    factors = frequency_factors(of)
    if factors is None:
        return []
    row: Rows = np.ascontiguousarray(factors)
    return [Tensor("rope_freqs.weight", (row.size,), "F32", (), lambda begin, end: row[begin:end])]

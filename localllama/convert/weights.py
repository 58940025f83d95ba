"""Tensors as checkpoint files hold them: where their bytes are, and rows of them as float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from localllama.convert.model import Rows
from localllama.convert.source import DataFile, Source, bad

Raw = NDArray[Any]  # a matrix in the file's own type; BF16 as uint16
Read = Callable[[int, int], Raw]  # (begin, end) -> those rows

TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
ITEM_BYTES: dict[str, int] = {
    **{kind: dtype.itemsize for kind, dtype in TYPES.items()},
    **{"F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2},
    **{"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1},
}
MOST_TENSORS = 65_536  # the largest models have 60,000 in all files together
_MOST_DIMENSIONS, _LARGEST_TENSOR = 8, 2**40  # elements


class Described(Protocol):
    """What is said of a tensor of a checkpoint; ``path`` is for messages."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def path(self) -> str: ...


class Matrix(Described, Protocol):
    """A tensor of a checkpoint of floating point numbers; a vector is a matrix of one row."""

    @property
    def type(self) -> str: ...
    @property
    def files(self) -> tuple[str, ...]: ...
    def rows(self, begin: int, end: int) -> Raw:
        """Return the rows from ``begin`` up to ``end``; raises BadFile."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file, its rows one after another from byte ``offset`` on."""

    name: str
    type: str
    shape: tuple[int, ...]
    file: DataFile
    file_name: str
    offset: int

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file_name,)

    @property
    def path(self) -> str:
        return str(self.file.path)

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    def rows(self, begin: int, end: int) -> Raw:
        """Return the rows from ``begin`` up to ``end``; raises BadFile."""
        kind = TYPES[self.type]
        row_bytes = self.columns * kind.itemsize
        data = self.file.read(self.offset + begin * row_bytes, (end - begin) * row_bytes)
        return data.view(kind).reshape(end - begin, self.columns)


def size_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Return how many bytes a tensor takes."""
    return prod(shape) * ITEM_BYTES[kind]


def check_shape(source: Source, file: str, name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape that a tensor can have; raises BadFile."""
    sound = len(shape) <= _MOST_DIMENSIONS and all(0 <= n <= _LARGEST_TENSOR for n in shape)
    if not sound or prod(shape) > _LARGEST_TENSOR:
        raise bad(source, file, f"is not sound: {name!r} has the shape {str(shape)[:100]}")
    return tuple(shape)


def widened(raw: Raw, kind: str) -> Rows:
    """Return ``raw`` as float32, contiguous; exact for every type."""
    if kind != "BF16":
        return np.ascontiguousarray(raw, np.float32)
    wide = np.empty(raw.shape, np.uint32)
    np.left_shift(raw, 16, out=wide, dtype=np.uint32)  # a BF16 is the upper half of a float32
    return wide.view(np.float32)


def interleaved(read: Read, heads: int, rows: int) -> Read:
    """Read a Q or K matrix as llama.cpp rotates it: pairs side by side in each head.

    Hugging Face's layout has the first halves of all pairs of a head, then the second halves.
    """
    head = rows // heads

    def permuted(begin: int, end: int) -> Raw:
        first, last = begin // head, -(-end // head)
        whole = read(first * head, last * head)
        pairs = whole.reshape(last - first, 2, head // 2, whole.shape[1]).swapaxes(1, 2)
        return pairs.reshape(whole.shape)[begin - first * head : end - first * head]

    return permuted


def interleaved_bias(read: Read, heads: int) -> Read:
    """Read the bias of a Q or K matrix (one row) in the order of its permuted rows."""

    def permuted(begin: int, end: int) -> Raw:
        whole = read(begin, end)
        return whole.reshape(heads, 2, -1).swapaxes(1, 2).reshape(whole.shape)

    return permuted

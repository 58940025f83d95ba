"""What readers hand to the writer: metadata and tensors, named and shaped as GGUF has them.

A reader (safetensors, pickles, Meta's layout, GGML, GGUF) makes a Model of the headers alone; the
weights are read when the writer asks for them. Knows no file format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Blocks = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Field:
    """A metadata value. ``kind`` is ``u32``, ``i32``, ``u64``, ``f32``, ``bool``, ``string``, or
    one of them in brackets for an array: ``[string]``."""

    kind: str
    value: object


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the result.

    ``shape`` has the rows first (numpy's order, the reverse of GGUF's). ``type`` is how the source
    stores it, spelled as GGUF does (``BF16``). ``files`` are the source files that hold it.
    ``read(begin, end)`` returns the rows from ``begin`` up to ``end`` of the tensor as a matrix
    with ``shape[-1]`` columns: float32, contiguous, permuted and joined as llama.cpp wants them.
    Threads may read at the same time. It raises BadFile for a file that changed or ends early.
    ``copy``, where ``type`` is one of ggml's, returns the same rows as they are stored: a tensor
    that keeps its type keeps its bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    files: tuple[str, ...]
    read: Callable[[int, int], Rows]
    copy: Callable[[int, int], Blocks] | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A whole model; ``metadata`` lacks only what the writer adds (file type, provenance)."""

    architecture: str
    metadata: dict[str, Field]
    tensors: Sequence[Tensor]


class Files(Protocol):
    """Brings source files when they are needed and may remove them when they are not."""

    def need(self, name: str) -> None:
        """Return when the file is there; raises what keeps it from coming."""
        ...

    def done(self, name: str) -> None:
        """No tensor needs the file any more."""
        ...

"""ggml's tensor types: rows of float32 to the blocks of a type and back.

Everything here releases the GIL while ggml computes, so threads share the cores. The callers see
to it that rows are a whole number of blocks: ggml ends the process where they are not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllama.native.ggml import _function

_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("block_elements", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float", ctypes.c_void_p),
    ]


class Quantizer:
    """One tensor type by its ggml number."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._chunk = _function(
            "ggml_quantize_chunk",
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            *[ctypes.c_int64] * 3,
            ctypes.c_void_p,
        )
        self._row_bytes = _function("ggml_row_size", ctypes.c_size_t, ctypes.c_int, ctypes.c_int64)
        self._is_valid = _function(
            "ggml_validate_row_data",
            ctypes.c_bool,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_size_t,
        )
        self._to_float = _to_float(number)
        _function("ggml_quantize_init", None, ctypes.c_int)(number)  # tables of the IQ types

    def quantize(
        self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """Return the blocks of a contiguous matrix; ``importance`` has one number a column."""
        count, columns = rows.shape
        blocks = np.empty(count * self._row_bytes(self._number, columns), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        self._chunk(self._number, rows.ctypes.data, blocks.ctypes.data, 0, count, columns, weights)
        return blocks

    def is_valid(self, blocks: NDArray[np.uint8]) -> bool:
        """Whether no scale in the blocks is infinite or no number."""
        valid: bool = self._is_valid(self._number, blocks.ctypes.data, blocks.nbytes)
        return valid

    def dequantize(self, blocks: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
        """Return the matrix of whose rows these are the blocks."""
        count = blocks.nbytes // self._row_bytes(self._number, columns)
        if self._to_float is None:
            return blocks.view(np.float32).reshape(count, columns)
        rows = np.empty((count, columns), np.float32)
        self._to_float(blocks.ctypes.data, rows.ctypes.data, rows.size)
        return rows


def _to_float(number: int) -> Callable[..., Any] | None:
    traits = _function("ggml_get_type_traits", ctypes.POINTER(_Traits), ctypes.c_int)(number)
    address = traits.contents.to_float
    return _ToFloat(address) if address else None

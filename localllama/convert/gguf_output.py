"""The header of a GGUF file as bytes: magic, metadata, tensor list, padding. Version 3.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from localllama.convert.model import Field
from localllama.gguf_header import TensorInfo

ALIGNMENT = 32  # ggml's GGUF_DEFAULT_ALIGNMENT, and the only one that llama-quantize writes
STRING, ARRAY = 8, 9
NUMBER_KINDS = {  # name -> number in the file, letter of struct
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}

_VERSION = 3


def header(
    metadata: Mapping[str, Field], tensors: Sequence[TensorInfo], numbers: Mapping[str, int]
) -> bytes:
    """Return all that comes before the tensors' data; ``numbers`` are ggml's of the types."""
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    parts += (_string(key) + _value(field) for key, field in metadata.items())
    for tensor in tensors:
        count = len(tensor.shape)
        parts.append(
            _string(tensor.name)
            + struct.pack(f"<I{count}Q", count, *tensor.shape)
            + struct.pack("<IQ", numbers[tensor.type], tensor.offset)
        )
    size = sum(map(len, parts))
    return b"".join((*parts, bytes(padded(size) - size)))


def padded(size: int) -> int:
    """Return ``size`` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _value(field: Field) -> bytes:
    if field.kind.startswith("["):
        kind = field.kind[1:-1]
        items = field.value
        assert isinstance(items, Sequence)
        return struct.pack("<IIQ", ARRAY, _code(kind), len(items)) + _items(kind, items)
    return struct.pack("<I", _code(field.kind)) + _items(field.kind, (field.value,))


def _code(kind: str) -> int:
    return STRING if kind == "string" else NUMBER_KINDS[kind][0]


def _items(kind: str, items: Sequence[object]) -> bytes:
    if kind == "string":
        return b"".join(_string(str(item)) for item in items)
    return struct.pack(f"<{len(items)}{NUMBER_KINDS[kind][1]}", *items)


def _string(text: str) -> bytes:
    # What was read from a file may hold bytes that are no UTF-8: they come out as they were.
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw

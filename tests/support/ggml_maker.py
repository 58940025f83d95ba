"""Writes legacy GGML files byte by byte, as llama.cpp did before GGUF."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import quantize

from tests.support.checkpoints import Shape
from tests.support.torch_files import meta_weights


def write_ggml(path: Path, shape: Shape, kind: Type = Type.Q4_0, *, version: int = 3) -> Path:
    """Write the model of ``shape``, its matrices as ``kind``, and return ``path``."""
    numbers = (shape.vocabulary, shape.width, 256, shape.heads, shape.layers, shape.head, 2)
    parts = [b"tjgg", struct.pack("<I7I", version, *numbers)]
    for index in range(shape.vocabulary):
        text = bytes([index - 3]) if 3 <= index < 259 else f" word {index}".encode()
        parts.append(struct.pack("<I", len(text)) + text + struct.pack("<f", -float(index)))
    length = sum(map(len, parts))
    for name, values in meta_weights(shape).items():
        number = kind if values.ndim == 2 else Type.F32
        head = struct.pack(
            f"<3I{values.ndim}I", values.ndim, len(name), number, *values.shape[::-1]
        )
        head += name.encode()
        head += bytes(-(length + len(head)) % 32)
        parts += [head, quantize(np.ascontiguousarray(values), number).tobytes()]
        length += len(head) + len(parts[-1])
    path.write_bytes(b"".join(parts))
    return path

"""GGUF files as something to convert: all metadata, and tensors that are widened to float32."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

from localllama import gguf_file
from localllama.convert.gguf_output import ARRAY, NUMBER_KINDS, STRING
from localllama.convert.model import Blocks, Field, Model, Rows, Tensor
from localllama.convert.source import DataFile
from localllama.convert.types import NUMBERS
from localllama.errors import BadFile
from localllama.gguf_header import Header, TensorInfo, read_header
from localllama.names import split_parts
from localllama.native.quantizer import Quantizer

_NUMBERS = {number: (name, code) for name, (number, code) in NUMBER_KINDS.items()}


def parts_of(path: Path) -> tuple[Path, ...]:
    """Return the files of the model whose first part, or only file, is ``path``."""
    return tuple(path.parent / name for name in split_parts(path.name))


def open_model(paths: Sequence[Path]) -> Model:
    """Return the model in the parts of a GGUF, in order; reads headers only.

    Raises ModelNotFound, InvalidGGUF, UnsupportedFile, BadFile.
    """
    info = gguf_file.read_split_info(paths) if len(paths) > 1 else gguf_file.read_info(paths[0])
    metadata, tensors = contents(paths[0])
    for path in paths[1:]:
        tensors += contents(path)[1]
    return Model(info.architecture, metadata, tensors)


def contents(path: Path) -> tuple[dict[str, Field], list[Tensor]]:
    """Return all metadata and the tensors of one GGUF file of any kind.

    Raises InvalidGGUF, UnsupportedFile, BadFile.
    """
    try:
        header = _header(path)
        metadata = dict(_metadata(path, header.data_offset))
    except OSError as error:
        raise BadFile(
            f"{path} cannot be read: {error.strerror}", "check the path", str(path)
        ) from error
    data = DataFile(path, header.file_bytes)
    return metadata, [_tensor(data, header, tensor) for tensor in header.tensors]


def _header(path: Path) -> Header:
    with path.open("rb", buffering=0) as file:

        def read(offset: int, length: int) -> bytes:
            return os.pread(file.fileno(), length, offset)

        return read_header(read, path.stat().st_size, str(path))


def _tensor(data: DataFile, header: Header, info: TensorInfo) -> Tensor:
    columns, rows = info.shape[0], prod(info.shape[1:])
    row_bytes = info.size_bytes // rows
    begins_at = header.data_offset + info.offset

    def copy(begin: int, end: int) -> Blocks:
        return data.read(begins_at + begin * row_bytes, (end - begin) * row_bytes)

    def read(begin: int, end: int) -> Rows:
        return Quantizer(NUMBERS[info.type]).dequantize(copy(begin, end), columns)

    return Tensor(info.name, info.shape[::-1], info.type, (data.path.name,), read, copy)


def _metadata(path: Path, data_offset: int) -> Iterator[tuple[str, Field]]:
    """Every key with its whole value; the bounds have been checked by gguf_file before."""
    with path.open("rb") as file:
        cursor = _Cursor(file.read(data_offset))
    cursor.at = 16  # magic, version, count of tensors
    for _ in range(cursor.number("Q")):
        key = cursor.string()
        yield key, cursor.field(key)


class _Cursor:
    """A place in the header."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def number(self, code: str) -> int:
        (value,) = self.numbers(code, 1)
        return int(value)

    def numbers(self, code: str, count: int) -> tuple[int | float | bool, ...]:
        layout = f"<{count}{code}"
        values = struct.unpack_from(layout, self._data, self.at)
        self.at += struct.calcsize(layout)
        return values

    def string(self) -> str:
        length = self.number("Q")
        self.at += length
        return self._data[self.at - length : self.at].decode("utf-8", "surrogateescape")

    def field(self, key: str) -> Field:
        kind = self.number("I")
        if kind == STRING:
            return Field("string", self.string())
        if kind != ARRAY:
            name, code = _NUMBERS[kind]
            return Field(name, self.numbers(code, 1)[0])
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            return Field("[string]", [self.string() for _ in range(count)])
        name, code = _NUMBERS[kind]
        return Field(f"[{name}]", self.numbers(code, count))

"""Legacy GGML files such as ``llama-2-7b.ggmlv3.q4_0.bin``, whose blocks are still today's.

Format: convert_llama_ggml_to_gguf.py of llama.cpp. Numbers, vocabulary, then each tensor after
its own header, so that finding them all takes a walk through the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO

from msgspec.structs import replace

from localllama.convert import general, llama, vocabulary
from localllama.convert.hyperparameters import Hyperparameters, check
from localllama.convert.hyperparameters import metadata as metadata_of
from localllama.convert.model import Blocks, Field, Model, Rows, Tensor
from localllama.convert.naming import META
from localllama.convert.source import DataFile, Folder, bad
from localllama.convert.vocabulary import Token, TokenType
from localllama.errors import BadFile, UnsupportedFile
from localllama.gguf_tables import REMOVED_TENSOR_TYPES, TENSOR_TYPES, TensorType
from localllama.native.quantizer import Quantizer

MAGIC = b"tjgg"  # GGJT, little-endian
_OLDER_MAGICS = (b"lmgg", b"fmgg")
_ALIGNMENT = 32
_HEAD = Struct("<7I")  # vocabulary, width, multiple, heads, layers, rotated, file type
_TENSOR_HEAD = Struct("<3I")  # axes, length of the name, type
_U32, _F32 = Struct("<I"), Struct("<f")
_MOST = {"tokens": 1 << 20, "elements wide": 1 << 17, "heads": 1 << 12, "layers": 512}
_LONGEST_TEXT = 4096
_MOST_TENSORS = 8192
_OLD_QUANTS = ("Q4_0", "Q4_1", "Q8_0")
_QUANTS = (*_OLD_QUANTS, "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_TYPES = ("F32", "F16", *_QUANTS)
# Types whose blocks changed after a version of the format.
_CHANGED = {1: _QUANTS, 2: _OLD_QUANTS}
_KEY, _INNER = "layers.0.attention.wk.weight", "layers.0.feed_forward.w1.weight"
_TOKEN_IDS = {
    "tokenizer.ggml.unknown_token_id": Field("u32", 0),
    "tokenizer.ggml.bos_token_id": Field("u32", 1),
    "tokenizer.ggml.eos_token_id": Field("u32", 2),
}
_SPECIAL = (("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL))


@dataclass(frozen=True, slots=True)
class _Block:
    """A tensor of the file, whose rows are blocks of a ggml type."""

    name: str
    number: int
    shape: tuple[int, ...]
    offset: int
    file: DataFile

    @property
    def path(self) -> str:
        return str(self.file.path)

    @property
    def kind(self) -> TensorType:
        return TENSOR_TYPES[self.number]

    def copy(self, begin: int, end: int) -> Blocks:
        """Return the rows from ``begin`` up to ``end`` as they stand in the file."""
        row_bytes = self.shape[-1] // self.kind.block_elements * self.kind.block_bytes
        return self.file.read(self.offset + begin * row_bytes, (end - begin) * row_bytes)

    def read(self, begin: int, end: int) -> Rows:
        """Return the same rows as float32."""
        return Quantizer(self.number).dequantize(self.copy(begin, end), self.shape[-1])


def is_legacy(path: Path) -> bool:
    """Whether the file begins as GGML files before GGUF do; raises BadFile."""
    try:
        with path.open("rb") as file:
            return file.read(4) in (MAGIC, *_OLDER_MAGICS)
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}", path=str(path)) from error


def open_legacy(path: Path, *, eps: float | None = None, context: int | None = None) -> Model:
    """Return the model in a GGML file; reads no weights.

    The files do not tell the epsilon of the norms nor the context length: without ``eps`` and
    ``context`` they are Llama 2's, or Llama 1's for the sizes that only Llama 1 has (30B, 65B).
    Raises BadFile for a damaged file, UnsupportedFile for one whose blocks are not today's.
    """
    try:
        with path.open("rb") as file:
            return _Walk(file, path).model(eps, context)
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror}", path=str(path)) from error


class _Walk:
    """A walk through one file, from its first byte to its last."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._name = file, path.name
        size = os.fstat(file.fileno()).st_size
        self._source = Folder(path.parent, {path.name: path}, {path.name: size})
        self._data = DataFile(path, size)

    def model(self, eps: float | None, context: int | None) -> Model:
        version = self._version()
        count, width, _, heads, layers, _, _ = self._numbers(_HEAD)
        for (what, most), number in zip(_MOST.items(), (count, width, heads, layers), strict=True):
            if not 0 < number <= most:
                raise self._bad(f"it would have {number} {what}")
        tokens = [self._token(index) for index in range(count)]
        blocks = {block.name: block for block in self._blocks(version)}
        key, inner = (self._matrix(blocks, name) for name in (_KEY, _INNER))
        shape = Hyperparameters(
            hidden_size=width,
            intermediate_size=inner.shape[0],
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, key.shape[0] * heads // width),
            vocab_size=count,
        )
        is_first = layers == 60 or (layers == 80 and shape.kv_heads == heads)
        shape = replace(
            shape,
            rms_norm_eps=eps or (1e-6 if is_first else 1e-5),
            max_position_embeddings=context or (2048 if is_first else 4096),
        )
        check(shape, self._source, self._name)
        place = str(self._source.path(self._name))
        found = llama.named(shape, blocks.values(), META, place)
        tensors = [
            Tensor(name, block.shape, block.kind.name, (self._name,), block.read, block.copy)
            for name, block in found.items()
        ]
        metadata = {
            **general.fields(self._source, tensors),
            **metadata_of(shape),
            "general.name": Field("string", self._data.path.stem),
            **vocabulary.llama_fields(tokens),
            **_TOKEN_IDS,
        }
        return Model("llama", metadata, tensors)

    def _version(self) -> int:
        magic = self._take(4)
        version = self._numbers(_U32)[0] if magic == MAGIC else 0
        if version not in (1, 2, 3):
            raise self._unsupported("is older than the oldest format whose blocks are today's")
        return version

    def _token(self, index: int) -> Token:
        (length,) = self._numbers(_U32)
        if length > _LONGEST_TEXT:
            raise self._bad(f"token {index} would have {length} bytes")
        text, (score,) = self._take(length), self._numbers(_F32)
        if index < len(_SPECIAL):
            name, kind = _SPECIAL[index]
            return Token(name, score, kind)
        if not text:
            return Token("", score, TokenType.CONTROL)
        if index < len(_SPECIAL) + 256 and len(text) == 1:
            return Token(f"<0x{text[0]:02X}>", score, TokenType.BYTE)
        spaced = text.decode("utf-8", "surrogateescape").replace(" ", vocabulary.SPACE)
        return Token(spaced, score, TokenType.NORMAL)

    def _blocks(self, version: int) -> Iterator[_Block]:
        count, size = 0, self._data.size_bytes
        while self._file.tell() < size:
            axes, name_length, number = self._numbers(_TENSOR_HEAD)
            if not 0 < axes <= 2 or name_length > _LONGEST_TEXT or count == _MOST_TENSORS:
                raise self._bad(f"what should be tensor {count} is none")
            shape = self._numbers(Struct(f"<{axes}I"))[::-1]
            name = self._take(name_length).decode("utf-8", "replace")
            self._check_type(name, number, version)
            offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
            kind = TENSOR_TYPES[number]
            if shape[-1] % kind.block_elements:
                raise self._bad(f"the tensor {name!r} has rows of {shape[-1]} elements")
            end = offset + prod(shape) // kind.block_elements * kind.block_bytes
            if end > size:
                raise self._bad(f"it is cut within the tensor {name!r}")
            yield _Block(name, number, shape, offset, self._data)
            self._file.seek(end)
            count += 1

    def _check_type(self, name: str, number: int, version: int) -> None:
        kind = TENSOR_TYPES.get(number)
        if kind is None or kind.name not in _TYPES:
            shown = kind.name if kind else REMOVED_TENSOR_TYPES.get(number, str(number))
            raise self._unsupported(f"has the tensor {name!r} of the type {shown}")
        if kind.name in _CHANGED.get(version, ()):
            raise self._unsupported(
                f"is of version {version} of its format; the blocks of {kind.name} changed since"
            )

    def _matrix(self, blocks: Mapping[str, _Block], name: str) -> _Block:
        if name not in blocks or len(blocks[name].shape) != 2:
            raise self._bad(f"it lacks the matrix {name!r}")
        return blocks[name]

    def _numbers(self, layout: Struct) -> tuple[Any, ...]:
        return layout.unpack(self._take(layout.size))

    def _take(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) < length:
            raise self._bad("it is cut")
        return data

    def _bad(self, problem: str) -> BadFile:
        return bad(self._source, self._name, f"is not a sound GGML file: {problem}")

    def _unsupported(self, problem: str) -> UnsupportedFile:
        path = str(self._source.path(self._name))
        return UnsupportedFile(f"{path} {problem}", "look for a GGUF of the same model", path)

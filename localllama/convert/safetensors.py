"""Safetensors: where each tensor of one file or of a sharded repository is, from headers alone.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from localllama.convert import sharded
from localllama.convert.source import DataFile, Source, bad, decode_json
from localllama.convert.weights import ITEM_BYTES, MOST_TENSORS, Stored, check_shape, size_bytes

_INDEX = "model.safetensors.index.json"
_LARGEST_HEADER = 16 << 20  # a shard of the largest models has 1 MB


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def is_here(source: Source) -> bool:
    """Whether the source has weights in this format."""
    return sharded.is_here(source, _INDEX, _is_part)


def read(source: Source) -> list[Stored]:
    """Return every tensor, in the order of the files; raises BadFile."""
    return sharded.read(source, _INDEX, _is_part, read_file)


def read_file(source: Source, name: str) -> Iterator[Stored]:
    """Yield the tensors of one file in the order of their bytes; raises BadFile."""
    header, data_offset = _header(source, name)
    file = DataFile(source.path(name), source.sizes[name])
    end = 0
    for tensor, entry in sorted(header.items(), key=lambda item: item[1].data_offsets):
        shape = check_shape(source, name, tensor, entry.shape)
        if entry.dtype not in ITEM_BYTES:
            raise bad(source, name, f"is not sound: {tensor!r} is of the type {entry.dtype!r}")
        begin = end
        end += size_bytes(entry.dtype, shape)
        if entry.data_offsets != (begin, end):
            raise bad(source, name, f"is not sound: {tensor!r} is not where its shape puts it")
        yield Stored(tensor, entry.dtype, shape, file, name, data_offset + begin)
    if source.sizes[name] != data_offset + end:
        cut = source.sizes[name] < data_offset + end
        what = "is cut" if cut else "is not sound"
        raise bad(source, name, f"{what}: its header promises {data_offset + end} bytes")


def _is_part(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors") and "/" not in name


def _header(source: Source, name: str) -> tuple[dict[str, _Entry], int]:
    """Return what the header says of each tensor, and where the data begins."""
    size = source.sizes[name]
    if size < 8:
        raise bad(source, name, "is cut: it has no header")
    data_offset = 8 + int.from_bytes(source.read(name, 0, 8), "little")
    if data_offset > _LARGEST_HEADER:
        raise bad(source, name, f"is not sound: its header would have {data_offset - 8} bytes")
    if data_offset > size:
        raise bad(source, name, "is cut within its header")
    text = source.read(name, 8, data_offset)
    entries = decode_json(text, dict[str, msgspec.Raw], source, name)
    entries.pop("__metadata__", None)
    if len(entries) > MOST_TENSORS:
        raise bad(source, name, f"is not sound: it lists {len(entries)} tensors")
    header = {
        tensor: decode_json(bytes(raw), _Entry, source, name) for tensor, raw in entries.items()
    }
    return header, data_offset

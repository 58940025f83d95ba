"""Damages GGUF headers: always the same way for one seed.

Positions come from the ``gguf`` package's reader, so that they do not depend on ours.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFReader

_HUGE = (2**31, 2**32 - 1, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)


@dataclass(frozen=True, slots=True)
class Specimen:
    """A sound file's header, and the byte positions of its structure."""

    header: bytes
    file_bytes: int
    end_of_weights: int
    lengths: tuple[int, ...]  # 8 bytes: of keys, names, strings, arrays
    types: tuple[int, ...]  # 4 bytes: of values, items and tensors
    ranks: tuple[int, ...]  # 4 bytes: number of dimensions
    offsets: tuple[int, ...]  # 8 bytes: of tensors


def dissect(path: Path) -> Specimen:
    """Return the header of a sound file, cut into its parts."""
    reader = GGUFReader(path)
    lengths: list[int] = []
    types: list[int] = []
    ranks: list[int] = []
    offsets: list[int] = []
    for name, field in reader.fields.items():
        if name.startswith("GGUF."):
            continue
        kind_at = field.offset + 8 + len(name.encode())
        lengths.append(field.offset)
        types.append(kind_at)
        if field.types[0].name == "ARRAY":
            types.append(kind_at + 4)
            lengths.append(kind_at + 8)
            if field.types[-1].name == "STRING" and field.data:
                lengths.append(kind_at + 16)
        elif field.types[0].name == "STRING":
            lengths.append(kind_at + 4)
    for tensor in reader.tensors:
        at = tensor.field.offset
        rank_at = at + 8 + len(tensor.name.encode())
        type_at = rank_at + 4 + 8 * len(tensor.shape)
        lengths.append(at)
        ranks.append(rank_at)
        types.append(type_at)
        offsets.append(type_at + 4)
    last = reader.tensors[-1]
    return Specimen(
        header=bytes(reader.data[: reader.data_offset]),
        file_bytes=len(reader.data),
        end_of_weights=int(last.data_offset) + int(last.n_bytes),
        lengths=tuple(lengths),
        types=tuple(types),
        ranks=tuple(ranks),
        offsets=tuple(offsets),
    )


def fatal(specimen: Specimen, seed: int, count: int) -> Iterator[tuple[str, bytes, int]]:
    """Yield (what was done, header, file size) ``count`` times; none is a GGUF any more.

    Why each is fatal: a cut takes weights away; a huge count or length is more than the file
    has; the high bits of a type, rank or version make one that does not exist; and the offset
    of a tensor follows from the tensors before it.
    """
    chance = random.Random(seed)
    for number in range(count):
        header = bytearray(specimen.header)
        size = specimen.file_bytes
        match number % 7:
            case 0:
                in_header = chance.random() < 0.7
                size = chance.randrange(len(header) if in_header else specimen.end_of_weights)
                done = f"cut to {size} bytes"
            case 1:
                at, value = chance.choice((8, 16)), chance.choice(_HUGE)
                header[at : at + 8] = struct.pack("<Q", value)
                done = f"count at {at} set to {value}"
            case 2:
                at, value = chance.choice(specimen.lengths), chance.choice(_HUGE)
                header[at : at + 8] = struct.pack("<Q", value)
                done = f"length at {at} set to {value}"
            case 3:
                done = _flip(header, chance.choice(specimen.types), chance.randrange(6, 32))
            case 4:
                done = _flip(header, chance.choice(specimen.ranks), chance.randrange(3, 32))
            case 5:
                done = _flip(header, chance.choice(specimen.offsets), chance.randrange(64))
            case _:
                done = _flip(header, 0, chance.choice([*range(32), *range(34, 64)]))
        yield done, bytes(header), size


def anywhere(specimen: Specimen, seed: int, count: int) -> Iterator[tuple[str, bytes, int]]:
    """Yield (what was done, header, file size): one to three flipped bits wherever they fall."""
    chance = random.Random(seed)
    for _ in range(count):
        header = bytearray(specimen.header)
        flips = [
            _flip(header, chance.randrange(len(header)), chance.randrange(8))
            for _ in range(chance.randint(1, 3))
        ]
        yield ", ".join(flips), bytes(header), specimen.file_bytes


def write_sparse(path: Path, header: bytes, file_bytes: int) -> None:
    """Write a file of this size; the weights are a hole that takes no disk."""
    with path.open("wb") as file:
        file.write(header[:file_bytes])
        file.truncate(file_bytes)


def _flip(header: bytearray, at: int, bit: int) -> str:
    header[at + bit // 8] ^= 1 << bit % 8
    return f"bit {bit} flipped at {at}"

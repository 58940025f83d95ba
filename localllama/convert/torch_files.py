"""Files of torch.save (``pytorch_model*.bin``, ``*.pth``): a zip archive of a pickle and storages.

Format: torch/serialization.py; archives hold their storages uncompressed, so tensors are read
where they are.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from math import prod
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING

from localllama.convert import pickled, sharded
from localllama.convert.pickled import PickledTensor, Refused
from localllama.convert.source import DataFile, Source, bad
from localllama.convert.weights import ITEM_BYTES, MOST_TENSORS, Stored, check_shape
from localllama.errors import UnsupportedFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# What zipfile raises for archives that are not sound.
_DAMAGED = (zipfile.BadZipFile, EOFError, KeyError, RuntimeError, ValueError, StructError)
_INDEX = "pytorch_model.bin.index.json"
_LARGEST_PICKLE = 64 << 20
_MOST_READ = 256 << 20  # of one file, for its directory and its pickle
_LOCAL_HEADER = Struct("<4s22xHH")  # of a member: magic, lengths of its name and extra field
# The bytes that torch.save began files with before version 1.6.
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def is_here(source: Source) -> bool:
    """Whether the source has Hugging Face's files in this format."""
    return sharded.is_here(source, _INDEX, _is_part)


def read(source: Source) -> list[Stored]:
    """Return every tensor, in the order of the files; raises BadFile and UnsupportedFile."""
    return sharded.read(source, _INDEX, _is_part, read_file)


def read_file(source: Source, name: str) -> Iterator[Stored]:
    """Yield the tensors of one file in the order of its pickle; raises BadFile.

    A pickle that asks for anything but tensors is refused, and nothing of it is run.
    """
    _check_begin(source, name)
    file = DataFile(source.path(name), source.sizes[name])
    try:
        archive = _Archive(source, name)
        found = pickled.tensors(archive.content("data.pkl"))
        if len(found) > MOST_TENSORS:
            raise Refused(f"is not sound: it holds {len(found)} tensors")
        for tensor, place in found.items():
            shape = check_shape(source, name, tensor, place.shape)
            offset = archive.offset_of(tensor, place)
            yield Stored(tensor, place.storage.type, shape, file, name, offset)
    except Refused as error:
        hint = "look for the same weights as safetensors, or download or copy the file again"
        raise bad(source, name, str(error), hint) from error
    except _DAMAGED as error:
        raise bad(source, name, f"is cut or damaged: {error}") from error


def _check_begin(source: Source, name: str) -> None:
    size = source.sizes[name]
    begin = source.read(name, 0, min(size, len(_OLD_TORCH)))
    if begin == _OLD_TORCH:
        raise UnsupportedFile(
            f"{source.path(name)} was saved by a torch older than 1.6",
            "look for the same weights as safetensors, or save them again with today's torch",
            str(source.path(name)),
        )
    if begin[:4] != b"PK\x03\x04":
        raise bad(source, name, "is no file that torch saved")


def _is_part(name: str) -> bool:
    return name.startswith("pytorch_model") and name.endswith(".bin") and "/" not in name


class _Archive:
    """The zip archive of one file: its directory is read, its storages are only located."""

    def __init__(self, source: Source, name: str) -> None:
        self._source, self._name = source, name
        self._zip = zipfile.ZipFile(io.BufferedReader(_Ranged(source, name), 1 << 16))
        pickles = [member for member in self._zip.namelist() if member.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refused(f"has {len(pickles)} lists of tensors")
        self._prefix = pickles[0].removesuffix("data.pkl")
        if f"{self._prefix}byteorder" in self._zip.NameToInfo and self.content("byteorder") != (
            b"little"
        ):
            raise Refused("was saved on a machine of another byte order")

    def content(self, member: str) -> bytes:
        """Return a small member of the archive."""
        info = self._member(member)
        if info.file_size > _LARGEST_PICKLE:
            raise Refused(f"is not sound: {member} has {info.file_size} bytes")
        return self._zip.read(info)

    def offset_of(self, tensor: str, place: PickledTensor) -> int:
        """Return where the tensor's bytes begin in the file."""
        info = self._member(f"data/{place.storage.key}")
        item = ITEM_BYTES[place.storage.type]
        if not _is_contiguous(place):
            raise Refused(f"holds {tensor!r} in another order than row after row")
        end = (place.offset + prod(place.shape)) * item
        if place.offset < 0 or not end <= place.storage.count * item <= info.file_size:
            raise Refused(f"is damaged: {tensor!r} is longer than what is stored of it")
        header = self._source.read(
            self._name, info.header_offset, info.header_offset + _LOCAL_HEADER.size
        )
        magic, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        begin: int = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if magic != b"PK\x03\x04" or begin + info.file_size > self._source.sizes[self._name]:
            raise Refused(f"is damaged: {tensor!r} is not where the archive says")
        return begin + place.offset * item

    def _member(self, name: str) -> zipfile.ZipInfo:
        info = self._zip.getinfo(self._prefix + name)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise Refused(f"is packed otherwise than torch does it: {name}")
        return info


def _is_contiguous(place: PickledTensor) -> bool:
    """Whether the tensor is stored row after row; the stride of an axis of one means nothing."""
    shape = place.shape
    wanted = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    found = zip(shape, place.strides, wanted, strict=True)
    return all(size == 1 or stride == want for size, stride, want in found)


class _Ranged(io.RawIOBase):
    """A file of a Source for zipfile, which may ask for a bounded number of bytes."""

    def __init__(self, source: Source, name: str) -> None:
        self._source, self._name = source, name
        self._size = source.sizes[name]
        self._at, self._left = 0, _MOST_READ

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._at, self._size)[whence]
        self._at = base + offset
        if self._at < 0:
            raise Refused("is damaged: its directory is not where it should be")
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._size - self._at))
        self._left -= len(view)
        if self._left < 0:
            raise Refused("is not sound: its directory is longer than any")
        view[:length] = self._source.read(self._name, self._at, self._at + length)
        self._at += length
        return length

"""The bytes of a GGUF header: magic, counts, key-value pairs, tensor list, all bounds-checked.

Knows nothing of what the keys mean. Nothing is allocated in proportion to a claimed count, and
the limits below keep any input under 200 MB of memory and about a second.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from struct import Struct

from localllama.errors import BadFile, InvalidGGUF, UnsupportedFile
from localllama.gguf_tables import REMOVED_TENSOR_TYPES, STRANGERS, TENSOR_TYPES

Reader = Callable[[int, int], bytes]  # (offset, length) -> exactly that many bytes

_MIB = 1 << 20
_FIRST_BLOCK_BYTES, _LARGEST_BLOCK_BYTES = _MIB, 8 * _MIB
# The largest real headers (vocabularies of 260,000 tokens) have 20 MB, 1.3 million array items,
# under 200 keys and under 5,000 tensors.
_MAX_HEADER_BYTES = 256 * _MIB
_MAX_ITEMS = 3 * _MIB
_MAX_KEYS = 4_096
_MAX_TENSORS = 16_384
_MAX_KEPT_BYTES = 16 * _MIB  # strings and short arrays that become Python objects
_KEPT_ITEM_BYTES = 40  # of a number in a tuple
_LONGEST_KEPT_STRING = _MIB
_LONGEST_KEPT_ARRAY = 512  # llama.cpp's limit of layers: arrays with one item a layer are kept
_LONGEST_KEY = 65_535
_LONGEST_TENSOR_NAME = 63
_LARGEST_ELEMENTS = 2**63 - 1

_U32, _U64 = Struct("<I"), Struct("<Q")
_TENSOR_TAIL = Struct("<IQ")  # type, offset
_SCALARS = {
    0: ("u8", Struct("<B")),
    1: ("i8", Struct("<b")),
    2: ("u16", Struct("<H")),
    3: ("i16", Struct("<h")),
    4: ("u32", Struct("<I")),
    5: ("i32", Struct("<i")),
    6: ("f32", Struct("<f")),
    7: ("bool", Struct("<B")),
    10: ("u64", Struct("<Q")),
    11: ("i64", Struct("<q")),
    12: ("f64", Struct("<d")),
}
_STRING, _ARRAY = 8, 9
# The fewest bytes a key-value pair and a tensor can have.
_SMALLEST_PAIR, _SMALLEST_TENSOR = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8

_AGAIN = "it was cut or damaged on its way here: download or copy it again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor; ``offset`` counts bytes from the data section of its ``part`` (0 = first)."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size_bytes: int
    part: int = 0


@dataclass(frozen=True, slots=True)
class Value:
    """The value of one key; ``data`` is None where it was too long to keep.

    ``kind`` is ``string`` or a number type (``u32``, ``f32``, ``bool``…); ``length`` is that of
    an array in items, or of a string in bytes.
    """

    kind: str
    data: object
    length: int = 0
    is_array: bool = False

    def shown(self) -> object:
        """The value for people: arrays of more than eight items and huge strings in brackets."""
        if self.is_array and (self.data is None or self.length > 8):
            return f"[{self.length} \N{MULTIPLICATION SIGN} {self.kind}]"
        return f"[string of {self.length} bytes]" if self.data is None else self.data


@dataclass(frozen=True, slots=True)
class Header:
    """One file's header as it stands; ``values`` in the order of the file."""

    path: str
    version: int
    values: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int
    file_bytes: int


def read_header(read: Reader, file_bytes: int, path: str) -> Header:
    """Return the header; raises InvalidGGUF or UnsupportedFile, which name ``path``."""
    cursor = _Cursor(read, file_bytes, path)
    version = _version(cursor)
    tensor_count, pair_count = cursor.number(_U64), cursor.number(_U64)
    cursor.check_count(tensor_count, _SMALLEST_TENSOR, _MAX_TENSORS, "tensors")
    cursor.check_count(pair_count, _SMALLEST_PAIR, _MAX_KEYS, "keys")
    values = _values(cursor, pair_count)
    alignment = _alignment(values, cursor)
    tensors = _tensors(cursor, tensor_count, alignment)
    data_offset = _padded(cursor.position, alignment)
    if tensors:
        _check_end(path, file_bytes, data_offset + tensors[-1].offset + tensors[-1].size_bytes)
    return Header(path, version, values, tensors, alignment, data_offset, file_bytes)


def invalid(path: str, problem: str) -> InvalidGGUF:
    """The error for a damaged file: ``problem`` completes the sentence."""
    return InvalidGGUF(f"{path} is not a sound GGUF file: {problem}", _AGAIN, path)


class _Cursor:
    """A place in the file, a window of bytes around it, and what is left of each limit."""

    def __init__(self, read: Reader, file_bytes: int, path: str) -> None:
        self.path = path
        self.place = "the header"
        self.file_bytes = file_bytes
        self._read = read
        self._window = b""
        self._window_offset = 0
        self._at = 0
        self._block_bytes = _FIRST_BLOCK_BYTES
        self._items_left = _MAX_ITEMS
        self._kept_left = _MAX_KEPT_BYTES

    @property
    def position(self) -> int:
        return self._window_offset + self._at

    def invalid(self, problem: str) -> InvalidGGUF:
        return invalid(self.path, f"{self.place} {problem} (byte {self.position})")

    def start(self, length: int) -> bytes:
        """The first bytes of the file, as many as there are up to ``length``."""
        self._require(min(length, self.file_bytes))
        return self._window[:length]

    def number(self, layout: Struct) -> int:
        self._require(layout.size)
        value: int = layout.unpack_from(self._window, self._at)[0]
        self._at += layout.size
        return value

    def fields(self, layout: Struct) -> tuple[int, ...]:
        self._require(layout.size)
        values = layout.unpack_from(self._window, self._at)
        self._at += layout.size
        return values

    def take(self, length: int) -> bytes:
        """The next bytes, charged against what may be kept."""
        self.charge_kept(length)
        self._require(length)
        self._at += length
        return self._window[self._at - length : self._at]

    def name(self, longest: int) -> str:
        """A key or a tensor's name."""
        length = self.number(_U64)
        if not 1 <= length <= longest:
            raise self.invalid(f"has a name of {length} bytes, where 1 to {longest} are allowed")
        raw = self.take(length)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.invalid("has a name that is not UTF-8") from None

    def skip(self, length: int) -> None:
        if length > self.file_bytes - self.position:
            raise self._too_short(length)
        self._at += length

    def skip_strings(self, count: int) -> None:
        """Pass ``count`` strings: 0.1 µs each, so that a vocabulary costs 10 to 50 ms."""
        length_at = _U64.unpack_from
        while count:
            self._require(8)
            window, at, last = self._window, self._at, len(self._window) - 8
            for done in range(count):  # noqa: B007 - it tells how many were passed
                if at > last:
                    break
                at += 8 + length_at(window, at)[0]
            else:
                done = count
            count -= done
            self.skip(at - self._at)

    def check_count(self, count: int, smallest_bytes: int, most: int, what: str) -> None:
        """Refuse a count that the rest of the file cannot hold, or that no real model has."""
        left = self.file_bytes - self.position
        if count * smallest_bytes > left:
            raise self.invalid(f"claims {count} {what}, and only {left} bytes are left")
        if count > most:
            raise self.invalid(f"claims {count} {what}, more than the {most} that are read")

    def charge_kept(self, length: int) -> None:
        self._kept_left -= length
        if self._kept_left < 0:
            raise self.invalid(f"brings texts and lists to more than {_MAX_KEPT_BYTES} bytes")

    def charge_items(self, count: int, smallest_bytes: int) -> None:
        self.check_count(count, smallest_bytes, self._items_left, "array items")
        self._items_left -= count

    def _require(self, length: int) -> None:
        """Make the next ``length`` bytes available in the window."""
        if self._at + length <= len(self._window):
            return
        offset = self.position
        if length > self.file_bytes - offset:
            raise self._too_short(length)
        if offset + length > _MAX_HEADER_BYTES:
            raise self.invalid(f"lies beyond the first {_MAX_HEADER_BYTES} bytes")
        wanted = min(max(length, self._block_bytes), self.file_bytes - offset)
        self._window = b""  # frees the old block before the new one comes
        self._window = self._read(offset, wanted)
        self._window_offset, self._at = offset, 0
        self._block_bytes = min(2 * self._block_bytes, _LARGEST_BLOCK_BYTES)
        if len(self._window) < wanted:
            raise self.invalid(f"ends early: {len(self._window)} of {wanted} bytes could be read")

    def _too_short(self, length: int) -> InvalidGGUF:
        left = self.file_bytes - self.position
        return self.invalid(f"claims {length} bytes, and only {left} are left")


def _version(cursor: _Cursor) -> int:
    start = cursor.start(64)
    if not start:
        raise InvalidGGUF(f"{cursor.path} is empty", _AGAIN, cursor.path)
    if not start.startswith(b"GGUF"):
        raise _stranger(start, cursor.path)
    cursor.skip(4)
    version = cursor.number(_U32)
    if version == 0:
        raise cursor.invalid("has the version 0")
    if version & 0xFFFF == 0:
        raise UnsupportedFile(
            f"{cursor.path} is a big-endian GGUF", "look for a little-endian one", cursor.path
        )
    if version == 1:
        raise UnsupportedFile(
            f"{cursor.path} is a GGUF of version 1, which llama.cpp no longer reads",
            "look for a newer file of this model",
            cursor.path,
        )
    if version > 3:
        raise UnsupportedFile(
            f"{cursor.path} is a GGUF of version {version}; versions 2 and 3 are read",
            "update localllama; if that does not help, the file is damaged",
            cursor.path,
        )
    return version


def _stranger(start: bytes, path: str) -> BadFile:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip() or start
    for magic, what, hint in STRANGERS:
        if text.startswith(magic):
            return InvalidGGUF(f"{path} is {what}", hint, path)
    if start[8:9] == b"{":
        return InvalidGGUF(
            f"{path} is a safetensors file", "give the folder of the checkpoint instead", path
        )
    return invalid(path, f"it begins with {start[:4]!r} instead of b'GGUF'")


def _values(cursor: _Cursor, count: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for index in range(count):
        cursor.place = f"key {index + 1} of {count}"
        key = cursor.name(_LONGEST_KEY)
        cursor.place = f"the key {key[:80]!r}"
        if key in values:
            raise cursor.invalid("occurs twice")
        kind = cursor.number(_U32)
        values[key] = _array(cursor) if kind == _ARRAY else _single(cursor, kind)
    return values


def _single(cursor: _Cursor, kind: int) -> Value:
    if kind == _STRING:
        length = cursor.number(_U64)
        if length > _LONGEST_KEPT_STRING:
            cursor.skip(length)
            return Value("string", None, length)
        return Value("string", cursor.take(length).decode(errors="replace"), length)
    name, layout = _scalar(cursor, kind)
    return Value(name, _number(cursor, name, layout))


def _array(cursor: _Cursor) -> Value:
    kind, count = cursor.number(_U32), cursor.number(_U64)
    if kind == _STRING:
        cursor.charge_items(count, 8)
        if count > 8:
            cursor.skip_strings(count)
            return Value("string", None, count, is_array=True)
        strings = tuple(_single(cursor, _STRING).shown() for _ in range(count))
        return Value("string", strings, count, is_array=True)
    name, layout = _scalar(cursor, kind)
    cursor.charge_items(count, layout.size)
    if count > _LONGEST_KEPT_ARRAY:
        cursor.skip(count * layout.size)
        return Value(name, None, count, is_array=True)
    cursor.charge_kept(count * _KEPT_ITEM_BYTES)
    items = tuple(_number(cursor, name, layout) for _ in range(count))
    return Value(name, items, count, is_array=True)


def _scalar(cursor: _Cursor, kind: int) -> tuple[str, Struct]:
    if kind not in _SCALARS:
        raise cursor.invalid(f"has the value type {kind}, which does not exist here")
    return _SCALARS[kind]


def _number(cursor: _Cursor, name: str, layout: Struct) -> int | float | bool:
    number = cursor.number(layout)
    if name != "bool":
        return number
    if number > 1:
        raise cursor.invalid(f"is a bool with the value {number}")
    return bool(number)


def _alignment(values: dict[str, Value], cursor: _Cursor) -> int:
    value = values.get("general.alignment", Value("u32", 32))
    cursor.place = "the key 'general.alignment'"
    if value.kind != "u32" or not isinstance(value.data, int):
        raise cursor.invalid("is not a u32")
    if value.data.bit_count() != 1:
        raise cursor.invalid(f"is {value.data}, not a power of two")
    return value.data


def _tensors(cursor: _Cursor, count: int, alignment: int) -> tuple[TensorInfo, ...]:
    """Read the list; llama.cpp wants the data in the same order without gaps, so we do too."""
    tensors: list[TensorInfo] = []
    names: set[str] = set()
    expected_offset = 0
    for index in range(count):
        cursor.place = f"tensor {index + 1} of {count}"
        tensor = _tensor(cursor)
        if tensor.name in names:
            raise cursor.invalid("occurs twice")
        if tensor.offset != expected_offset:
            raise cursor.invalid(f"is at offset {tensor.offset} instead of {expected_offset}")
        names.add(tensor.name)
        tensors.append(tensor)
        expected_offset = _padded(expected_offset + tensor.size_bytes, alignment)
    return tuple(tensors)


def _tensor(cursor: _Cursor) -> TensorInfo:
    name = cursor.name(_LONGEST_TENSOR_NAME)
    cursor.place = f"the tensor {name!r}"
    dimensions = cursor.number(_U32)
    if not 1 <= dimensions <= 4:
        raise cursor.invalid(f"has {dimensions} dimensions, where 1 to 4 are allowed")
    shape = tuple(cursor.number(_U64) for _ in range(dimensions))
    if 0 in shape or prod(shape) > _LARGEST_ELEMENTS:
        raise cursor.invalid(f"has the impossible shape {shape}")
    type_number, offset = cursor.fields(_TENSOR_TAIL)
    if type_number not in TENSOR_TYPES:
        raise _unknown_type(cursor, type_number)
    kind = TENSOR_TYPES[type_number]
    if shape[0] % kind.block_elements:
        raise cursor.invalid(
            f"has rows of {shape[0]} elements, but {kind.name} comes in blocks of "
            f"{kind.block_elements}"
        )
    size_bytes = prod(shape) // kind.block_elements * kind.block_bytes
    return TensorInfo(name, shape, kind.name, offset, size_bytes)


def _unknown_type(cursor: _Cursor, number: int) -> UnsupportedFile:
    removed = REMOVED_TENSOR_TYPES.get(number)
    if removed:
        problem, hint = f"the type {removed}, which llama.cpp dropped", "look for another GGUF file"
    else:
        problem = f"the unknown type {number}"
        hint = "update localllama; if that does not help, the file is damaged"
    return UnsupportedFile(f"{cursor.path}: {cursor.place} has {problem}", hint, cursor.path)


def _check_end(path: str, file_bytes: int, needed_bytes: int) -> None:
    if needed_bytes > file_bytes:
        missing = needed_bytes - file_bytes
        raise InvalidGGUF(
            f"{path} is cut: {missing} bytes are missing of {needed_bytes}", _AGAIN, path
        )


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment

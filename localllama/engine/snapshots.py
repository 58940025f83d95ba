"""KV states of conversations on disk; knows files and tokens, not what a state says.

A file ``<key>-<digest of the tokens>.kv`` holds, after 8 bytes of magic, the length and the CRC-32
of its header (4 bytes each), the header (msgpack) and the state. ``key`` is a digest of all that a
state depends on besides its tokens. Whatever does not match is removed and read as if it had never
been there, so nothing here waits for the disk (fsync): what a power cut spoils is read again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import psutil

_MAGIC = b"llkv\x00\x00\x00\x01"
_PREFIX = struct.Struct("<8sII")
_T = TypeVar("_T")
_LARGEST_SHARE = 10  # a tenth of what is free at most: the disk belongs to the user


class _Header(msgspec.Struct, frozen=True):
    key: str
    conversation: str
    tokens: bytes  # 4 each, in this machine's order: states do not travel
    state_bytes: int
    state_crc: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state on disk: of which ``tokens``, and of which conversation ("" = nobody said)."""

    path: Path
    tokens: Sequence[int]
    conversation: str
    state_bytes: int


class Snapshots:
    """The snapshots of one ``key`` in ``folder``, in which all keys share ``limit_bytes``.

    0 = none are kept. ``log`` gets a line for what is dropped. Several processes may use a folder.
    """

    def __init__(
        self, folder: Path, limit_bytes: int, key: str, log: Callable[[str], object]
    ) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._key = key
        self._log = log
        self._known: dict[Path, Snapshot] = {}

    @property
    def limit_bytes(self) -> int:
        """How large a snapshot may be."""
        return self._limit_bytes

    def all(self) -> list[Snapshot]:
        """Return those that are there; damaged ones are removed."""
        paths = self._folder.glob(f"{self._key}-*.kv") if self._limit_bytes else ()
        self._known = {path: known for path in paths if (known := self._look(path))}
        return list(self._known.values())

    def save(self, tokens: Sequence[int], conversation: str, state: memoryview) -> bool:
        """Write a snapshot, and remove those that it goes on from; False when it cannot be kept."""
        raw = array("i", tokens).tobytes()
        header = msgspec.msgpack.encode(
            _Header(self._key, conversation, raw, len(state), zlib.crc32(state))
        )
        prefix = _PREFIX.pack(_MAGIC, len(header), zlib.crc32(header))
        path = self._folder / f"{self._key}-{hashlib.sha256(raw).hexdigest()[:24]}.kv"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._make_room(len(prefix) + len(header) + len(state)):
                return False
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.writelines((prefix, header, state))
            temporary.replace(path)
        except OSError as error:
            self._log(f"snapshots: cannot write {path.name}: {error.strerror}\n")
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return False
        self._supersede(path, raw)
        return True

    def open(self, snapshot: Snapshot) -> memoryview | None:
        """Return the state of a snapshot, checked; None when it is gone, damaged or another one.

        The memory is the system's copy of the file, which stays whatever becomes of the file.
        """
        return self._read(snapshot.path, lambda file: self._state(file, snapshot))

    def drop(self, path: Path, why: str) -> None:
        """Remove a snapshot that is of no use."""
        self._log(f"snapshots: {path.name} is dropped: {why}\n")
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def _look(self, path: Path) -> Snapshot | None:
        return self._known.get(path) or self._read(path, self._snapshot)

    def _read(self, path: Path, read: Callable[[BinaryIO], _T]) -> _T | None:
        """Return what ``read`` makes of a file; None without one, or when it was dropped."""
        try:
            with path.open("rb") as file:
                return read(file)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            self.drop(path, str(error))
        return None

    def _snapshot(self, file: BinaryIO) -> Snapshot:
        header, begin = _read_header(file)
        size_bytes = os.fstat(file.fileno()).st_size
        if header.key != self._key or size_bytes != begin + header.state_bytes:
            raise ValueError("it is cut, or of something else")
        tokens = array("i", header.tokens)
        return Snapshot(Path(file.name), tokens, header.conversation, header.state_bytes)

    def _state(self, file: BinaryIO, snapshot: Snapshot) -> memoryview:
        header, begin = _read_header(file)
        state = memoryview(mmap(file.fileno(), 0, access=ACCESS_COPY))[begin:]
        expected = (self._key, array("i", snapshot.tokens).tobytes(), len(state))
        if (header.key, header.tokens, header.state_bytes) != expected:
            raise ValueError("it is cut, or of something else")
        if zlib.crc32(state) != header.state_crc:
            raise ValueError("it is damaged")
        os.utime(file.fileno())  # the least recently used goes first
        return state

    def _make_room(self, size_bytes: int) -> bool:
        """Remove the least recently used until a file of that size is within the limit."""
        for path in self._folder.glob(".*.kv.*.tmp"):
            writer = path.suffixes[-2][1:]
            if not (writer.isdecimal() and psutil.pid_exists(int(writer))):  # killed meanwhile
                path.unlink(missing_ok=True)
        found = sorted(_stats(self._folder), key=lambda item: item[1].st_mtime_ns)
        used = sum(stat.st_size for _, stat in found)
        free = shutil.disk_usage(self._folder).free
        limit = min(self._limit_bytes, (free + used) // _LARGEST_SHARE)
        if size_bytes > limit:
            return False
        for path, stat in found:
            if used + size_bytes <= limit:
                break
            path.unlink(missing_ok=True)
            used -= stat.st_size
        return True

    def _supersede(self, path: Path, raw: bytes) -> None:
        for older in self.all():
            if older.path != path and raw.startswith(array("i", older.tokens).tobytes()):
                older.path.unlink(missing_ok=True)


def files(folder: Path) -> list[tuple[Path, int]]:
    """Return the files in ``folder``, unfinished ones included, and their sizes in bytes."""
    return [(path, stat.st_size) for path, stat in _stats(folder)]


def forget(folder: Path, conversation: str) -> None:
    """Remove the snapshots of a conversation; raises OSError."""
    remove(path for path, _ in files(folder) if _conversation(path) == conversation)


def remove(paths: Iterable[Path]) -> None:
    """Remove snapshots, if they are still there; raises OSError."""
    for path in paths:
        path.unlink(missing_ok=True)


def _conversation(path: Path) -> str | None:
    with suppress(OSError, ValueError), path.open("rb") as file:
        return _read_header(file)[0].conversation
    return None


def _stats(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in (*folder.glob("*.kv"), *folder.glob(".*.kv.*.tmp")):
        with suppress(FileNotFoundError):  # another process was quicker
            yield path, path.stat()


def _read_header(file: BinaryIO) -> tuple[_Header, int]:
    """Return the header of a file and where its state begins; raises ValueError."""
    start = file.read(_PREFIX.size)
    if len(start) < _PREFIX.size:
        raise ValueError("it is cut")
    magic, length, crc = _PREFIX.unpack(start)
    if magic != _MAGIC or length > os.fstat(file.fileno()).st_size:
        raise ValueError("it is no snapshot, or one of another version")
    data = file.read(length)
    if zlib.crc32(data) != crc:
        raise ValueError("its header is damaged")
    try:
        header = msgspec.msgpack.decode(data, type=_Header)
    except msgspec.MsgspecError as error:
        raise ValueError("it is of another version") from error
    return header, _PREFIX.size + length

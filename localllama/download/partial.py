"""A download that outlives its process: the bytes so far and a journal of which they are.

    <key>.part   the data, with holes where pieces are missing
    <key>.map    one line of JSON (url, size, etag, sha256), then 16 bytes for every piece written:
                 offset (8), length (4), CRC-32 (4), little-endian
    <key>.done   a verified file that waits to be taken into the store
    <key>.lock   held by the process that downloads

A record is appended after its piece was written, in one write, so a killed process loses no more
than the pieces it held in memory. Nothing is synced on the way: after a power cut the CRCs tell
which pieces did not reach the disk, and only those are fetched again.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
import zlib
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock, Timeout

from localllama.errors import StoreError
from localllama.files import storing, write_atomic

_RECORD = struct.Struct("<QII")
_READ_BYTES = 1 << 20

Span = tuple[int, int]  # first byte, one past the last


@dataclass(frozen=True, slots=True)
class Header:
    """What a download is of; ``size`` -1 and empty texts while unknown. ``url`` has no query."""

    url: str = ""
    size: int = -1
    etag: str = ""
    sha256: str = ""


def key_of(url: str, sha256: str) -> str:
    """Return what a resumed download is found by: its digest, else its address."""
    return sha256 or hashlib.sha256(without_query(url).encode()).hexdigest()


def without_query(url: str) -> str:
    """Return ``url`` less its query, which may hold a signature and differs from day to day."""
    return urlunsplit(urlsplit(url)._replace(query="", fragment=""))


def gaps(spans: Iterable[Span], start: int, stop: int) -> list[Span]:
    """Return what ``spans`` leave uncovered between ``start`` and ``stop``.

    >>> gaps([(2, 4), (3, 6)], 0, 8)
    [(0, 2), (6, 8)]
    """
    found = []
    for first, end in sorted(spans):
        if first >= stop:
            break
        if first > start:
            found.append((start, first))
        start = max(start, end)
    if start < stop:
        found.append((start, stop))
    return found


class PartialFile:
    """The files of one download, open for writing; the caller holds the lock. Safe for threads."""

    def __init__(self, folder: Path, key: str) -> None:
        self.done_path = folder / f"{key}.done"
        self._data_path = folder / f"{key}.part"
        self._map_path = folder / f"{key}.map"
        self._lock = threading.Lock()
        self._closed = False
        with storing(folder):
            self._data_path.touch()
            self._data = FileIO(self._data_path, "r+b")
            size = self._data_path.stat().st_size
        self.header, records = _read_map(self._map_path)
        self._pieces: dict[int, tuple[int, int]] = {}  # offset -> (length, CRC-32)
        self._covered: list[Span] = []
        for offset, length, crc in records:
            # A record that cannot be true comes from a damaged journal: the piece is fetched again.
            if (
                length
                and offset + length <= size
                and self._missing(offset, offset + length) == [(offset, offset + length)]
            ):
                self._note(offset, length, crc)
        self._map = self._new_map()

    @property
    def done_bytes(self) -> int:
        """How many bytes are there."""
        with self._lock:
            return sum(stop - start for start, stop in self._covered)

    @property
    def complete(self) -> bool:
        """Whether all bytes are there (not: verified)."""
        return self.done_bytes == self.header.size

    def missing(self, claimed: Iterable[Span] = ()) -> list[Span]:
        """Return the spans that are neither there nor ``claimed``; the size must be known."""
        with self._lock:
            return gaps([*self._covered, *claimed], 0, self.header.size)

    def write(self, offset: int, data: bytes) -> None:
        """Keep what of ``data`` is not there yet; raises DiskFull or StoreError."""
        with self._lock, storing(self._data_path):
            if self._closed:  # a thread that woke up too late: the file may be another's by now
                return
            for start, stop in self._missing(offset, offset + len(data)):
                piece = data[start - offset : stop - offset]
                self._data.seek(start)
                view = memoryview(piece)
                while view:
                    view = view[self._data.write(view) :]
                crc = zlib.crc32(piece)
                self._map.write(_RECORD.pack(start, len(piece), crc))
                self._note(start, len(piece), crc)

    def describe(self, header: Header) -> None:
        """Replace the header and keep the pieces."""
        with self._lock:
            self.header = header
            self._renew_map()

    def restart(self) -> None:
        """Forget every piece, because the remote file is another one now."""
        with self._lock, storing(self._data_path):
            self._data.truncate(0)
            self._pieces, self._covered, self.header = {}, [], Header()
            self._renew_map()

    def verify(self) -> Generator[int, None, tuple[str, int]]:
        """Read everything once; return the sha256 and how many bytes differ from what was written.

        Pieces that differ are forgotten, so that they count as missing. Yields bytes read.
        """
        digest, bad = hashlib.sha256(), []
        done = 0
        for offset, (length, crc) in sorted(self._pieces.items()):
            with storing(self._data_path):
                self._data.seek(offset)
                piece = self._data.read(length)
            digest.update(piece)
            if zlib.crc32(piece) != crc:
                bad.append(offset)
            done += length
            yield done
        return digest.hexdigest(), self._forget(bad)

    def finish(self) -> Path:
        """Make the verified data durable under its ``.done`` name, and return that."""
        with storing(self._data_path):
            os.fsync(self._data.fileno())
            self._shut()
            self._data_path.replace(self.done_path)
            self._map_path.unlink()
        return self.done_path

    def discard(self) -> None:
        """Remove data that can never become right."""
        self._shut()
        with storing(self._data_path):
            self._data_path.unlink(missing_ok=True)
            self._map_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Keep the files, unless nothing arrived; writes from now on are ignored."""
        self._shut()
        if not self._covered:
            self.discard()

    def _shut(self) -> None:
        with self._lock:
            self._closed = True
            self._data.close()
            self._map.close()

    def _missing(self, start: int, stop: int) -> list[Span]:
        return gaps(self._covered, start, stop)

    def _note(self, offset: int, length: int, crc: int) -> None:
        self._pieces[offset] = (length, crc)
        self._covered = _merged([*self._covered, (offset, offset + length)])

    def _forget(self, offsets: list[int]) -> int:
        lost = sum(self._pieces.pop(offset)[0] for offset in offsets)
        if lost:
            pieces = self._pieces.items()
            self._covered = _merged((offset, offset + length) for offset, (length, _) in pieces)
            self._renew_map()
        return lost

    def _renew_map(self) -> None:
        self._map.close()
        self._map = self._new_map()

    def _new_map(self) -> FileIO:
        """Write the journal anew, a record for each piece, and open it for more."""
        with storing(self._map_path):
            records = (_RECORD.pack(at, *piece) for at, piece in self._pieces.items())
            line = json.dumps(asdict(self.header)).encode() + b"\n"
            write_atomic(self._map_path, line + b"".join(records))
            return FileIO(self._map_path, "ab")


def peek(folder: Path, key: str) -> tuple[Header, int]:
    """Return the header and the bytes done of a download that another process may be writing."""
    if (folder / f"{key}.done").exists():
        size = (folder / f"{key}.done").stat().st_size
        return Header(size=size), size
    header, records = _read_map(folder / f"{key}.map")
    return header, sum(length for _, length, _ in records)


def lock_of(folder: Path, key: str) -> FileLock:
    """Return the lock that whoever writes this download must hold."""
    return FileLock(folder / f"{key}.lock", thread_local=False)


def discard(folder: Path, key: str) -> None:
    """Remove one download; raises StoreError while a process works on it."""
    with storing(folder):
        try:
            with lock_of(folder, key).acquire(timeout=0):
                for suffix in ("part", "map", "done", "lock"):
                    (folder / f"{key}.{suffix}").unlink(missing_ok=True)
        except Timeout as error:
            raise StoreError(
                "this download is under way in another localllama", "stop that one first"
            ) from error


def _read_map(path: Path) -> tuple[Header, list[tuple[int, int, int]]]:
    """Return header and records of a journal; nothing of one that is missing or unreadable."""
    try:
        line, _, rest = path.read_bytes().partition(b"\n")
        header = Header(**json.loads(line))
    except FileNotFoundError:
        return Header(), []
    except (ValueError, TypeError):
        return Header(), []
    whole = len(rest) - len(rest) % _RECORD.size  # the last record may be torn
    return header, list(_RECORD.iter_unpack(rest[:whole]))


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged

"""Where a checkpoint's files are: headers come through a Source, weights from a DataFile.

A folder is a Source; so is a repository whose shards are still to come, which answers for headers
by ranged requests. Knows no file format beyond JSON.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from localllama.errors import BadFile

_LFS_POINTER, _LONGEST_POINTER = b"version https://git-lfs", 256
_LARGEST_TEXT = 64 << 20  # Llama 3's tokenizer.json, the largest known, has 17 MB

T = TypeVar("T")


class Source(Protocol):
    """The files of one checkpoint; names are relative, with ``/`` between folders."""

    @property
    def name(self) -> str:
        """What people call the checkpoint: its folder or repository."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Every file's size in bytes, by name."""
        ...

    def read(self, name: str, begin: int, end: int) -> bytes:
        """Return those bytes, all of them; raises what keeps them from coming."""
        ...

    def path(self, name: str) -> Path:
        """Where the file is, or will be once a tensor of it is read."""
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """A Source whose files are all there; ``files`` are their paths by name."""

    folder: Path
    files: Mapping[str, Path]
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, folder: Path) -> Folder:
        """Look at what ``folder`` and the folders below it hold; raises BadFile.

        Meta's download puts the tokenizer, which all sizes share, into the folder above.
        """
        shared = folder.resolve().parent / "tokenizer.model"
        try:
            found = [file for file in (*folder.iterdir(), *folder.glob("*/*")) if file.is_file()]
            files = {file.relative_to(folder).as_posix(): file for file in found}
            if "params.json" in files and shared.is_file():
                files.setdefault(shared.name, shared)
            sizes = {name: file.stat().st_size for name, file in files.items()}
            _check_pointers(files, sizes)
        except OSError as error:
            raise BadFile(f"cannot read {folder}: {error.strerror}", path=str(folder)) from error
        return cls(folder, files, sizes)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def read(self, name: str, begin: int, end: int) -> bytes:
        return DataFile(self.path(name), self.sizes[name]).read(begin, end - begin).tobytes()

    def path(self, name: str) -> Path:
        return self.files.get(name, self.folder / name)


def _check_pointers(files: Mapping[str, Path], sizes: Mapping[str, int]) -> None:
    """Raise BadFile if a repository was cloned without its large files."""
    for name, size in sizes.items():
        if size <= _LONGEST_POINTER and files[name].read_bytes().startswith(_LFS_POINTER):
            raise BadFile(
                f"{files[name]} only says where Git LFS keeps the file",
                f"run: git -C {files[name].parent} lfs pull",
                str(files[name]),
            )


@dataclass(slots=True)
class DataFile:
    """A file of weights, opened for each read: it may come late and must be free to go early.

    ``size_bytes`` is what its header was checked against.
    """

    path: Path
    size_bytes: int
    _seen: tuple[int, int] | None = None
    _lock: Lock = field(default_factory=Lock, repr=False)

    def read(self, offset: int, length: int) -> NDArray[np.uint8]:
        """Return those bytes; raises BadFile if the file is gone, cut or not what it was."""
        data = np.empty(length, np.uint8)
        view, done = data.data, 0
        try:
            with self.path.open("rb", buffering=0) as file:
                self._check_unchanged(os.fstat(file.fileno()))
                file.seek(offset)
                while done < length:
                    count = file.readinto(view[done:])
                    if not count:
                        raise self._changed()
                    done += count
        except OSError as error:
            raise BadFile(
                f"cannot read {self.path}: {error.strerror}", path=str(self.path)
            ) from error
        return data

    def _check_unchanged(self, now: os.stat_result) -> None:
        stamp = now.st_ino, now.st_mtime_ns
        with self._lock:
            self._seen = self._seen or stamp
            if now.st_size != self.size_bytes or self._seen != stamp:
                raise self._changed()

    def _changed(self) -> BadFile:
        return BadFile(
            f"{self.path} changed while it was read",
            "wait until whatever writes it has ended, and try again",
            str(self.path),
        )


def read_text(source: Source, name: str) -> bytes:
    """Return a small file; raises BadFile if it is missing or too large to be one."""
    if name not in source.sizes:
        raise bad(source, name, "is missing")
    size = source.sizes[name]
    if size > _LARGEST_TEXT:
        raise bad(source, name, f"has {size} bytes, more than any such file needs")
    return source.read(name, 0, size)


def read_json(source: Source, name: str, kind: type[T]) -> T:
    """Return what the JSON file says, checked against ``kind``; raises BadFile."""
    return decode_json(read_text(source, name), kind, source, name)


def read_optional_json(source: Source, name: str, kind: type[T]) -> T | None:
    """Return what the JSON file says, or None where there is none; raises BadFile."""
    return read_json(source, name, kind) if name in source.sizes else None


def decode_json(text: bytes, kind: type[T], source: Source, name: str) -> T:
    """Return what ``text``, taken from the file ``name``, says; raises BadFile."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad(source, name, f"is not sound: {error}") from error


def bad(source: Source, name: str, problem: str, hint: str = "") -> BadFile:
    """The error for the file ``name``: ``problem`` completes the sentence."""
    path = str(source.path(name))
    return BadFile(f"{path} {problem}", hint or "download or copy it again", path)

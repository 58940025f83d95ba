"""Writes a model as a GGUF file in one pass, whole or not at all, and hashes it meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localllama import gguf_file, hardware
from localllama.convert.digests import Digests
from localllama.convert.filling import fill
from localllama.convert.layout import Layout, check
from localllama.convert.model import Files
from localllama.convert.provenance import Input
from localllama.errors import BadFile, DiskFull, NotEnoughDisk, UsageProblem
from localllama.files import storing, sync_folder
from localllama.gguf_file import ModelInfo
from localllama.progress import Progress


@dataclass(frozen=True, slots=True)
class Written:
    """A finished file: what it is, its sha256, and those of the inputs by name."""

    info: ModelInfo
    sha256: str
    inputs: dict[str, str]


class LocalFiles:
    """Files that are all here and stay."""

    def need(self, name: str) -> None:
        """Nothing to wait for."""

    def done(self, name: str) -> None:
        """Nothing to remove."""


def write(
    layout: Layout, out: Path, *, threads: int, files: Files | None = None
) -> Generator[Progress, None, Written]:
    """Write the planned file to ``out``, whole or not at all; yields Progress.

    Raises InvalidParameter, UsageProblem and NotEnoughDisk before anything is written, BadFile for
    weights that the type cannot hold or inputs that changed, DiskFull, StoreError, and what
    ``files`` and the reader raise.
    """
    check(layout)
    _check_place(layout, out)
    before = {file.name: _stamp(file) for file in layout.origin.inputs}
    with _temporary(out) as (path, handle):
        with storing(out):
            os.ftruncate(handle, layout.file_bytes)
        with Digests(
            layout.origin.inputs, handle, path, layout.file_bytes, layout.header
        ) as digests:
            output = _Sparse(handle, path, digests)
            yield from fill(layout, output, out.name, files or LocalFiles(), threads=threads)
            yield Progress("verify", out.name, layout.file_bytes, layout.file_bytes)
            sha256, inputs = digests.result.result()
        for file in layout.origin.inputs:
            if before[file.name] != _stamp(file):
                raise BadFile(
                    f"{file.path} changed while it was converted",
                    "convert again when nothing writes to it",
                    str(file.path),
                )
        with storing(out):
            os.fsync(handle)
        info = gguf_file.read_info(path)
        with storing(out):
            path.replace(out)
            sync_folder(out.parent)
    return Written(info, sha256, inputs)


def _check_place(layout: Layout, out: Path) -> None:
    for file in layout.origin.inputs:
        if out.exists() and file.path.exists() and out.samefile(file.path):
            raise UsageProblem(
                f"{out} is the file to convert", "choose another name for the result"
            )
    free, needed = hardware.free_disk_bytes(out.parent), layout.file_bytes
    if needed > free:
        raise NotEnoughDisk(
            f"{out.name} needs {needed / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free",
            "free some space, or choose a smaller quantization type",
            needed_bytes=needed,
            available_bytes=free,
        )


def _stamp(file: Input) -> tuple[int, int]:
    """What changes when a file is written to; a file that comes and goes has none."""
    with contextlib.suppress(OSError):
        status = file.path.stat()
        return (status.st_size, status.st_mtime_ns) if not file.sha256 else (0, 0)
    return (0, 0)


@contextlib.contextmanager
def _temporary(out: Path) -> Iterator[tuple[Path, int]]:
    """A new file beside ``out``, gone at the end unless it was renamed."""
    path = out.with_name(f".{out.name[:100]}.{os.getpid()}.tmp")
    with storing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        yield path, handle
    except DiskFull as error:
        error.hint = "free some space and convert again: nothing of this attempt was kept"
        raise
    finally:
        os.close(handle)
        path.unlink(missing_ok=True)


def _sweep(out: Path) -> None:
    """Remove what killed conversions to the same file have left."""
    import psutil

    for left in out.parent.glob(f".{out.name[:100]}.*.tmp"):
        owner = left.name.split(".")[-2]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            left.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Sparse:
    """A file that is written anew: what is not put are zeros."""

    handle: int
    path: Path
    digests: Digests

    def has(self, begin: int, end: int) -> bool:
        return False

    def put(self, begin: int, end: int, blocks: NDArray[np.uint8]) -> None:
        with storing(self.path):
            _write_all(self.handle, blocks, begin)
        self.digests.written(begin, end)


def _write_all(handle: int, blocks: NDArray[np.uint8], offset: int) -> None:
    """Write an array at its place; the system may take less than it is given."""
    rest = blocks.data
    while rest:
        count = os.pwrite(handle, rest, offset)
        rest, offset = rest[count:], offset + count

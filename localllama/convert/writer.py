"""Writes a model as a GGUF file in one pass: plan it all, then read, quantize and write pieces.

Threads take pieces of a million elements, each through all three steps, so that one waits for the
disk while another computes; memory is a few pieces, whatever the size of the model.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localllama import gguf_file, hardware
from localllama.convert import types
from localllama.convert.digests import Digests
from localllama.convert.gguf_output import padded
from localllama.convert.layout import Layout, check
from localllama.convert.model import Files, Rows, Tensor
from localllama.convert.provenance import Input
from localllama.errors import BadFile, DiskFull, NotEnoughDisk, UsageProblem
from localllama.files import storing, sync_folder
from localllama.gguf_file import ModelInfo
from localllama.gguf_header import TensorInfo
from localllama.native.quantizer import Quantizer
from localllama.progress import Progress

_PIECE_ELEMENTS = 1 << 20
_SHOW_SECONDS = 0.1


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
        work = _Work(layout, handle, path, files or LocalFiles(), out.name)
        with Digests(
            layout.origin.inputs, handle, path, layout.file_bytes, layout.header
        ) as digests:
            yield from work.run(digests, threads)
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
class _Piece:
    """Rows of a tensor that one thread takes; they never cross from one expert to the next."""

    tensor: Tensor
    info: TensorInfo
    begin: int
    end: int
    importance: NDArray[np.float32] | None
    is_last: bool


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of a piece: its place in the file, and a sentence where weights are odd."""

    begin: int
    end: int
    warning: str


class _Work:
    """One conversion under way."""

    def __init__(self, layout: Layout, handle: int, path: Path, files: Files, name: str) -> None:
        self._layout = layout
        self._handle, self._path, self._files, self._name = handle, path, files, name
        self._quantizers = {
            kind: Quantizer(types.NUMBERS[kind])
            for kind in {info.type for _, info in layout.tensors}
        }

    def run(self, digests: Digests, threads: int) -> Generator[Progress, None, None]:
        """Convert every tensor; yields Progress."""
        pool = ThreadPoolExecutor(threads, "convert")
        pending: deque[tuple[_Piece, Future[_Done]]] = deque()
        meter = _Meter(self._name, self._layout)
        try:
            for piece in self._pieces():
                while len(pending) > 2 * threads:
                    yield from self._settle(pending, digests, meter)
                pending.append((piece, pool.submit(self._convert, piece)))
            while pending:
                yield from self._settle(pending, digests, meter)
        finally:
            pool.shutdown(cancel_futures=True)

    def _settle(
        self, pending: deque[tuple[_Piece, Future[_Done]]], digests: Digests, meter: _Meter
    ) -> Generator[Progress, None, None]:
        """Wait for the oldest piece."""
        piece, future = pending[0]
        wait([future])
        pending.popleft()
        done = future.result()
        digests.written(done.begin, done.end)
        if piece.is_last:
            self._release(piece.tensor)
        yield from meter.count(piece.tensor.name, done)

    def _pieces(self) -> Iterator[_Piece]:
        """All pieces; file by file of the source, as one may have to be fetched."""
        first_seen: dict[str, int] = {}
        for tensor in self._layout.model.tensors:
            for file in tensor.files:
                first_seen.setdefault(file, len(first_seen))
        self._uses = Counter(file for tensor, _ in self._layout.tensors for file in tensor.files)

        def order(item: tuple[Tensor, TensorInfo]) -> tuple[int, int]:
            return max((first_seen[file] for file in item[0].files), default=0), item[1].offset

        for tensor, info in sorted(self._layout.tensors, key=order):
            for file in tensor.files:
                self._files.need(file)
            yield from _split(tensor, info, self._layout)

    def _release(self, tensor: Tensor) -> None:
        for file in tensor.files:
            self._uses[file] -= 1
            if not self._uses[file]:
                self._files.done(file)

    def _convert(self, piece: _Piece) -> _Done:
        """Read, quantize and write one piece; runs in a thread."""
        tensor, info = piece.tensor, piece.info
        quantizer, warning = self._quantizers[info.type], ""
        if tensor.copy and tensor.type == info.type and info.type not in types.PLAIN:
            blocks = tensor.copy(piece.begin, piece.end)
        else:
            rows = tensor.read(piece.begin, piece.end)
            warning = _check_weights(tensor, rows, info.type)
            blocks = quantizer.quantize(rows, piece.importance)
        if info.type not in types.PLAIN and not quantizer.is_valid(blocks):
            raise BadFile(
                f"{tensor.name} holds weights that are too large for {info.type}",
                "choose F32 or BF16, or another source",
                ", ".join(tensor.files),
            )
        row_bytes = blocks.nbytes // (piece.end - piece.begin)
        begin = self._layout.data_offset + info.offset + piece.begin * row_bytes
        with storing(self._path):
            _write_all(self._handle, blocks, begin)
        end = begin + blocks.nbytes
        return _Done(begin, padded(end) if piece.is_last else end, warning)


def _split(tensor: Tensor, info: TensorInfo, layout: Layout) -> Iterator[_Piece]:
    importance = layout.recipe.importance
    weights = importance.of(tensor) if importance and info.type != tensor.type else None
    total = prod(tensor.shape[:-1])
    matrix_rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    step = max(1, _PIECE_ELEMENTS // tensor.shape[-1])
    for first in range(0, total, matrix_rows):
        last = first + matrix_rows
        row = None if weights is None else weights[first // matrix_rows]
        for begin in range(first, last, step):
            end = min(begin + step, last)
            yield _Piece(tensor, info, begin, end, row, end == total)


def _check_weights(tensor: Tensor, rows: Rows, kind: str) -> str:
    """Return a warning about weights that are no finite numbers; raises BadFile.

    Only plain floats can hold them: the blocks of other types would be garbage.
    """
    if np.isfinite(rows).all():
        if kind == "F16" and np.abs(rows).max() > np.finfo(np.float16).max:
            return f"{tensor.name} holds weights that are infinite as F16: BF16 can hold them"
        return ""
    where = ", ".join(tensor.files)
    if kind in types.PLAIN:
        return f"{tensor.name} holds weights that are infinite or no numbers ({where})"
    raise BadFile(
        f"{tensor.name} holds weights that are infinite or no numbers ({where}), which {kind} "
        "cannot hold",
        "the checkpoint is damaged or its training failed: look for another one",
        where,
    )


def _write_all(handle: int, blocks: NDArray[np.uint8], offset: int) -> None:
    """Write an array at its place; the system may take less than it is given."""
    rest = blocks.data
    while rest:
        count = os.pwrite(handle, rest, offset)
        rest, offset = rest[count:], offset + count


class _Meter:
    """Turns finished pieces into Progress, a few times a second and where there is news."""

    def __init__(self, name: str, layout: Layout) -> None:
        self._name = name
        self._done = layout.data_offset
        self._total = layout.file_bytes
        self._began = time.monotonic()
        self._due = 0.0
        self._warned: set[str] = set()

    def count(self, tensor: str, piece: _Done) -> Iterator[Progress]:
        self._done += piece.end - piece.begin
        note = "" if tensor in self._warned else piece.warning
        if note:
            self._warned.add(tensor)
        now = time.monotonic()
        if note or now >= self._due or self._done == self._total:
            self._due = now + _SHOW_SECONDS
            speed = self._done / max(now - self._began, 1e-3)
            yield Progress(
                "convert", self._name, self._done, self._total, speed, note=note, detail=tensor
            )

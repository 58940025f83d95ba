"""Fills a planned file with tensors: reads, quantizes and writes the pieces that it lacks.

Threads take pieces of a million elements, each through all three steps, so that one waits for the
disk while another computes; memory is a few pieces, whatever the size of the model.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from localllama.convert import types
from localllama.convert.gguf_output import padded
from localllama.convert.layout import Layout
from localllama.convert.model import Files, Rows, Tensor
from localllama.errors import BadFile
from localllama.gguf_header import TensorInfo
from localllama.native.quantizer import Quantizer
from localllama.progress import Progress

_PIECE_ELEMENTS = 1 << 20
_SHOW_SECONDS = 0.1


class Output(Protocol):
    """Where finished blocks go, by their bytes in the file; threads put at the same time."""

    def has(self, begin: int, end: int) -> bool:
        """Whether these bytes are there from an earlier attempt."""
        ...

    def put(self, begin: int, end: int, blocks: NDArray[np.uint8]) -> None:
        """Write ``blocks`` at ``begin``, and zeros after them up to ``end``."""
        ...


def fill(
    layout: Layout, output: Output, name: str, files: Files, *, threads: int
) -> Generator[Progress, None, None]:
    """Bring the blocks of every tensor that ``output`` lacks into it; yields Progress of ``name``.

    Raises BadFile for weights that the type cannot hold, and what the three others raise.
    """
    yield from _Work(layout, output, files, name).run(threads)


def missing_files(layout: Layout, output: Output) -> tuple[str, ...]:
    """Return the source files that ``fill`` will need, in the order in which it needs them."""
    files = (
        file
        for tensor, info in _by_file(layout)
        if _missing(tensor, info, layout, output)
        for file in tensor.files
    )
    return tuple(dict.fromkeys(files))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of a tensor that one thread takes; they never cross from one expert to the next.

    They come to lie from byte ``first`` up to ``stop`` of the output, padding included.
    """

    tensor: Tensor
    info: TensorInfo
    begin: int
    end: int
    first: int
    stop: int
    importance: NDArray[np.float32] | None
    is_last: bool = False

    @property
    def size_bytes(self) -> int:
        return self.stop - self.first


class _Work:
    """One conversion under way."""

    def __init__(self, layout: Layout, output: Output, files: Files, name: str) -> None:
        self._layout = layout
        self._output, self._files = output, files
        self._meter = _Meter(name, layout)
        self._here: set[str] = set()
        self._uses = Counter(file for tensor, _ in layout.tensors for file in tensor.files)
        self._quantizers = {
            kind: Quantizer(types.NUMBERS[kind])
            for kind in {info.type for _, info in layout.tensors}
        }

    def run(self, threads: int) -> Generator[Progress, None, None]:
        """Convert every tensor; yields Progress."""
        pool = ThreadPoolExecutor(threads, "convert")
        pending: deque[tuple[_Piece, Future[str]]] = deque()
        try:
            for tensor, pieces in self._tensors():
                if not self._here.issuperset(tensor.files):
                    # Files that are done with go first: there may be no room for both.
                    while pending:
                        yield from self._settle(pending)
                    self._need(tensor)
                for piece in pieces:
                    while len(pending) > 2 * threads:
                        yield from self._settle(pending)
                    pending.append((piece, pool.submit(self._convert, piece)))
            while pending:
                yield from self._settle(pending)
        finally:
            pool.shutdown(cancel_futures=True)

    def _settle(self, pending: deque[tuple[_Piece, Future[str]]]) -> Iterator[Progress]:
        """Wait for the oldest piece."""
        piece, future = pending[0]
        wait([future])
        pending.popleft()
        warning = future.result()
        if piece.is_last:
            self._release(piece.tensor)
        yield from self._meter.count(piece, warning)

    def _tensors(self) -> Iterator[tuple[Tensor, list[_Piece]]]:
        """The tensors that are not whole yet, file by file of the source, and what they lack."""
        for tensor, info in _by_file(self._layout):
            pieces = _missing(tensor, info, self._layout, self._output)
            self._meter.skip(padded(info.size_bytes) - sum(piece.size_bytes for piece in pieces))
            if pieces:
                yield tensor, [*pieces[:-1], replace(pieces[-1], is_last=True)]
            else:
                self._release(tensor)

    def _need(self, tensor: Tensor) -> None:
        for file in tensor.files:
            self._files.need(file)
            self._here.add(file)

    def _release(self, tensor: Tensor) -> None:
        for file in tensor.files:
            self._uses[file] -= 1
            if not self._uses[file]:
                self._files.done(file)

    def _convert(self, piece: _Piece) -> str:
        """Read, quantize and write one piece, in a thread; a sentence where weights are odd."""
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
        self._output.put(piece.first, piece.stop, blocks)
        return warning


def _by_file(layout: Layout) -> list[tuple[Tensor, TensorInfo]]:
    """The tensors, file by file of the source, as one may have to be fetched."""
    first_seen: dict[str, int] = {}
    for tensor in layout.model.tensors:
        for file in tensor.files:
            first_seen.setdefault(file, len(first_seen))

    def order(item: tuple[Tensor, TensorInfo]) -> tuple[int, int]:
        return max((first_seen[file] for file in item[0].files), default=0), item[1].offset

    return sorted(layout.tensors, key=order)


def _missing(tensor: Tensor, info: TensorInfo, layout: Layout, output: Output) -> list[_Piece]:
    pieces = _split(tensor, info, layout)
    return [piece for piece in pieces if not output.has(piece.first, piece.stop)]


def _split(tensor: Tensor, info: TensorInfo, layout: Layout) -> Iterator[_Piece]:
    importance = layout.recipe.importance
    weights = importance.of(tensor) if importance and info.type != tensor.type else None
    total = prod(tensor.shape[:-1])
    matrix_rows = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    step = max(1, _PIECE_ELEMENTS // tensor.shape[-1])
    row_bytes = info.size_bytes // total
    place = layout.data_offset + info.offset
    for first in range(0, total, matrix_rows):
        last = first + matrix_rows
        row = None if weights is None else weights[first // matrix_rows]
        for begin in range(first, last, step):
            end = min(begin + step, last)
            stop = place + end * row_bytes
            yield _Piece(
                tensor,
                info,
                begin,
                end,
                first=place + begin * row_bytes,
                stop=padded(stop) if end == total else stop,
                importance=row,
            )


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


class _Meter:
    """Turns finished pieces into Progress, a few times a second and where there is news."""

    def __init__(self, name: str, layout: Layout) -> None:
        self._name = name
        self._done = layout.data_offset
        self._total = layout.file_bytes
        self._made = 0
        self._began = time.monotonic()
        self._due = 0.0
        self._warned: set[str] = set()

    def skip(self, size_bytes: int) -> None:
        """Count what an earlier attempt has made."""
        self._done += size_bytes

    def count(self, piece: _Piece, warning: str) -> Iterator[Progress]:
        """Count a piece."""
        self._done += piece.size_bytes
        self._made += piece.size_bytes
        tensor = piece.tensor.name
        note = "" if tensor in self._warned else warning
        if note:
            self._warned.add(tensor)
        now = time.monotonic()
        if note or now >= self._due or self._done == self._total:
            self._due = now + _SHOW_SECONDS
            speed = self._made / max(now - self._began, 1e-3)
            yield Progress(
                "convert", self._name, self._done, self._total, speed, note=note, detail=tensor
            )

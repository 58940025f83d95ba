"""Converts weights while they arrive, into a file that outlives its process.

The result grows as a ``download.partial.PartialFile``: each piece is noted with its CRC-32 once it
is written, and compared when the whole is hashed. So an attempt that was killed is gone on with,
and files all of whose tensors are there are not fetched again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from localllama.convert.filling import fill, missing_files
from localllama.convert.layout import Layout
from localllama.convert.shards import Shards
from localllama.convert.writer import LocalFiles
from localllama.download.partial import Header, PartialFile, Span
from localllama.download.transfer import verified
from localllama.files import sha256_of, storing
from localllama.progress import Progress

_SHOW_SECONDS = 0.1
ROOM = 2  # one file is converted while the next one comes


def write(
    layout: Layout,
    partials: Path,
    key: str,
    name: str,
    *,
    threads: int,
    shards: Shards | None,
) -> Generator[Progress, None, tuple[Path, str]]:
    """Make the planned file below ``partials``; returns it and its sha256, yields Progress.

    All digests of ``layout.origin`` must be known. Without ``shards`` the inputs are files that
    are here and stay. Raises what ``fill`` and the shards raise; what was made is kept.
    """
    header = layout.header({file.name: file.sha256 for file in layout.origin.inputs})
    version = hashlib.sha256(header).hexdigest()
    done = partials / f"{key}.done"
    if _begins_with(done, header):
        return done, (yield from sha256_of(done, name))
    with closing(PartialFile(partials, key)) as out:
        if out.header.etag != version:
            out.restart()
            out.describe(Header(size=layout.file_bytes, etag=version))
        lost = -1
        while lost:
            out.write(0, header)
            yield from _convert(layout, out, name, threads, shards)
            sha256, lost = yield from verified(out, name)
        return out.finish(), sha256


def _begins_with(path: Path, header: bytes) -> bool:
    """Whether an earlier attempt came to its end, and only its result was not taken away."""
    with storing(path):
        if not path.exists():
            return False
        with path.open("rb") as file:
            return file.read(len(header)) == header


class _Output:
    """A PartialFile as the place of finished blocks."""

    def __init__(self, out: PartialFile) -> None:
        self._out = out
        self._gaps: Sequence[Span] = out.missing()

    def has(self, begin: int, end: int) -> bool:
        return not any(first < end and begin < stop for first, stop in self._gaps)

    def put(self, begin: int, end: int, blocks: NDArray[np.uint8]) -> None:
        self._out.write(begin, blocks.tobytes().ljust(end - begin, b"\0"))


def _convert(
    layout: Layout, out: PartialFile, name: str, threads: int, shards: Shards | None
) -> Generator[Progress, None, None]:
    output = _Output(out)
    if shards is None:
        yield from fill(layout, output, name, LocalFiles(), threads=threads)
        return
    needed = missing_files(layout, output)
    for file in {file for tensor in layout.model.tensors for file in tensor.files} - set(needed):
        shards.done(file)
    gauge = _Gauge(name, layout, out, shards, shards.missing_bytes(needed))
    shards.begin()
    filling = _Thread(fill(layout, output, name, shards, threads=threads), "filling")
    fetching = _Thread(shards.fetch(needed, ROOM), "fetching")
    try:
        while not filling.ended(_SHOW_SECONDS):
            yield from gauge.read(filling, fetching)
        filling.result()
        yield from gauge.read(filling, fetching)
    finally:
        shards.stop()
        filling.stop()
        fetching.stop()


class _Thread:
    """Work that yields Progress, in a thread of its own."""

    def __init__(self, work: Generator[Progress, None, None], name: str) -> None:
        self._work = work
        self._stopped = False
        self.latest = Progress("convert")
        self._notes: SimpleQueue[str] = SimpleQueue()
        self._pool = ThreadPoolExecutor(1, name)
        self._future = self._pool.submit(self._run)

    def ended(self, patience_seconds: float) -> bool:
        """Wait so long at most; whether the work has come to its end."""
        return bool(wait([self._future], patience_seconds).done)

    def news(self) -> list[str]:
        """Return the notes since the last time."""
        return [self._notes.get_nowait() for _ in range(self._notes.qsize())]

    def result(self) -> None:
        """Raise what ended the work, if anything did."""
        self._future.result()

    def stop(self) -> None:
        """End the work at its next Progress, and wait for that."""
        self._stopped = True
        self._pool.shutdown()

    def _run(self) -> None:
        with closing(self._work):
            for progress in self._work:
                self.latest = progress
                if progress.note:
                    self._notes.put(progress.note)
                if self._stopped:
                    return


class _Gauge:
    """One Progress for both: the bytes that come and those that are written, of all there are."""

    def __init__(
        self, name: str, layout: Layout, out: PartialFile, shards: Shards, missing_bytes: int
    ) -> None:
        self._name, self._out, self._shards = name, out, shards
        self._total = missing_bytes + layout.file_bytes
        self._before = shards.fetched_bytes
        self._highest = self._first = out.done_bytes
        self._began = time.monotonic()

    def read(self, filling: _Thread, fetching: _Thread) -> Iterator[Progress]:
        """Yield where both are, and each of their notes."""
        fetched = self._shards.fetched_bytes - self._before
        self._highest = max(self._highest, fetched + self._out.done_bytes)
        rate = (self._highest - self._first) / max(time.monotonic() - self._began, 1e-3)
        detail, coming = filling.latest.detail, fetching.latest
        if coming.phase == "download" and coming.bytes_per_second:
            speed = f"{coming.item} at {coming.bytes_per_second / 1e6:.1f} MB/s"
            detail = f"{detail}, {speed}" if detail else speed
        for note in (*filling.news(), *fetching.news(), ""):
            yield Progress("convert", self._name, self._highest, self._total, rate, note, detail)

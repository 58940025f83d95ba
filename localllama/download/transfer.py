"""Fetches one file over several connections, and goes on until it is there and right."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from sys import maxsize
from time import monotonic
from urllib.parse import urlsplit

import httpx2
from filelock import FileLock, Timeout

from localllama.config import Network
from localllama.download.partial import (
    Header,
    PartialFile,
    Span,
    key_of,
    lock_of,
    peek,
    without_query,
)
from localllama.download.small import content_range, validator
from localllama.download.web import Retry, Web, length_of
from localllama.errors import ChecksumMismatch, ServerFailed, StoreError
from localllama.files import sha256_of, storing
from localllama.names import RemoteFile
from localllama.progress import Progress

# A piece is what one connection may lose when the process is killed: small beside the file, yet few
# enough (160,000 in 40 GB) to keep their CRCs in memory; and written early when bytes come slowly.
_MIN_PIECE_BYTES = 64 * 1024
_MAX_PIECE_BYTES = 256 * 1024
_PIECE_SECONDS = 0.5
_MIN_SEGMENT_BYTES = 4 << 20
_MAX_SEGMENT_BYTES = 64 << 20
_REPORT_SECONDS = 0.1
_RATE_SAMPLES = 50
_MAX_RESTARTS = 3
_CLOSE_SECONDS = 0.5
_KEPT = "what arrived is kept, and the next try goes on from there"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete, verified file."""

    path: Path
    sha256: str
    size: int


class _Changed(Exception):
    """The remote file is not the one of which we hold pieces."""


def fetch(
    remote: RemoteFile,
    partials: Path,
    network: Network,
    *,
    have: Callable[[], Path | None] = lambda: None,
) -> Generator[Progress, None, Fetched]:
    """Bring ``remote`` into ``partials``, resuming what is there, and return the verified file.

    It lies there as ``<key>.done`` until the caller moves it away. Of several processes one
    downloads and the others wait; whoever comes next finds the ``.done`` file, or, when that was
    moved into the store meanwhile, what ``have`` returns (asked once the wait is over). Closing
    the generator stops the connections and keeps what arrived.

    Raises NetworkError, RemoteNotFound, ChecksumMismatch, DiskFull, StoreError or InvalidConfig.
    """
    key = key_of(remote.url, remote.sha256)
    with storing(partials):
        partials.mkdir(parents=True, exist_ok=True)
    lock = lock_of(partials, key)
    yield from acquire(lock, partials, key, remote.name)
    try:
        ready = yield from _ready(remote, partials / f"{key}.done", have)
        if ready is None:
            with closing(PartialFile(partials, key)) as partial:
                ready = yield from _complete(remote, partial, network)
        return ready
    finally:
        with suppress(OSError):  # Windows keeps open files
            Path(lock.lock_file).unlink()
        lock.release()


def acquire(lock: FileLock, partials: Path, key: str, name: str) -> Generator[Progress, None, None]:
    """Wait for ``lock``, showing how far the process that holds it has come with ``key``."""
    done, note, patience = 0, f"another localllama is downloading {name}; waiting for it", 0.0
    with storing(partials):
        while True:
            try:
                lock.acquire(timeout=patience)
                return
            except Timeout:
                header, there = peek(partials, key)
                done = max(done, there)
                yield Progress("wait", name, done, max(0, header.size), note=note)
                note, patience = "", _REPORT_SECONDS


def _ready(
    remote: RemoteFile, done: Path, have: Callable[[], Path | None]
) -> Generator[Progress, None, Fetched | None]:
    """Return what another process, or an earlier run, has brought already."""
    if (path := have()) is None and done.exists():
        try:
            with storing(done):
                sha256 = yield from sha256_of(done, remote.name)
                if remote.sha256 in ("", sha256):
                    return Fetched(done, sha256, done.stat().st_size)
                done.unlink()
        except StoreError:
            if done.exists():
                raise
            path = have()  # it went into the store while we read it
    return Fetched(path, remote.sha256, path.stat().st_size) if path else None


def _complete(
    remote: RemoteFile, partial: PartialFile, network: Network
) -> Generator[Progress, None, Fetched]:
    """Download what is missing and verify, until all is right or cannot become right."""
    gauge = _Gauge(remote)
    for _ in range(_MAX_RESTARTS + 1):
        try:
            if not partial.complete:
                yield from _Transfer(remote, partial, network).run(gauge)
            sha256, lost = yield from verified(partial, remote.name)
        except _Changed:
            partial.restart()
            yield gauge.read(partial, f"{remote.name} changed at its source; starting again")
            continue
        if lost:
            yield gauge.read(partial, f"{lost:,} bytes on disk are damaged; fetching them again")
            continue
        if remote.sha256 and sha256 != remote.sha256:
            partial.discard()
            raise ChecksumMismatch(
                f"{remote.name} is not what its source promised: its sha256 is {sha256} instead of "
                f"{remote.sha256}",
                "it was removed; try again, and report it to the source if that does not help",
            )
        return Fetched(partial.finish(), sha256, partial.header.size)
    raise ServerFailed(
        f"{remote.name} keeps changing, at its source or on this disk", "try again later"
    )


def verified(partial: PartialFile, name: str) -> Generator[Progress, None, tuple[str, int]]:
    """Do as ``PartialFile.verify`` does, and yield Progress of ``name``."""
    work, due = partial.verify(), 0.0
    while True:
        try:
            done = next(work)
        except StopIteration as end:
            result: tuple[str, int] = end.value
            return result
        if monotonic() >= due or done == partial.header.size:
            yield Progress("verify", name, done, partial.header.size)
            due = monotonic() + _REPORT_SECONDS


class _Transfer:
    """The threads that fill one PartialFile."""

    def __init__(self, remote: RemoteFile, partial: PartialFile, network: Network) -> None:
        self._remote = remote
        self._partial = partial
        self._network = network
        self._web = Web(network)
        self._throttle = _Throttle(network.limit_rate_bytes)
        self._host = urlsplit(remote.url).netloc
        self._lock = threading.Lock()
        self._claimed: list[Span] = []
        self._ranges = True
        self._learned = False
        self._failure: BaseException | None = None
        self._notes: SimpleQueue[str] = SimpleQueue()
        self._last_note = ("", 0)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def run(self, gauge: _Gauge) -> Generator[Progress, None, None]:
        """Download until all bytes are there; raises what made a connection give up."""
        try:
            self._spawn(1)  # alone, until its first answer tells size and abilities
            over = False
            while not over:
                self._wake.wait(_REPORT_SECONDS)
                self._wake.clear()
                if self._learned and self._ranges:
                    self._spawn(self._network.connections)
                over = self._failure is not None or self._partial.complete
                yield from self._news(gauge)  # after that look: the end is told, too
            if self._failure is not None:
                raise self._failure
        finally:
            self._halt()

    def _spawn(self, wanted: int) -> None:
        if wanted > 1 and self._partial.header.size <= self._segment:
            return
        while len(self._threads) < wanted:
            thread = threading.Thread(target=self._work, name="download", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _news(self, gauge: _Gauge) -> Iterator[Progress]:
        with suppress(Empty):
            while True:
                yield gauge.read(self._partial, self._notes.get_nowait())
        yield gauge.read(self._partial)

    def _halt(self) -> None:
        self._stop.set()
        self._web.abort()
        deadline = monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            # One that hangs in name resolution cannot be woken; it will find the partial closed.
            thread.join(max(0.0, deadline - monotonic()))
        self._web.close()

    # In the threads

    def _work(self) -> None:
        fruitless, seen = 0, self._partial.done_bytes
        try:
            while span := self._claim():
                try:
                    self._get(span)
                except Retry as again:
                    done = self._partial.done_bytes
                    fruitless = 1 if done > seen else fruitless + 1
                    seen = done
                    self._pause(again, fruitless)
                finally:
                    with self._lock:
                        self._claimed.remove(span)
        except BaseException as error:  # handed to the generator, which raises it
            self._failure = self._failure or error
        finally:
            self._wake.set()

    def _claim(self) -> Span | None:
        """Return the next span to ask for, or None when there is nothing left for this thread."""
        with self._lock:
            if self._stop.is_set() or self._partial.complete:
                return None
            if not self._ranges:  # one thread reads all of it
                span: Span | None = None if self._claimed else (0, maxsize)
            elif self._partial.header.size < 0:
                span = (0, self._segment)
            else:
                start, stop = next(iter(self._partial.missing(self._claimed)), (0, 0))
                span = (start, min(stop, start + self._segment)) if stop else None
            if span:
                self._claimed.append(span)
            return span

    @property
    def _segment(self) -> int:
        share = self._partial.header.size // (4 * max(1, self._network.connections))
        return max(_MIN_SEGMENT_BYTES, min(_MAX_SEGMENT_BYTES, share))

    def _pause(self, again: Retry, fruitless: int) -> None:
        if self._stop.is_set():
            return
        error = again.error
        if fruitless >= self._network.retries:
            error.hint = _KEPT if self._partial.done_bytes else error.hint
            raise error from again
        delay = again.delay(fruitless)
        if self._last_note != (error.message, fruitless):  # not once per connection
            self._last_note = (error.message, fruitless)
            self._notes.put(f"{error.message}; trying again in {delay:.2g} s")
            self._wake.set()
        self._stop.wait(delay)

    def _get(self, span: Span) -> None:
        headers = {}
        header, before = self._partial.header, self._partial.done_bytes
        if self._ranges:
            headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
            if header.etag and not header.etag.startswith("W/") and not self._remote.sha256:
                headers["If-Range"] = header.etag
        with self._web.get(self._remote.url, self._remote.token, headers) as response:
            offset = self._begin(response, span[0])
            if response.status_code != 416:
                self._receive(response, offset)
        if self._partial.done_bytes == before and not self._partial.complete:
            raise Retry(ServerFailed(f"{self._host} sent an empty answer"))

    def _begin(self, response: httpx2.Response, start: int) -> int:
        """Check that this answer continues what we have; return the offset of its first byte."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ServerFailed(f"{self._host} sends compressed data although asked not to")
        if response.status_code == 200:
            self._learn(length_of(response), validator(response))
            if self._ranges:
                self._ranges = False
                if self._partial.header.size > _MIN_SEGMENT_BYTES or self._partial.header.size < 0:
                    self._notes.put(f"{self._host} cannot resume: a lost connection starts over")
            return 0
        first, total = content_range(response)
        if response.status_code == 416:
            if total != 0:
                raise _Changed  # shorter than what we asked for
        elif first != start:
            raise Retry(ServerFailed(f"{self._host} sent another part than it was asked for"))
        elif total < 0 and self._remote.size < 0:
            self._ranges = False
            raise Retry(ServerFailed(f"{self._host} does not say how large {self._remote.name} is"))
        self._learn(total, validator(response))
        return start

    def _learn(self, total: int, etag: str) -> None:
        """Compare size and version with what we know, or note them; raises _Changed."""
        promised, known = self._remote.size, self._partial.header
        if total >= 0 and promised >= 0 and total != promised:
            raise ChecksumMismatch(
                f"{self._remote.name} has {total:,} bytes at {self._host} instead of the promised "
                f"{promised:,}",
                "it may be changing at this moment: try again later",
            )
        address = without_query(self._remote.url)
        now = Header(address, total if total >= 0 else promised, etag, self._remote.sha256)
        with self._lock:
            # Where the digest is known, that decides at the end; mirrors differ in their ETags.
            if known.url and (known.size != now.size or (not now.sha256 and known.etag != etag)):
                raise _Changed
            if known != now and not self._learned:
                self._partial.describe(now)
            self._learned = True
        self._wake.set()

    def _receive(self, response: httpx2.Response, offset: int) -> None:
        enough = max(_MIN_PIECE_BYTES, min(_MAX_PIECE_BYTES, self._partial.header.size >> 14))
        buffer, written = bytearray(), monotonic()
        try:
            for chunk in response.iter_raw():
                buffer += chunk
                self._stop.wait(self._throttle.delay(len(chunk)))
                if len(buffer) >= enough or monotonic() - written >= _PIECE_SECONDS:
                    self._partial.write(offset, bytes(buffer))
                    offset, written = offset + len(buffer), monotonic()
                    buffer.clear()
        finally:
            self._partial.write(offset, bytes(buffer))
            offset += len(buffer)
        if self._partial.header.size < 0:  # it ends where the answer ends
            self._partial.describe(replace(self._partial.header, size=offset))


class _Throttle:
    """A rate limit shared by all connections of one file."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._free_at = monotonic()
        self._lock = threading.Lock()

    def delay(self, count: int) -> float:
        """Return the seconds to wait for having received ``count`` more bytes."""
        if not self._rate:
            return 0.0
        with self._lock:
            now = monotonic()
            self._free_at = max(now, self._free_at) + count / self._rate
            return self._free_at - now


class _Gauge:
    """Turns bytes done into Progress that never goes back, with the rate of the last seconds."""

    def __init__(self, remote: RemoteFile) -> None:
        self._remote = remote
        self._highest = 0
        self._samples: deque[tuple[float, int]] = deque(maxlen=_RATE_SAMPLES)

    def read(self, partial: PartialFile, note: str = "") -> Progress:
        done, size = partial.done_bytes, partial.header.size
        self._samples.append((monotonic(), done))
        (then, before), (now, _) = self._samples[0], self._samples[-1]
        rate = max(0.0, (done - before) / (now - then)) if now > then else 0.0
        self._highest = max(self._highest, done)
        total = max(0, size if size >= 0 else self._remote.size)
        return Progress("download", self._remote.name, self._highest, total, rate, note)

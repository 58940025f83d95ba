"""sha256 of the inputs and of the output while it is written, in a thread of its own.

The inputs come first: reading them from front to back also brings them into memory before the
converter asks. Their digests complete the output's header, and from then on the output is read
back as far as it is written, which is from memory as well.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Condition
from types import TracebackType

from localllama.convert.provenance import Input
from localllama.errors import BadFile
from localllama.files import storing

_PIECE_BYTES = 4 << 20
_SYNC_BYTES = 256 << 20  # so that the last fsync has little to wait for


class Stopped(Exception):
    """The conversion ended early: nobody waits for digests."""


class Digests:
    """Hashes ``inputs``, writes the header that ``header`` makes of it, hashes the output.

    Use as a context manager; ``written`` tells what of the output is there.
    """

    def __init__(
        self,
        inputs: tuple[Input, ...],
        out: int,
        path: Path,
        out_bytes: int,
        header: Callable[[Mapping[str, str]], bytes],
    ) -> None:
        self._inputs = inputs
        self._out, self._path, self._out_bytes = out, path, out_bytes
        self._header = header
        self._change = Condition()
        self._ready = 0  # the output is there up to here
        self._later: list[tuple[int, int]] = []  # written ranges behind a gap
        self._stopped = False
        self._pool = ThreadPoolExecutor(1, "digests")

    def __enter__(self) -> Digests:
        self._result = self._pool.submit(self._run)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._change:
            self._stopped = kind is not None
            self._change.notify_all()
        self._pool.shutdown()

    @property
    def result(self) -> Future[tuple[str, dict[str, str]]]:
        """The sha256 of the output, and those of the inputs by name."""
        return self._result

    def written(self, begin: int, end: int) -> None:
        """Say that these bytes of the output are in place."""
        with self._change:
            heapq.heappush(self._later, (begin, end))
            while self._later and self._later[0][0] <= self._ready:
                self._ready = max(self._ready, heapq.heappop(self._later)[1])
            self._change.notify_all()

    def _run(self) -> tuple[str, dict[str, str]]:
        inputs = {file.name: file.sha256 or self._hash(file) for file in self._inputs}
        header = self._header(inputs)
        with storing(self._path):
            os.pwrite(self._out, header, 0)
        self.written(0, len(header))
        return self._follow(), inputs

    def _hash(self, file: Input) -> str:
        digest = hashlib.sha256()
        try:
            with file.path.open("rb", buffering=0) as opened:
                while piece := opened.read(_PIECE_BYTES):
                    if self._stopped:
                        raise Stopped
                    digest.update(piece)
        except OSError as error:
            raise BadFile(
                f"{file.path} cannot be read: {error.strerror}", path=str(file.path)
            ) from error
        return digest.hexdigest()

    def _follow(self) -> str:
        digest = hashlib.sha256()
        done = synced = 0
        while done < self._out_bytes:
            with self._change:
                while not self._stopped and self._ready <= done:
                    self._change.wait()
                ready = self._ready
            if self._stopped:
                raise Stopped
            with storing(self._path):
                piece = os.pread(self._out, min(_PIECE_BYTES, ready - done), done)
                if done - synced >= _SYNC_BYTES:
                    os.fsync(self._out)
                    synced = done
            digest.update(piece)
            done += len(piece)
        return digest.hexdigest()

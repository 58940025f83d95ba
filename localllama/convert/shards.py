"""Brings files of weights while others are converted, as many at a time as the disk may hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Condition

from localllama import download
from localllama.config import Network
from localllama.convert.remote import Remote
from localllama.errors import ChecksumMismatch
from localllama.files import sha256_of, storing
from localllama.names import RemoteFile
from localllama.progress import Progress

_PIECE_BYTES = 4 << 20
_SHOW_SECONDS = 0.1


class Stopped(Exception):
    """The conversion ended early: nobody waits for files any more."""


class Shards:
    """The Files of a conversion: ``fetch`` runs in one thread, ``need`` and ``done`` in another.

    ``stay`` says that files are not removed when they are done with, ``touched`` that those that
    are there already may not be what they were. ``explained`` puts refusals into words.
    """

    def __init__(
        self,
        remote: Remote,
        partials: Path,
        network: Network,
        *,
        stay: bool,
        touched: bool,
        explained: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._remote, self._partials, self._network = remote, partials, network
        self._stay, self._touched, self._explained = stay, touched, explained
        self._change = Condition()
        self._taken: set[str] = set()  # there or on the way
        self._ready: set[str] = set()
        self._ended: BaseException | None = None
        self._whole_bytes = self._coming_bytes = 0

    @property
    def fetched_bytes(self) -> int:
        """Bytes that have come since the beginning, of unfinished files too."""
        return self._whole_bytes + self._coming_bytes

    def missing_bytes(self, names: Sequence[str]) -> int:
        """Bytes of the files that ``fetch`` would bring."""
        return sum(self._remote.sizes[name] for name in names if name not in self._ready)

    def fetch(self, names: Sequence[str], room: int) -> Generator[Progress, None, None]:
        """Bring the files in this order, never more than ``room`` before some are done with.

        Raises what keeps one from coming; ``need`` raises it too.
        """
        try:
            for name in names:
                if name not in self._ready:
                    yield from self._wait_for_room(room)
                    self._taken.add(name)
                    yield from self._counted(self._bring(name))
                    self._count(name)
        except BaseException as error:  # handed to whoever needs a file, which raises it
            self._end(error)
            raise

    def need(self, name: str) -> None:
        """Return when the file is there; raises what keeps it from coming."""
        with self._change:
            self._change.wait_for(lambda: name in self._ready or self._ended)
            if name not in self._ready and self._ended:
                raise self._ended

    def done(self, name: str) -> None:
        """Remove a file that no tensor needs any more, unless it is to stay."""
        if not self._stay:
            with storing(self._partials):
                self._remote.path(name).unlink(missing_ok=True)
        with self._change:
            self._taken.discard(name)
            self._ready.discard(name)
            self._change.notify_all()

    def begin(self) -> None:
        """Let files be waited for, also after a stop."""
        self._ended = None

    def stop(self) -> None:
        """Let nobody wait any longer."""
        self._end(Stopped())

    def _end(self, error: BaseException) -> None:
        with self._change:
            self._ended = self._ended or error
            self._change.notify_all()

    def _wait_for_room(self, room: int) -> Generator[Progress, None, None]:
        while not self._stay and len(self._taken) >= room:
            with self._change:
                self._change.wait(_SHOW_SECONDS)
            yield Progress("wait")

    def _counted(self, work: Generator[Progress, None, None]) -> Generator[Progress, None, None]:
        for progress in work:
            if progress.phase == "download":
                self._coming_bytes = progress.done_bytes
            yield progress

    def _count(self, name: str) -> None:
        with self._change:
            self._whole_bytes += self._remote.sizes[name]
            self._coming_bytes = 0
            self._ready.add(name)
            self._change.notify_all()

    def _bring(self, name: str) -> Generator[Progress, None, None]:
        file, path = self._remote.files[name], self._remote.path(name)
        sha256 = yield from self._here(file, path)
        if not sha256:
            with self._explained():
                fetched = yield from download.fetch(file, self._partials, self._network)
            yield from _check_md5(file, fetched.path)
            sha256 = fetched.sha256
            with storing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                fetched.path.replace(path)
        self._remote.arrived(name, sha256)

    def _here(self, file: RemoteFile, path: Path) -> Generator[Progress, None, str]:
        """Return the sha256 of what is in place already, "" where nothing right is."""
        with storing(path):
            if not path.exists():
                return ""
            if file.sha256 and not self._touched:  # only what was verified is ever put there
                return file.sha256
            sha256 = yield from sha256_of(path, file.name)
            if file.sha256 in ("", sha256):
                return sha256
            path.unlink()
        return ""


def _check_md5(file: RemoteFile, path: Path) -> Generator[Progress, None, None]:
    """Compare a file with an old source's checksum; raises ChecksumMismatch and removes it."""
    if not file.md5:
        return
    digest, done = hashlib.md5(usedforsecurity=False), 0
    with storing(path), path.open("rb", buffering=0) as opened:
        while piece := opened.read(_PIECE_BYTES):
            digest.update(piece)
            done += len(piece)
            yield Progress("verify", file.name, done, file.size)
    if digest.hexdigest() != file.md5:
        with storing(path):
            path.unlink()
        raise ChecksumMismatch(
            f"{file.name} is not what its source promised: its md5 is {digest.hexdigest()} instead "
            f"of {file.md5}",
            "it was removed: try again",
            file.name,
        )

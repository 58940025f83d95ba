"""A checkpoint that is still elsewhere: its headers come by ranged requests, small files whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from localllama import download
from localllama.config import Network
from localllama.convert.source import DataFile
from localllama.errors import BadFile, ChecksumMismatch
from localllama.files import storing, write_atomic
from localllama.names import RemoteFile
from localllama.sources.selection import is_weights

_LARGEST_TEXT_BYTES = 64 << 20


class Remote:
    """A Source of files behind addresses; weights are at their ``places`` once they are brought.

    What was read before a file came is compared with it when it is there.
    """

    def __init__(
        self,
        name: str,
        files: tuple[RemoteFile, ...],
        places: Mapping[str, Path],
        network: Network,
    ) -> None:
        self.name = name
        self.files = {file.name: file for file in files}
        self.sizes = {
            file.name: file.size
            if file.size >= 0
            else download.probe(file.url, network, file.token).size
            for file in files
        }
        self._places = places
        self._network = network
        self._texts: dict[str, bytes] = {}
        self._seen: dict[str, dict[int, bytes]] = {}  # what was read of weights, by its begin
        self._arrived: set[str] = set()
        self._digests = {file.name: file.sha256 for file in files if file.sha256}

    def path(self, name: str) -> Path:
        """Where a file of weights is, or will be; for others, what to call them."""
        return self._places.get(name, Path(self.name, name))

    def read(self, name: str, begin: int, end: int) -> bytes:
        """Return those bytes; raises NetworkError, BadFile."""
        if not is_weights(name):
            return self.text(name)[begin:end]
        if name in self._arrived:  # what merely lies there may be damaged
            data = DataFile(self.path(name), self.sizes[name]).read(begin, end - begin).tobytes()
        else:
            file = self.files[name]
            data = download.read_range(file.url, begin, end - begin, self._network, file.token)
        if len(data) < end - begin:
            raise self._differs(name)
        self._seen.setdefault(name, {})[begin] = data
        return data

    def text(self, name: str) -> bytes:
        """Return a small file, fetched once; raises NetworkError, ChecksumMismatch."""
        if name not in self._texts:
            file = self.files[name]
            data = download.get_bytes(
                file.url, self._network, file.token, limit_bytes=_LARGEST_TEXT_BYTES
            )
            sha256 = hashlib.sha256(data).hexdigest()
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if file.sha256 not in ("", sha256) or file.md5 not in ("", md5):
                raise self._differs(name)
            self._texts[name], self._digests[name] = data, sha256
            self.sizes[name] = len(data)
        return self._texts[name]

    def digest(self, name: str) -> str:
        """Return a file's sha256, "" for weights that nobody has hashed yet."""
        if not is_weights(name):
            self.text(name)
        return self._digests.get(name, "")

    def arrived(self, name: str, sha256: str) -> None:
        """Say that the weights ``name`` are in place; raises ChecksumMismatch, BadFile."""
        self._digests[name] = sha256
        file = DataFile(self.path(name), self.sizes[name])
        for begin, data in self._seen.get(name, {}).items():
            if file.read(begin, len(data)).tobytes() != data:
                raise self._differs(name)
        self._arrived.add(name)

    def keep_texts(self, folder: Path) -> None:
        """Write what is not weights into ``folder``, as it is at the source."""
        for name in self.files:
            if not is_weights(name):
                with storing(folder):
                    write_atomic(folder / name, self.text(name))

    def _differs(self, name: str) -> BadFile:
        return ChecksumMismatch(
            f"{name} of {self.name} is not what its source said of it",
            "it may be changing at this moment: try again",
            name,
        )

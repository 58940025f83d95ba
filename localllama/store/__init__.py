"""The model store: content-addressed blobs, one manifest per name, safe with several processes.

    blobs/sha256-<hex>     the bytes, shared between names
    manifests/<name>.json  what a name means; the only thing `list` reads
    partials/              downloads under way and files that wait for their manifest
    links/                 split models under the names that llama.cpp's tools expect

A manifest is written last and removed first, so that what is listed is always whole. Writers hold
one lock; readers need none, because every write is a rename.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from localllama.errors import BadFile, ModelNotFound, StoreError
from localllama.files import sha256_of, storing, sync_folder, write_atomic
from localllama.paths import Paths
from localllama.progress import Progress
from localllama.store import manifest
from localllama.store.manifest import Installed, StoredFile

if TYPE_CHECKING:  # names, hashlib and urllib cost `list` 10 ms it has no use for
    from localllama.names import ModelName

__all__ = ["Garbage", "Installed", "Problem", "Store", "StoredFile"]

_LOCK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Problem:
    """What ``verify`` found wrong with one file of one model."""

    model: str
    file: str
    message: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file that nothing refers to: a ``blob``, ``temporary``, ``link`` or ``partial``."""

    path: Path
    size_bytes: int
    kind: str


class Store:
    """The models of one home."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    # reading: no locks, nothing but manifests

    def models(self) -> list[Installed]:
        """Return the installed models, newest first; damaged manifests are left out."""
        models: list[Installed] = []
        for path in self._manifests():
            with contextlib.suppress(BadFile, FileNotFoundError):
                models.append(manifest.load(path))
        return sorted(models, key=lambda model: model.modified_at, reverse=True)

    def damaged(self) -> list[Problem]:
        """Return the manifests that cannot be read."""
        problems = []
        for path in self._manifests():
            try:
                manifest.load(path)
            except BadFile as error:
                problems.append(Problem(path.stem, path.name, error.message))
        return problems

    def find(self, name: ModelName) -> Installed | None:
        """Return the model of exactly this name, or None; raises BadFile for a damaged manifest."""
        with storing(self.paths.manifests):
            try:
                return manifest.load(self._manifest_path(name))
            except FileNotFoundError:
                return None

    def get(self, name: ModelName) -> Installed:
        """Return the model of this name; raises ModelNotFound with near misses."""
        if (model := self.find(name)) is not None:
            return model
        import difflib

        names = [model.name for model in self.models()]
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"get it: localllama pull {name}"
        raise ModelNotFound(f"the model {str(name)!r} is not installed", hint, tuple(near))

    def blob(self, sha256: str) -> Path:
        """Return where the bytes with this digest are, or would be."""
        return self.paths.blobs / f"sha256-{sha256}"

    def has(self, sha256: str) -> bool:
        """Whether these bytes are here, verified."""
        return bool(sha256) and self.blob(sha256).is_file()

    def weights(self, model: Installed) -> tuple[Path, ...]:
        """Return the paths of the model's parts, in order; raises BadFile when one is missing."""
        paths = tuple(self.blob(file.sha256) for file in model.weights)
        for file, path in zip(model.weights, paths, strict=True):
            if not path.is_file():
                raise BadFile(
                    f"the data of {model.name} is missing from the store ({file.name})",
                    f"fetch it again: localllama pull {model.name}",
                    path=str(path),
                )
        return paths

    def text(self, model: Installed, role: str) -> str:
        """Return the text of the model's file with this role, empty when it has none."""
        for file in model.files:
            if file.role == role:
                with contextlib.suppress(OSError):
                    return self.blob(file.sha256).read_text(errors="replace")
        return ""

    # writing: under the lock

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other writers out; raises StoreError when one holds on for a minute."""
        import filelock

        with storing(self.paths.manifests):
            self.paths.manifests.mkdir(parents=True, exist_ok=True)
            held = filelock.FileLock(self.paths.manifests.parent / ".lock", timeout=_LOCK_SECONDS)
            try:
                held.acquire()
            except filelock.Timeout as error:
                raise StoreError(
                    "another localllama has held the model store for a minute",
                    "wait for it to finish, or end it",
                ) from error
        try:
            yield
        finally:
            held.release()

    def install(self, model: Installed, arrived: Mapping[str, Path]) -> Installed:
        """Move verified files (sha256 -> path on the store's filesystem) in and list the model."""
        model = replace(model, digest=manifest.identify(model), modified_at=now())
        with self.lock(), storing(self.paths.blobs):
            self.paths.blobs.mkdir(parents=True, exist_ok=True)
            for sha256, path in arrived.items():
                if self.has(sha256):
                    path.unlink(missing_ok=True)
                else:
                    path.replace(self.blob(sha256))
            sync_folder(self.paths.blobs)
            for file in model.files:
                if not self.has(file.sha256):
                    raise StoreError(
                        f"{file.name} vanished from the store while {model.name} was installed",
                        "pull it again",
                    )
            previous = self.find(_parsed(model.name))
            self._write(model)
            if previous is not None:
                self._drop_unused(previous)
        return model

    def copy(self, source: ModelName, target: ModelName) -> Installed:
        """Give a model a second name; no bytes are copied."""
        with self.lock(), storing(self.paths.manifests):
            model = replace(self.get(source), name=str(target), modified_at=now())
            previous = self.find(target)
            self._write(model)
            if previous is not None:
                self._drop_unused(previous)
            return model

    def save(self, model: Installed) -> Installed:
        """List a model all of whose files are in the store already (``/save``)."""
        return self.install(model, {})

    def remove(self, name: ModelName) -> int:
        """Remove a name, and its blobs that no other name uses; returns the bytes freed."""
        with self.lock(), storing(self.paths.manifests):
            model = self.get(name)
            self._manifest_path(name).unlink()
            return self._drop_unused(model)

    def verify(self, models: list[Installed]) -> Generator[Progress, None, list[Problem]]:
        """Hash every file of these models again and compare; returns what is wrong."""
        problems = []
        seen: dict[str, str] = {}
        for model in models:
            for file in model.files:
                if file.sha256 not in seen:
                    seen[file.sha256] = yield from self._check(file, model.name)
                if seen[file.sha256]:
                    problems.append(Problem(model.name, file.name, seen[file.sha256]))
        return problems

    def garbage(self, *, partials: bool = False) -> list[Garbage]:
        """Return what nothing refers to; downloads under way only with ``partials``."""
        used = self._used()
        kinds = [
            ("blob", [p for p in _files(self.paths.blobs) if p.name[len("sha256-") :] not in used]),
            ("temporary", [p for p in _files(self.paths.manifests) if p.suffix != ".json"]),
            ("link", [p for p in self.paths.links.glob("*/*") if not p.exists()]),
            ("partial", _files(self.paths.partials) if partials else []),
        ]
        return [Garbage(path, _size(path), kind) for kind, paths in kinds for path in paths]

    def prune(self, *, partials: bool = False) -> list[Garbage]:
        """Remove what ``garbage`` returns, less the downloads under way, and return it."""
        with self.lock(), storing(self.paths.blobs):
            found = self.garbage(partials=partials)
            for item in found:
                if item.kind == "partial":
                    _discard(item.path)
                else:
                    item.path.unlink(missing_ok=True)
            return [item for item in found if not item.path.is_symlink() and not item.path.exists()]

    def linked(self, model: Installed) -> tuple[Path, ...]:
        """Return the model's parts under names that llama.cpp's own tools accept.

        A single file is its blob. The parts of a split model must be called
        ``x-00001-of-00002.gguf``, so they are linked together in one folder.
        """
        weights = self.weights(model)
        if len(weights) == 1:
            return weights
        folder = self.paths.links / model.weights[0].sha256[:12]
        links = []
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for file, blob in zip(model.weights, weights, strict=True):
                link = folder / Path(file.name).name
                if not link.exists():
                    link.unlink(missing_ok=True)
                    link.symlink_to(blob)
                links.append(link)
        return tuple(links)

    # inside

    def _manifests(self) -> Iterator[Path]:
        return (path for path in _files(self.paths.manifests) if path.suffix == ".json")

    def _manifest_path(self, name: ModelName) -> Path:
        # Percent-encoding keeps every name in one flat folder, whatever it holds; a long address
        # keeps a readable beginning and is told from its like by a hash.
        from urllib.parse import quote

        encoded = quote(name.key, safe="@+=,")
        if len(encoded) > 180:
            import hashlib

            encoded = f"{encoded[:120]}~{hashlib.sha256(name.key.encode()).hexdigest()[:32]}"
        return self.paths.manifests / f"{encoded}.json"

    def _write(self, model: Installed) -> None:
        write_atomic(self._manifest_path(_parsed(model.name)), manifest.dump(model))

    def _used(self) -> set[str]:
        """Digests that any name refers to; raises when a manifest cannot be read, to be safe."""
        return {file.sha256 for path in self._manifests() for file in manifest.load(path).files}

    def _drop_unused(self, model: Installed) -> int:
        used = self._used()
        freed = 0
        for sha256 in {file.sha256 for file in model.files} - used:
            freed += _size(self.blob(sha256))
            self.blob(sha256).unlink(missing_ok=True)
        return freed

    def _check(self, file: StoredFile, model: str) -> Generator[Progress, None, str]:
        path = self.blob(file.sha256)
        try:
            size = path.stat().st_size
            if size != file.size_bytes:
                return f"has {size} bytes instead of {file.size_bytes}"
            actual = yield from sha256_of(path, f"{model} ({file.name})")
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return "" if actual == file.sha256 else "has another sha256: the data is damaged"


def now() -> str:
    """Return this moment as an ISO 8601 text in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _parsed(name: str) -> ModelName:
    from localllama.names import parse

    return parse(name)


def _discard(path: Path) -> None:
    """Remove a file from the partials, unless another process is working on that download."""
    from localllama import download

    with contextlib.suppress(StoreError):
        download.discard(path.parent, path.name.partition(".")[0])
        path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_file())
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

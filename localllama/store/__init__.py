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
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from localllama.errors import BadFile, ModelNotFound, StoreError
from localllama.files import storing, sync_folder, write_atomic
from localllama.paths import Paths
from localllama.store import manifest
from localllama.store.manifest import Installed, StoredFile

if TYPE_CHECKING:  # names, hashlib and urllib cost `list` 10 ms it has no use for
    from localllama.names import ModelName

__all__ = ["Installed", "Store", "StoredFile"]

_LOCK_SECONDS = 60.0


class Store:
    """The models of one home."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    # reading: no locks, nothing but manifests

    def models(self) -> list[Installed]:
        """Return the installed models, newest first; damaged manifests are left out."""
        return self.scan()[0]

    def scan(self) -> tuple[list[Installed], list[BadFile]]:
        """Return the installed models, newest first, and what is wrong with other manifests."""
        models: list[Installed] = []
        damaged: list[BadFile] = []
        for path in self._manifests():
            try:
                models.append(manifest.load(path))
            except BadFile as error:
                damaged.append(error)
            except FileNotFoundError:  # removed just now
                continue
        return sorted(models, key=lambda model: model.modified_at, reverse=True), damaged

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
        hint = f"did you mean {' or '.join(near)}?" if near else "localllama list shows what is"
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
        """Return the text of the model's files with this role, empty when it has none."""
        texts = []
        for file in model.files:
            if file.role == role:
                with contextlib.suppress(OSError):
                    texts.append(self.blob(file.sha256).read_text(errors="replace"))
        return "\n\n".join(texts)

    def used(self) -> set[str]:
        """Return the digests that any name refers to; raises BadFile for an unreadable manifest."""
        return {file.sha256 for path in self._manifests() for file in manifest.load(path).files}

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
                # Of two names that share a file, the other one may have been quicker.
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
            self._replace(model)
        return model

    def copy(self, source: ModelName, target: ModelName) -> Installed:
        """Give a model a second name; no bytes are copied."""
        with self.lock(), storing(self.paths.manifests):
            model = replace(self.get(source), name=str(target), modified_at=now())
            self._replace(model)
            return model

    def save(self, model: Installed) -> Installed:
        """List a model all of whose files are in the store already (``/save``)."""
        return self.install(model, {})

    def remove(self, name: ModelName) -> int:
        """Remove a name, and its blobs that no other name uses; returns the bytes freed."""
        with self.lock(), storing(self.paths.manifests):
            try:
                model: Installed | None = self.get(name)
            except BadFile:
                model = None  # a damaged manifest can be removed as well
            self._manifest_path(name).unlink()
            return self._drop_unused(model)

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
                if not link.is_symlink() or link.readlink() != blob:
                    link.unlink(missing_ok=True)
                    link.symlink_to(blob)
                links.append(link)
        return tuple(links)

    # inside

    def _manifests(self) -> Iterator[Path]:
        return (path for path in files_in(self.paths.manifests) if path.suffix == ".json")

    def _manifest_path(self, name: ModelName) -> Path:
        # Percent-encoding keeps every name in one flat folder, whatever it holds; a long address
        # keeps a readable beginning and is told from its like by a hash.
        from urllib.parse import quote

        encoded = quote(name.key, safe="@+=,")
        if len(encoded) > 180:
            import hashlib

            encoded = f"{encoded[:120]}~{hashlib.sha256(name.key.encode()).hexdigest()[:32]}"
        return self.paths.manifests / f"{encoded}.json"

    def _replace(self, model: Installed) -> None:
        """Write a manifest and let go of what only its predecessor used."""
        path = self._manifest_path(_parsed(model.name))
        previous: Installed | None = None
        with contextlib.suppress(FileNotFoundError, BadFile):
            previous = manifest.load(path)
        write_atomic(path, manifest.dump(model))
        self._drop_unused(previous)

    def _drop_unused(self, model: Installed | None) -> int:
        try:
            used = self.used()
        except BadFile:
            return 0  # what that manifest refers to is unknown: nothing goes
        if model is None:
            return 0
        freed = 0
        for sha256 in {file.sha256 for file in model.files} - used:
            freed += size_of(self.blob(sha256))
            self.blob(sha256).unlink(missing_ok=True)
        return freed


def now() -> str:
    """Return this moment as an ISO 8601 text in UTC."""
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="microseconds")


def _parsed(name: str) -> ModelName:
    from localllama.names import parse

    return parse(name)


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted; none when it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []


def size_of(path: Path) -> int:
    """Return a file's bytes, 0 when it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0

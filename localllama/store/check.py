"""Is the store sound, and what can go: verify, garbage, prune."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from localllama.errors import StoreError
from localllama.files import sha256_of, storing
from localllama.progress import Progress
from localllama.store import Installed, Store, StoredFile, files_in, size_of


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one file of one model."""

    model: str
    file: str
    message: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file that nothing refers to: a ``blob``, ``temporary``, ``link`` or ``partial``."""

    path: Path
    size_bytes: int
    kind: str


def verify(store: Store, models: list[Installed]) -> Generator[Progress, None, list[Problem]]:
    """Hash every file of these models again and compare; returns what is wrong."""
    problems = []
    seen: dict[str, str] = {}
    for model in models:
        for file in model.files:
            if file.sha256 not in seen:
                seen[file.sha256] = yield from _check(store, file, model.name)
            if seen[file.sha256]:
                problems.append(Problem(model.name, file.name, seen[file.sha256]))
    return problems


def garbage(store: Store, *, partials: bool = False) -> list[Garbage]:
    """Return what nothing refers to, unfinished downloads only with ``partials``.

    Raises BadFile while a manifest cannot be read: what it refers to is unknown.
    """
    used, paths = store.used(), store.paths
    kinds = [
        ("blob", [p for p in files_in(paths.blobs) if p.name.removeprefix("sha256-") not in used]),
        ("temporary", [p for p in files_in(paths.manifests) if p.suffix != ".json"]),
        ("link", [p for p in paths.links.glob("*/*") if not p.exists()]),
        ("partial", files_in(paths.partials) if partials else []),
    ]
    return [Garbage(path, size_of(path), kind) for kind, found in kinds for path in found]


def prune(store: Store, *, partials: bool = False) -> list[Garbage]:
    """Remove what ``garbage`` returns, less the downloads under way, and return it."""
    with store.lock(), storing(store.paths.blobs):
        found = garbage(store, partials=partials)
        for item in found:
            if item.kind == "partial":
                _discard(item.path)
            else:
                item.path.unlink(missing_ok=True)
        return [item for item in found if not item.path.is_symlink() and not item.path.exists()]


def _check(store: Store, file: StoredFile, model: str) -> Generator[Progress, None, str]:
    path = store.blob(file.sha256)
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


def _discard(path: Path) -> None:
    """Remove a file from the partials, unless another process is working on that download."""
    from localllama import download

    with contextlib.suppress(StoreError):
        download.discard(path.parent, path.name.partition(".")[0])
        path.unlink(missing_ok=True)

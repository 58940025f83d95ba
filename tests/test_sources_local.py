"""Files and folders of this machine: listed as they lie, adopted and never moved."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from localllama import sources
from localllama.config import Network
from localllama.errors import LocalLlamaError, NotFound, UnsupportedFile, UsageProblem
from localllama.names import parse
from localllama.paths import locate
from localllama.progress import finish
from localllama.sources import Listing, local


def listing(path: Path) -> Listing:
    ref = sources.direct(parse(str(path)))
    return sources.files(ref, Network(offline=True), locate(path.parent))


def make(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"GGUF" + name.encode())


def test_a_file(tmp_path: Path) -> None:
    make(tmp_path, "a b.gguf", "other.gguf")
    (file,) = listing(tmp_path / "a b.gguf").files
    assert (file.name, file.size, file.url) == ("a b.gguf", 12, "")
    assert file.path == str((tmp_path / "a b.gguf").resolve())


def test_a_file_known_by_its_first_bytes(tmp_path: Path) -> None:
    make(tmp_path, "sha256-abc")
    assert listing(tmp_path / "sha256-abc").files[0].name == "sha256-abc"


@pytest.mark.parametrize("asked", ["", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"])
def test_all_parts_are_one_model(tmp_path: Path, asked: str) -> None:
    make(tmp_path, "m-00002-of-00002.gguf", "m-00001-of-00002.gguf", "mmproj-m.gguf", "notes.txt")
    found = [file.name for file in listing(tmp_path / asked).files]
    assert found == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_linked_model_keeps_its_name_and_neighbours(tmp_path: Path) -> None:
    make(tmp_path / "blobs", "aaa", "bbb")
    (tmp_path / "snapshot").mkdir()
    for n, blob in ((1, "aaa"), (2, "bbb")):
        (tmp_path / "snapshot" / f"m-0000{n}-of-00002.gguf").symlink_to(tmp_path / "blobs" / blob)
    found = listing(tmp_path / "snapshot").files
    assert [file.name for file in found] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert [Path(file.path).name for file in found] == ["aaa", "bbb"]


def _nothing(folder: Path) -> Path:
    return folder / "nothing.gguf"


def _below_a_file(folder: Path) -> Path:
    make(folder, "a.gguf")
    return folder / "a.gguf" / "b.gguf"


def _empty(folder: Path) -> Path:
    return folder


def _part_missing(folder: Path) -> Path:
    make(folder, "m-00001-of-00002.gguf")
    return folder


def _two(folder: Path) -> Path:
    make(folder, "a.gguf", "b.gguf")
    return folder


def _diffusion(folder: Path) -> Path:
    make(folder, "config.json", "unet.safetensors")
    return folder


def _weights(folder: Path) -> Path:
    make(folder, "model.safetensors")
    return folder / "model.safetensors"


def _text(folder: Path) -> Path:
    (folder / "notes.txt").write_text("no model")
    return folder / "notes.txt"


def _too_long(folder: Path) -> Path:
    return folder / ("x" * 300)


@pytest.mark.parametrize(
    ("where", "kind", "says"),
    [
        (_nothing, NotFound, "nothing.gguf"),
        (_below_a_file, NotFound, "b.gguf"),
        (_empty, NotFound, "no GGUF"),
        (_part_missing, NotFound, "m-00002-of-00002"),
        (_two, UsageProblem, "2 GGUF models"),
        (_diffusion, UnsupportedFile, "cannot be converted"),
        (_weights, UnsupportedFile, "not a GGUF"),
        (_text, UnsupportedFile, "not a GGUF"),
        (_too_long, UsageProblem, "cannot read"),
    ],
)
def test_what_is_no_model_is_refused(
    tmp_path: Path, where: Callable[[Path], Path], kind: type[LocalLlamaError], says: str
) -> None:
    with pytest.raises(kind, match=says) as refused:
        listing(where(tmp_path))
    assert refused.value.hint or kind is UsageProblem


def test_a_checkpoint_is_listed_where_it_lies(tmp_path: Path) -> None:
    make(tmp_path, "config.json", "model.safetensors", "notes.txt")
    found = listing(tmp_path).files
    assert [(file.name, file.role) for file in found] == [
        ("config.json", "checkpoint"),
        ("model.safetensors", "checkpoint"),
    ]
    make(tmp_path, "x.gguf")
    assert [file.name for file in listing(tmp_path).files] == ["x.gguf"]


def test_adopting_leaves_the_original(tmp_path: Path) -> None:
    source, target = tmp_path / "a.gguf", tmp_path / "store" / "blob"
    source.write_bytes(b"x" * 10_000)
    for _ in range(2):  # again: over itself
        assert finish(local.adopt(source, target)) in ("reflink", "hardlink", "copy")
        assert target.read_bytes() == source.read_bytes() == b"x" * 10_000
    assert list(target.parent.iterdir()) == [target]


def test_adopting_from_another_filesystem_copies(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one filesystem here")
    source, target = tmp_path / "a.gguf", shared / f"localllama-test-{os.getpid()}"
    source.write_bytes(os.urandom(9_000_000))
    try:
        work, seen = local.adopt(source, target), []
        while True:
            try:
                seen.append(next(work).done_bytes)
                assert not target.exists()
            except StopIteration as end:
                assert end.value == "copy"
                break
        assert seen == sorted(seen) and seen[-1] == 9_000_000
        assert target.read_bytes() == source.read_bytes()
    finally:
        target.unlink(missing_ok=True)

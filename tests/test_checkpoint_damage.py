"""Damaged and malicious checkpoints: an error that names the file, at once, and nothing run."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from localllama.convert import safetensors, torch_files
from localllama.convert.pickled import Refused, tensors
from localllama.convert.source import Folder
from localllama.errors import BadFile
from tests.support import checkpoints
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.torch_files import Call, Name, Reference, pickled, write_archive, write_torch

SHAPE = Shape(layers=1, width=8, heads=2, kv_heads=1, hidden=16, vocabulary=32)
MUTATIONS = 200
MOST_MEMORY = 32 << 20

Header = dict[str, Any]


def read(folder: Path) -> int:
    """The number of tensors in a folder of safetensors, by their headers."""
    return len(safetensors.read(Folder.of(folder)))


def test_mutated_headers_and_indexes_are_told(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, SHAPE, shards=2)
    files = sorted(folder.glob("model*"))
    whole = {file: file.read_bytes() for file in files}
    random = Random(7)
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(MUTATIONS):
            file = random.choice(files)
            file.write_bytes(mutated(whole[file], file.suffix == ".json", random))
            try:
                read(folder)
            except BadFile as problem:
                refused += 1
                assert problem.path in map(str, files)
                assert Path(problem.path).name in problem.message
            file.write_bytes(whole[file])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_MEMORY
    assert refused > MUTATIONS * 0.9  # some changes leave a sound file, such as a space for another
    assert read(folder) == 12


def mutated(data: bytes, is_index: bool, random: Random) -> bytes:
    """The data cut, overwritten, or with another value somewhere in its JSON."""
    length = 0 if is_index else 8 + int.from_bytes(data[:8], "little")
    choice = random.randrange(4)
    if choice == 0:
        return data[: random.randrange(len(data) if is_index else length)]
    if choice == 1:
        place, junk = random.randrange(length or len(data)), random.randbytes(random.randint(1, 8))
        return data[:place] + junk + data[place + len(junk) :]
    if choice == 2 and not is_index:
        return (
            random.choice((0, 1, length, 2**24 + 8, 2**40, 2**64 - 1)).to_bytes(8, "little")
            + (data[8:])
        )
    content = json.loads(data if is_index else data[8:length])
    change(content, random)
    if is_index:
        return json.dumps(content).encode()
    return checkpoints.safetensors(content, data[length:])


def change(content: Any, random: Random) -> None:
    """Put something odd in place of one value, or take one away."""
    odd: list[Any] = [None, -1, 2**63, 2**70, 1e30, "", "x" * 1000, [], {}, [[]] * 50, True]
    while True:
        key = random.choice(list(content) if isinstance(content, dict) else range(len(content)))
        if isinstance(content[key], dict | list) and content[key] and random.random() < 0.8:
            content = content[key]
        elif key not in ("__metadata__", "metadata", "format"):
            break
        else:
            content = content if len(content) > 1 else {"none": 0}
    if random.random() < 0.3:
        del content[key]
    else:
        content[key] = random.choice(odd)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b'{"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":' + b"[1]" * 9 + b"}}",
        b"\xff\xfe",
        b"{" + b",".join(b'"%d":0' % n for n in range(70_000)) + b"}",
    ],
)
def test_headers_made_to_harm_are_refused(header: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(BadFile, match=r"model\.safetensors"):
        read(tmp_path)


def read_torch(folder: Path) -> int:
    return len(torch_files.read(Folder.of(folder)))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Call("os system", ("touch {}",)), "os.system"),
        (Call("builtins eval", ("open('{}', 'w')",)), "builtins.eval"),
        (Call("builtins getattr", ("x", "y")), "builtins.getattr"),
        (Call("torch._utils _rebuild_tensor_v3"), "torch._utils._rebuild_tensor_v3"),
        (Name("collections OrderedDict.fromkeys"), "collections.OrderedDict.fromkeys"),
    ],
)
def test_a_pickle_with_code_is_refused_and_runs_nothing(
    call: object, name: str, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    if isinstance(call, Call):
        texts = (item.format(trace) if isinstance(item, str) else item for item in call.arguments)
        call = Call(call.name, tuple(texts))
    write_archive(tmp_path / "pytorch_model.bin", pickled({"weight": call}))
    with pytest.raises(BadFile) as caught:
        read_torch(tmp_path)
    assert f"pytorch_model.bin asks for {name!r}" in caught.value.message
    assert "safetensors" in caught.value.hint
    assert not trace.exists()


def test_what_python_itself_would_run_is_refused() -> None:
    class Attack:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return print, ("run",)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(Refused):
            tensors(pickle.dumps({"weight": Attack()}, protocol))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02}" + b"2" * 100,
        b"\x80\x02r\xff\xff\xff\x7f.",
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x02B\xff\xff\xff\x7f.",
        b"\x80\x02)" + b"2\x86" * 100 + b"N\x86b.",
        b"\x80\x02}(" + b")2\x86" * 60 + b"Nu.",
        b"I" + b"9" * 100_000 + b"\n.",
        pickled({"weight": 1}),
        pickled((1, 2)),
        pickled({"weight": Reference(("storage", Name("torch FloatStorage"), "0", "cpu"))}),
        pickled({"weight": Call("collections OrderedDict", (1,))}),
    ],
)
def test_pickles_that_make_no_tensors_are_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        tensors(data)


def test_cut_and_overwritten_archives_are_told(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    write_torch(file, SHAPE.weights())
    whole, random = file.read_bytes(), Random(3)
    for _ in range(100):
        place = random.randrange(len(whole))
        cut = random.random() < 0.5
        file.write_bytes(whole[:place] + (b"" if cut else b"\xff" * 9 + whole[place + 9 :]))
        try:
            assert read_torch(tmp_path) == 12
        except BadFile as problem:
            assert problem.path == str(file)
        else:
            assert not cut
    file.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    with pytest.raises(BadFile, match=r"older than 1\.6"):
        read_torch(tmp_path)

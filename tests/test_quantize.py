"""Quantization: the same types and the same bytes as llama.cpp, and what cannot be is said."""

from __future__ import annotations

import hashlib
import resource
import signal
import subprocess
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from make_headers import LLAMA2, Shape, write_header

from localllama.convert import gguf_source, importance, opening, provenance, types, writer
from localllama.convert.layout import Recipe, lay_out
from localllama.convert.model import Model, Rows, Tensor
from localllama.convert.writer import Written
from localllama.errors import (
    BadFile,
    DiskFull,
    InvalidParameter,
    NotEnoughDisk,
    UnsupportedFile,
    UsageProblem,
)
from localllama.progress import Progress, finish
from tests.support import cli, reference
from tests.support.models import smollm2
from tests.support.other_headers import write_falcon, write_mixtral
from tests.support.small_llama import write_small_llama
from tests.support.smollm2 import write_checkpoint

# Those of the acceptance list; the IQ4 ones take ten times as long as the others.
FAST = [
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q4_K_M"),
    *("Q4_K_S", "Q4_0", "Q4_1", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"),
]
SLOW = ["IQ4_XS", "IQ4_NL"]
SHAPES = {
    **LLAMA2,
    "CodeLlama-34B": Shape(48, 8192, 64, 8, 22016, context_length=16384),
    "Llama-3-8B": Shape(32, 4096, 32, 8, 14336, 128256, 8192),
    "Llama-3-70B": Shape(80, 8192, 64, 8, 28672, 128256, 8192),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_llama(tmp_path_factory.mktemp("small") / "small.gguf")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", layers=1)


def convert(source: Path, out: Path, quant: str, threads: int = 2, **wishes: object) -> Written:
    model, origin = opening.open_path(source)
    recipe = replace(Recipe(types.parse(quant)), **wishes)
    return finish(writer.write(lay_out(model, recipe, origin), out, threads=threads))


@pytest.mark.parametrize("name", SHAPES)
def test_types_are_llama_cpps_choice(name: str, tmp_path: Path) -> None:
    # The rows of the vocabulary decide nothing and would only take time.
    shape = replace(SHAPES[name], vocabulary=320)
    path = write_header(tmp_path / "header.gguf", shape, quantized=False)
    model = gguf_source.open_model([path])
    for quant in FAST + SLOW:
        chosen = types.choose(model, types.parse(quant))
        ours = [(tensor.name, kind.name) for tensor, kind in chosen]
        assert ours == list(reference.chosen_types(path, quant).items()), quant


@pytest.mark.parametrize("write", [write_mixtral, write_falcon])
def test_types_of_other_models(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path / "header.gguf")
    metadata, tensors = gguf_source.contents(path)
    model = Model(str(metadata["general.architecture"].value), metadata, tensors)
    for quant in types.offered():
        chosen = types.choose(model, quant)
        ours = [(tensor.name, kind.name) for tensor, kind in chosen]
        assert ours == list(reference.chosen_types(path, quant.name).items()), quant


@pytest.mark.parametrize("quant", FAST)
def test_bytes_are_llama_cpps(quant: str, small: Path, tmp_path: Path) -> None:
    _compare(small, quant, tmp_path)


@pytest.mark.parametrize("quant", SLOW)
def test_bytes_of_slow_types_are_llama_cpps(quant: str, tiny: Path, tmp_path: Path) -> None:
    _compare(tiny, quant, tmp_path)


def test_bytes_of_the_real_model(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "smollm2", smollm2(), layers=2)
    convert(checkpoint, tmp_path / "whole.gguf", "BF16")
    convert(checkpoint, tmp_path / "ours.gguf", "Q4_K_M")
    reference.quantize(tmp_path / "whole.gguf", tmp_path / "theirs.gguf", "Q4_K_M")
    ours = reference.tensors(tmp_path / "ours.gguf")
    assert ours == reference.tensors(tmp_path / "theirs.gguf")


def _compare(source: Path, quant: str, folder: Path) -> None:
    convert(source, folder / "ours.gguf", quant)
    reference.quantize(source, folder / "theirs.gguf", quant)
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    assert list(reference.tensors(ours).items()) == list(reference.tensors(theirs).items())
    keys, wanted = _keys(ours), _keys(theirs)
    assert {k: v for k, v in keys.items() if not k.startswith("localllama.")} == wanted


def _keys(path: Path) -> dict[str, list[bytes]]:
    """Every key's value as the bytes that stand in the file."""
    return {
        key: [part.tobytes() for part in field.parts]
        for key, field in GGUFReader(path).fields.items()
        if not key.startswith("GGUF.")
    }


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F32, GGMLQuantizationType.F16])
def test_other_sources(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    source = write_small_llama(tmp_path / "source.gguf", layers=1, kind=kind, tied=True)
    _compare(source, "Q4_K_M", tmp_path)


def test_parts_become_one_file(tmp_path: Path) -> None:
    source = write_small_llama(tmp_path / "split.gguf", layers=1, tensors_per_part=4)
    assert source.name == "split-00001-of-00003.gguf"
    written = convert(source, tmp_path / "ours.gguf", "Q4_0")
    assert len(written.inputs) == 3
    reference.quantize(source, tmp_path / "theirs.gguf", "Q4_0")
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    assert reference.tensors(ours) == reference.tensors(theirs)


def test_requantizing_keeps_blocks_of_the_same_type(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "q4.gguf", "Q4_0")
    with pytest.raises(InvalidParameter, match="is Q4_0 already"):
        convert(tmp_path / "q4.gguf", tmp_path / "no.gguf", "Q5_K_M")
    convert(tmp_path / "q4.gguf", tmp_path / "ours.gguf", "Q4_K_M", requantize=True)
    reference.quantize(tmp_path / "q4.gguf", tmp_path / "theirs.gguf", "Q4_K_M")
    ours = reference.tensors(tmp_path / "ours.gguf")
    assert ours == reference.tensors(tmp_path / "theirs.gguf")


def test_overrides(tiny: Path, tmp_path: Path) -> None:
    overrides = (types.parse_override("ATTN_V=q8_0"), types.parse_override(r"blk\.0\.ffn=q5_1"))
    convert(tiny, tmp_path / "out.gguf", "Q4_K_M", overrides=overrides)
    found = reference.tensors(tmp_path / "out.gguf")
    assert found["blk.0.attn_v.weight"][0] == "Q8_0"
    assert found["blk.0.ffn_up.weight"][0] == "Q5_1"
    assert found["blk.0.attn_q.weight"][0] == "Q4_K"
    for text in ("attn_v", "=q8_0", "attn_v=q9", "attn_v=i8", "(=q8_0"):
        with pytest.raises(InvalidParameter):
            types.parse_override(text)


def test_names_of_types() -> None:
    assert types.parse("q4_k").name == "Q4_K_M"
    assert types.parse(" Q8_0 ").number == 7
    with pytest.raises(InvalidParameter) as raised:
        types.parse("Q4_X")
    assert raised.value.hint == "there are Q4_0, Q4_1, Q4_K_S, Q4_K_M"
    with pytest.raises(InvalidParameter, match="NVFP4"):
        types.parse("NVFP4")


# importance matrices


def _write_importance(path: Path, model: Model, counts: float = 2.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    writer = GGUFWriter(path, "llama")
    writer.add_array("imatrix.datasets", ["wiki"])
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 512)
    sums = {}
    for tensor in model.tensors:
        if len(tensor.shape) == 2 and tensor.name.startswith("blk."):
            values = random.uniform(0.1, 4, (1, tensor.shape[-1])).astype(np.float32)
            writer.add_tensor(f"{tensor.name}.in_sum2", values)
            writer.add_tensor(f"{tensor.name}.counts", np.full((1, 1), counts, np.float32))
            sums[tensor.name] = values[0]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sums


@pytest.mark.parametrize("quant", ["Q4_K_M", "Q2_K_S", "Q4_0"])
def test_importance_matrix(quant: str, tiny: Path, tmp_path: Path) -> None:
    model = gguf_source.open_model([tiny])
    sums = _write_importance(tmp_path / "imatrix.gguf", model)
    matrix = importance.load(tmp_path / "imatrix.gguf")
    convert(tiny, tmp_path / "ours.gguf", quant, importance=matrix)
    halves = {name: (values / np.float32(2)).tolist() for name, values in sums.items()}
    reference.quantize(tiny, tmp_path / "theirs.gguf", quant, importance=halves)
    ours = reference.tensors(tmp_path / "ours.gguf")
    assert ours == reference.tensors(tmp_path / "theirs.gguf")
    keys = gguf_source.contents(tmp_path / "ours.gguf")[0]
    assert keys["quantize.imatrix.dataset"].value == "wiki"
    assert keys["quantize.imatrix.entries_count"].value == len(sums)


def test_what_needs_an_importance_matrix_says_so(tiny: Path, tmp_path: Path) -> None:
    for quant in ("IQ2_XXS", "IQ1_S", "Q2_K_S", "IQ3_XXS"):
        with pytest.raises(InvalidParameter, match=f"{quant} needs an importance matrix: blk.0"):
            convert(tiny, tmp_path / "out.gguf", quant)
    # ggml would end the process for these, wherever they stand.
    overrides = (types.parse_override("token_embd=iq2_xs"),)
    with pytest.raises(InvalidParameter, match="becomes IQ2_XS"):
        convert(tiny, tmp_path / "out.gguf", "Q4_0", overrides=overrides)
    assert not list(tmp_path.iterdir())


def test_foreign_importance_matrices(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no sums"):
        importance.load(tiny)
    model = gguf_source.open_model([tiny])
    narrow = [replace(t, shape=(*t.shape[:-1], t.shape[-1] // 2)) for t in model.tensors]
    _write_importance(tmp_path / "narrow.gguf", replace(model, tensors=narrow))
    matrix = importance.load(tmp_path / "narrow.gguf")
    with pytest.raises(InvalidParameter, match="has 256 numbers"):
        convert(tiny, tmp_path / "out.gguf", "Q2_K_S", importance=matrix)


# the file


def test_same_bytes_twice_and_true_digests(tiny: Path, tmp_path: Path) -> None:
    first = convert(tiny, tmp_path / "first.gguf", "Q4_K_M", threads=3)
    second = convert(tiny, tmp_path / "second.gguf", "Q4_K_M", threads=1)
    assert (tmp_path / "first.gguf").read_bytes() == (tmp_path / "second.gguf").read_bytes()
    assert first.sha256 == second.sha256 == _sha256(tmp_path / "first.gguf")
    assert first.inputs == {tiny.name: _sha256(tiny)}
    keys = gguf_source.contents(tmp_path / "first.gguf")[0]
    assert keys["localllama.source.sha256"].value == [_sha256(tiny)]
    assert keys["localllama.source.files"].value == [tiny.name]
    assert keys["localllama.recipe"].value == "Q4_K_M"
    assert "LLAMA 2 Community License" in str(keys["localllama.license.notice"].value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.gguf", "second.gguf"]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_origin_survives_a_second_step(tiny: Path, tmp_path: Path) -> None:
    model, origin = opening.open_path(tiny)
    origin = replace(origin, repo="meta-llama/Llama-2-7b-hf", revision="abc", licence="Terms")
    recipe = Recipe(types.parse("BF16"))
    finish(writer.write(lay_out(model, recipe, origin), tmp_path / "one.gguf", threads=1))
    convert(tmp_path / "one.gguf", tmp_path / "two.gguf", "Q4_0")
    keys = gguf_source.contents(tmp_path / "two.gguf")[0]
    assert keys["localllama.source.repository"].value == "meta-llama/Llama-2-7b-hf"
    assert keys["localllama.license.text"].value == "Terms"


def test_notices() -> None:
    text = "LLAMA 2 COMMUNITY LICENSE AGREEMENT\n\t\nLlama 2 Version Release Date: July 18, 2023"
    assert provenance.notice(Model("llama", {}, ()), text).startswith("Llama 2 is licensed under")
    assert provenance.notice(Model("llama", {}, ()), "MIT License") == ""


def test_an_end_before_the_end_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"what was there before")
    model, origin = opening.open_path(tiny)
    layout = lay_out(model, Recipe(types.parse("Q4_K_M")), origin)
    with closing(writer.write(layout, out, threads=2)) as work:
        assert next(work).phase == "convert"
    assert out.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [out]


def test_leftovers_of_killed_conversions_go(tiny: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.gguf.999999999.tmp"
    left.write_bytes(b"half")
    convert(tiny, tmp_path / "out.gguf", "Q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_odd_weights(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        source = write_small_llama(
            tmp_path / "odd.gguf", layers=1, spoil={"blk.0.ffn_up.weight": value}
        )
        notes = [p.note for p in _events(source, tmp_path / "out.gguf", "F16") if p.note]
        assert len(notes) == 1 and "blk.0.ffn_up.weight" in notes[0]
        with pytest.raises(BadFile, match=r"blk\.0\.ffn_up\.weight .* which Q4_K cannot hold"):
            convert(source, tmp_path / "no.gguf", "Q4_K_M")
    source = write_small_llama(tmp_path / "odd.gguf", layers=1, spoil={"output.weight": 1e9})
    notes = [p.note for p in _events(source, tmp_path / "out.gguf", "F16") if p.note]
    assert notes == ["output.weight holds weights that are infinite as F16: BF16 can hold them"]
    assert not (tmp_path / "no.gguf").exists()


def _events(source: Path, out: Path, quant: str) -> Generator[Progress, None, Written]:
    model, origin = opening.open_path(source)
    return writer.write(lay_out(model, Recipe(types.parse(quant)), origin), out, threads=1)


def test_a_source_that_changes_is_noticed(tmp_path: Path) -> None:
    source = write_small_llama(tmp_path / "source.gguf", layers=1)
    events = _events(source, tmp_path / "out.gguf", "Q8_0")
    next(events)
    with source.open("ab") as file:
        file.write(b"more")
    with pytest.raises(BadFile, match=r"source\.gguf changed while it was (read|converted)"):
        finish(events)
    assert not (tmp_path / "out.gguf").exists()


def test_a_place_that_cannot_be(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="is the file to convert"):
        convert(tiny, tiny, "Q8_0")
    huge = write_header(tmp_path / "huge.gguf", replace(LLAMA2["Llama-2-70B"], layers=500))
    model, origin = opening.open_path(huge)
    recipe = Recipe(types.parse("F32"), requantize=True)
    with pytest.raises(NotEnoughDisk):
        finish(writer.write(lay_out(model, recipe, origin), tmp_path / "out.gguf", threads=1))


def test_a_disk_that_fills_up(tiny: Path, tmp_path: Path) -> None:
    work = _events(tiny, tmp_path / "out.gguf", "BF16")
    next(work)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # as a full disk: no more bytes
    try:
        with pytest.raises(DiskFull, match="the disk is full"):
            finish(work)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_conversion_leaves_no_result(
    end: signal.Signals, smollm2: Path, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"  # of a model that takes seconds: the signal comes long before
    command = [*cli.COMMAND, "quantize", str(smollm2), str(out), "Q6_K", "--allow-requantize"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.readline()  # the first pieces are written
    process.send_signal(end)
    process.communicate()
    assert process.returncode == (130 if end == signal.SIGINT else -signal.SIGKILL)
    assert not out.exists()
    assert cli.run("quantize", str(tiny), str(out), "Q8_0").returncode == 0
    assert list(tmp_path.iterdir()) == [out]


class _Shelf:
    """Files that come when they are asked for, one after the other."""

    def __init__(self) -> None:
        self.here: list[str] = []
        self.most = 0

    def need(self, name: str) -> None:
        if name not in self.here:
            self.here.append(name)
        self.most = max(self.most, len(self.here))

    def done(self, name: str) -> None:
        self.here.remove(name)


def test_files_come_and_go(tmp_path: Path) -> None:
    source = write_small_llama(tmp_path / "split.gguf", layers=2, tensors_per_part=4)
    model, origin = opening.open_path(source)
    shelf = _Shelf()

    def guarded(tensor: Tensor) -> Tensor:
        def read(begin: int, end: int) -> Rows:
            assert set(tensor.files) <= set(shelf.here)
            return tensor.read(begin, end)

        return replace(tensor, read=read)

    tensors = [guarded(tensor) for tensor in model.tensors]
    layout = lay_out(replace(model, tensors=tensors), Recipe(types.parse("Q4_0")), origin)
    written = finish(writer.write(layout, tmp_path / "out.gguf", threads=2, files=shelf))
    assert shelf.here == [] and shelf.most == 1
    assert written.sha256 == convert(source, tmp_path / "same.gguf", "Q4_0").sha256


def test_rows_that_no_type_holds(tmp_path: Path) -> None:
    shape = Shape(2, 96, 2, 2, 160, 320)
    model = gguf_source.open_model([write_header(tmp_path / "h.gguf", shape, quantized=False)])
    with pytest.raises(UnsupportedFile, match="rows of 96 elements, which Q1_0 cannot hold"):
        types.choose(model, types.parse("Q1_0"))


def test_copy_keeps_every_type(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "copy.gguf", "copy")
    assert reference.tensors(tmp_path / "copy.gguf") == reference.tensors(tiny)
    assert gguf_source.contents(tmp_path / "copy.gguf")[0]["general.file_type"].value == 32

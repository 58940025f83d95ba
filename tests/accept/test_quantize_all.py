"""Every type at every shape, and every byte of the real model, against the installed llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_headers import write_header

from localllama.convert import gguf_source, types
from localllama.errors import UnsupportedFile
from tests.support import reference
from tests.support.models import smollm2
from tests.support.small_llama import write_small_llama
from tests.support.smollm2 import write_checkpoint
from tests.test_quantize import FAST, SHAPES, SLOW, convert

pytestmark = [pytest.mark.accept, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("has_importance", [False, True])
def test_every_type_at_every_shape(name: str, has_importance: bool, tmp_path: Path) -> None:
    path = write_header(tmp_path / "header.gguf", SHAPES[name], quantized=False)
    model = gguf_source.open_model([path])
    importance = {"any": [1.0]} if has_importance else None
    for quant in types.offered():
        try:
            chosen = types.choose(model, quant, has_importance=has_importance)
        except UnsupportedFile:
            continue
        ours = [(tensor.name, kind.name) for tensor, kind in chosen]
        wanted = reference.chosen_types(path, quant.name, importance)
        assert ours == list(wanted.items()), quant.name


@pytest.mark.parametrize("quant", SLOW)
def test_slow_types_of_the_small_model(quant: str, tmp_path: Path) -> None:
    source = write_small_llama(tmp_path / "small.gguf")
    convert(source, tmp_path / "ours.gguf", quant)
    reference.quantize(source, tmp_path / "theirs.gguf", quant)
    ours = reference.tensors(tmp_path / "ours.gguf")
    assert ours == reference.tensors(tmp_path / "theirs.gguf")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("smollm2") / "checkpoint", smollm2())


@pytest.mark.parametrize("quant", FAST + SLOW)
def test_bytes_of_the_real_model(quant: str, checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.with_name("whole.gguf")
    if not whole.exists():
        convert(checkpoint, whole, "BF16")
    convert(checkpoint, tmp_path / "ours.gguf", quant)
    reference.quantize(whole, tmp_path / "theirs.gguf", quant)
    ours = reference.tensors(tmp_path / "ours.gguf")
    assert ours == reference.tensors(tmp_path / "theirs.gguf")

"""Legacy GGML files: the same rows and blocks, and words for those that cannot be read."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

from localllama.convert.ggml import is_legacy, open_legacy
from localllama.convert.opening import open_path
from localllama.errors import BadFile, UnsupportedFile, UsageProblem
from tests.support.checkpoints import Shape
from tests.support.ggml_maker import write_ggml
from tests.support.torch_files import meta_weights

SHAPE = Shape(vocabulary=300)


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.Q4_0, Type.Q5_1, Type.Q8_0])
def test_rows_and_blocks_are_those_of_the_file(kind: Type, tmp_path: Path) -> None:
    model = open_legacy(write_ggml(tmp_path / "llama-2.ggmlv3.bin", SHAPE, kind))
    weights = meta_weights(SHAPE)["layers.1.feed_forward.w2.weight"]
    blocks = quantize(weights, kind)
    tensor = next(tensor for tensor in model.tensors if tensor.name == "blk.1.ffn_down.weight")
    assert (tensor.type, tensor.shape) == (kind.name, weights.shape)
    assert tensor.copy
    assert tensor.copy(3, 7).tobytes() == blocks[3:7].tobytes()
    assert np.array_equal(tensor.read(3, 7), dequantize(blocks[3:7], kind))


def test_metadata_comes_of_the_numbers_and_the_vocabulary(tmp_path: Path) -> None:
    path = write_ggml(tmp_path / "llama-2.ggmlv3.q4_0.bin", SHAPE)
    assert is_legacy(path)
    values = {key: field.value for key, field in open_legacy(path).metadata.items()}
    assert values["general.name"] == "llama-2.ggmlv3.q4_0"
    assert values["llama.attention.head_count_kv"] == SHAPE.kv_heads
    assert values["llama.feed_forward_length"] == SHAPE.hidden
    assert values["llama.context_length"] == 4096
    assert values["llama.attention.layer_norm_rms_epsilon"] == 1e-5
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list) and isinstance(types, list)
    assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert tokens[260] == "▁word▁260"
    assert types[1:4] == [3, 3, 6]
    given = open_legacy(path, eps=1e-6, context=2048).metadata
    assert given["llama.attention.layer_norm_rms_epsilon"].value == 1e-6
    assert given["llama.context_length"].value == 2048


def test_the_sizes_that_only_llama_1_has_get_its_numbers(tmp_path: Path) -> None:
    shape = Shape(layers=60, width=32, heads=2, kv_heads=2, hidden=32, vocabulary=300)
    metadata = open_legacy(write_ggml(tmp_path / "30b.bin", shape)).metadata
    assert metadata["llama.attention.layer_norm_rms_epsilon"].value == 1e-6
    assert metadata["llama.context_length"].value == 2048


@pytest.mark.parametrize(("version", "kind"), [(1, Type.F16), (2, Type.F16), (2, Type.Q5_0)])
def test_older_versions_are_read_where_blocks_are_today_s(
    version: int, kind: Type, tmp_path: Path
) -> None:
    assert open_legacy(write_ggml(tmp_path / "old.bin", SHAPE, kind, version=version)).tensors


@pytest.mark.parametrize(("version", "kind"), [(1, Type.Q5_0), (2, Type.Q4_0), (4, Type.F16)])
def test_older_versions_with_other_blocks_are_refused(
    version: int, kind: Type, tmp_path: Path
) -> None:
    path = write_ggml(tmp_path / "old.bin", SHAPE, kind, version=version)
    with pytest.raises(UnsupportedFile, match=r"old\.bin"):
        open_legacy(path)
    path.write_bytes(b"lmgg" + path.read_bytes()[8:])
    assert is_legacy(path)
    with pytest.raises(UnsupportedFile, match="oldest format"):
        open_legacy(path)


def test_cut_and_overwritten_files_are_told(tmp_path: Path) -> None:
    path = write_ggml(tmp_path / "damaged.bin", SHAPE)
    whole, random = path.read_bytes(), Random(5)
    for step in range(100):
        place = random.randrange(8, len(whole) if step % 2 else 8000)
        cut = step % 2 == 1
        path.write_bytes(whole[:place] + (b"" if cut else b"\xff" * 4 + whole[place + 4 :]))
        try:
            open_legacy(path)
        except BadFile as problem:
            assert problem.path == str(path)
        else:
            assert not cut


def test_paths_are_opened_for_what_they_are(tmp_path: Path) -> None:
    path = write_ggml(tmp_path / "llama.ggmlv3.bin", SHAPE)
    model, origin = open_path(path, eps=2e-6)
    assert model.metadata["llama.attention.layer_norm_rms_epsilon"].value == 2e-6
    assert [file.path for file in origin.inputs] == [path]
    part = tmp_path / "pytorch_model.bin"
    part.write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageProblem) as caught:
        open_path(part)
    assert str(tmp_path) in caught.value.hint
    with pytest.raises(UsageProblem, match="epsilon"):
        open_path(tmp_path, eps=1e-6)

"""Checkpoints of every layout: the same weights become the same tensors, damage becomes words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllama.convert.checkpoint import open_checkpoint
from localllama.convert.model import Field, Model, Tensor
from localllama.convert.source import Folder
from localllama.errors import BadFile, UnsupportedFile
from tests.support.checkpoints import (
    Shape,
    write_checkpoint,
    write_json,
    write_sentencepiece,
)
from tests.support.torch_files import write_meta, write_torch

SHAPE = Shape()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained vocabulary."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_sentencepiece(folder, SHAPE.vocabulary - 10)
    return folder


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Path) -> Path:
    """A folder with the vocabulary, to which weights are added."""
    return with_tokenizer(tmp_path / "checkpoint", tokenizer)


def with_tokenizer(folder: Path, tokenizer: Path) -> Path:
    folder.mkdir()
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def opened(folder: Path) -> Model:
    return open_checkpoint(Folder.of(folder))


def contents(model: Model) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: whole(tensor) for tensor in model.tensors}


def whole(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.read(0, tensor.shape[0] if len(tensor.shape) > 1 else 1)


def same(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) for name in one
    )


def problem_of(folder: Path) -> BadFile:
    with pytest.raises(BadFile) as caught:
        opened(folder)
    return caught.value


@pytest.mark.parametrize("shards", [1, 3])
def test_files_of_either_format_hold_the_same_tensors(
    shards: int, folder: Path, tmp_path: Path, tokenizer: Path
) -> None:
    write_checkpoint(folder, SHAPE, shards=shards)
    other = with_tokenizer(tmp_path / "pickled", tokenizer)
    write_json(other / "config.json", SHAPE.config())
    weights = SHAPE.weights()
    if shards == 1:
        write_torch(other / "pytorch_model.bin", weights)
    else:
        places = {name: f"pytorch_model-{i % shards}.bin" for i, name in enumerate(weights)}
        write_json(other / "pytorch_model.bin.index.json", {"weight_map": places})
        for file in set(places.values()):
            part = {name: values for name, values in weights.items() if places[name] == file}
            write_torch(other / file, part)
    one, two = opened(folder), opened(other)
    assert same(contents(one), contents(two))
    assert one.metadata | {"general.name": None} == two.metadata | {"general.name": None}
    assert {tensor.type for tensor in one.tensors} == {"BF16"}


@pytest.mark.parametrize(("shards", "llama3"), [(1, False), (2, False), (8, False), (2, True)])
def test_meta_s_layout_holds_the_same_tensors(
    shards: int, llama3: bool, folder: Path, tmp_path: Path, tokenizer: Path
) -> None:
    shape = Shape(kv_heads=8)
    write_checkpoint(folder, shape)
    above = with_tokenizer(tmp_path / "meta", tokenizer)  # Meta's download puts it there
    (above / "tokenizer_config.json").unlink()
    other = opened(write_meta(above / "7B", shape, shards=shards, llama3=llama3))
    one = opened(folder)
    assert same(contents(one), contents(other))
    # The tokenizer's configuration, which Meta has not, gives special tokens other scores.
    told_apart = {"llama.context_length", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}
    for key, value in one.metadata.items():
        if key.startswith(("llama.", "tokenizer.ggml.")) and key not in told_apart:
            assert other.metadata.get(key, Field("bool", False)) == value, key
    assert other.metadata["llama.context_length"].value == 4096


def test_rows_are_the_same_read_in_any_pieces(folder: Path) -> None:
    write_checkpoint(folder, SHAPE)
    for tensor in opened(folder).tensors:
        rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
        for step in (1, 3, 5, 16):
            pieces = [tensor.read(at, min(at + step, rows)) for at in range(0, rows, step)]
            assert all(piece.flags.c_contiguous for piece in pieces)
            assert np.array_equal(np.concatenate(pieces), whole(tensor))


def test_q_and_k_are_turned_from_halves_to_pairs(folder: Path) -> None:
    shape = Shape(layers=1, width=8, heads=2, kv_heads=1, hidden=32, vocabulary=400)
    weights = shape.weights()
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = np.repeat(np.arange(8, dtype=np.float32)[:, None], 8, axis=1)
    write_checkpoint(folder, shape, weights=weights)
    tensors = contents(opened(folder))
    assert tensors["blk.0.attn_q.weight"][:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_each_type_is_widened_exactly(kind: str, folder: Path) -> None:
    weights = SHAPE.weights()
    if kind == "F16":
        weights = {name: values.astype(np.float16).astype("f4") for name, values in weights.items()}
    write_checkpoint(folder, SHAPE, kind=kind, weights=weights)
    tensors = contents(opened(folder))
    assert np.array_equal(tensors["output.weight"], weights["lm_head.weight"])
    assert np.array_equal(tensors["output_norm.weight"][0], weights["model.norm.weight"])


def test_threads_read_at_the_same_time(folder: Path) -> None:
    write_checkpoint(folder, SHAPE)
    model = opened(folder)
    want = contents(model)
    with ThreadPoolExecutor(8) as pool:
        for tensor, rows in zip(model.tensors, pool.map(whole, model.tensors), strict=True):
            assert np.array_equal(rows, want[tensor.name])


def test_a_file_that_changes_while_it_is_read_is_told(folder: Path) -> None:
    write_checkpoint(folder, SHAPE)
    tensor = opened(folder).tensors[-1]
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BadFile, match=r"model\.safetensors changed while it was read"):
        whole(tensor)
    weights.unlink()
    with pytest.raises(BadFile, match="cannot read"):
        whole(tensor)


def test_shards_are_opened_when_they_are_read(folder: Path) -> None:
    write_checkpoint(folder, SHAPE, shards=2)
    second = folder / "model-00002-of-00002.safetensors"
    model = opened(folder)
    away = second.rename(folder / "still to come")
    early = [tensor for tensor in model.tensors if second.name not in tensor.files]
    late = [tensor for tensor in model.tensors if second.name in tensor.files]
    assert early and late
    for tensor in early:
        whole(tensor)
    away.rename(second)
    whole(late[0])


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository that answers for bytes of its files and keeps count of them."""

    folder: Folder
    reads: list[tuple[str, int]] = field(default_factory=list)
    name: str = "owner/small-llama"

    @property
    def sizes(self) -> Mapping[str, int]:
        return self.folder.sizes

    def read(self, name: str, begin: int, end: int) -> bytes:
        self.reads.append((name, end - begin))
        return self.folder.read(name, begin, end)

    def path(self, name: str) -> Path:
        return Path("still to come") / name


def test_headers_are_all_that_is_read_of_files_still_to_come(folder: Path) -> None:
    write_checkpoint(folder, SHAPE, shards=3)
    remote = Remote(Folder.of(folder))
    model = open_checkpoint(remote)
    assert model.metadata["general.name"].value == "Small Llama"
    read = [length for name, length in remote.reads if name.endswith(".safetensors")]
    assert len(read) == 6  # for each shard the length of its header, then the header
    assert sum(read) < 3000
    with pytest.raises(BadFile, match="still to come"):
        whole(model.tensors[0])


def test_frequencies_of_llama_3_1_are_a_tensor(folder: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    shape = Shape(width=256, heads=2, kv_heads=1)
    config = shape.config(rope_scaling=scaling, rope_theta=500000.0)
    write_checkpoint(folder, shape, config=config)
    factors = contents(opened(folder))["rope_freqs.weight"][0]
    assert factors.shape == (64,)
    assert factors[:29].tolist() == [1.0] * 29  # short waves are left alone
    assert factors[35:].tolist() == [8.0] * 29  # long ones stretched by the whole factor
    assert np.all(np.diff(factors) >= 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": []}, "unknown"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "longrope"),
    ],
)
def test_other_kinds_of_models_are_named(
    change: dict[str, object], words: str, folder: Path
) -> None:
    write_checkpoint(folder, SHAPE, config=SHAPE.config(**change))
    problem = problem_of(folder)
    assert isinstance(problem, UnsupportedFile)
    assert words in problem.message
    assert "GGUF" in problem.hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": -1}, "$.hidden_size"),
        ({"hidden_size": "64"}, "$.hidden_size"),
        ({"num_hidden_layers": 10**9}, "$.num_hidden_layers"),
        ({"num_hidden_layers": 3}, "model.layers.2.self_attn.q_proj.weight"),
        ({"num_hidden_layers": 1}, "model.layers.1"),
        ({"num_attention_heads": 7}, "7 heads"),
        ({"num_key_value_heads": 3}, "share 3"),
        ({"intermediate_size": 128}, "mlp."),
        ({"vocab_size": 500}, "embed_tokens"),
        ({"vocab_size": 2**23}, "8388608 tokens"),
        ({"attention_bias": True}, "bias"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
    ],
)
def test_hyperparameters_that_do_not_fit_are_told(
    change: dict[str, object], words: str, folder: Path
) -> None:
    write_checkpoint(folder, SHAPE, config=SHAPE.config(**change))
    assert words in problem_of(folder).message


def test_missing_and_extra_tensors_are_named(folder: Path) -> None:
    weights = SHAPE.weights()
    kept = weights.pop("model.layers.1.mlp.up_proj.weight")
    write_checkpoint(folder, SHAPE, weights=weights)
    assert "model.layers.1.mlp.up_proj.weight" in problem_of(folder).message
    weights["model.layers.1.mlp.up_proj.weight"] = kept
    weights["model.vision_tower.weight"] = kept
    write_checkpoint(folder, SHAPE, weights=weights)
    problem = problem_of(folder)
    assert "model.vision_tower.weight" in problem.message
    assert problem.path.endswith("model.safetensors")


def test_what_follows_from_the_hyperparameters_is_left_out(folder: Path) -> None:
    weights = SHAPE.weights()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    write_checkpoint(folder, SHAPE, weights=weights)
    assert len(opened(folder).tensors) == len(weights) - 1


def test_integers_are_refused(folder: Path) -> None:
    write_checkpoint(folder, SHAPE)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"BF16"', b'"I16" ', 1))
    problem = problem_of(folder)
    assert isinstance(problem, UnsupportedFile)
    assert "I16" in problem.message


def test_a_shard_that_lacks_a_tensor_of_the_index_is_named(folder: Path) -> None:
    write_checkpoint(folder, SHAPE, shards=2)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.more.weight"] = "model-00001-of-00002.safetensors"
    write_json(index, content)
    message = problem_of(folder).message
    assert "model-00001-of-00002.safetensors lacks the tensor 'model.more.weight'" in message
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "'model-00002-of-00002.safetensors', which is missing" in problem_of(folder).message


def test_a_folder_without_weights_says_what_it_wants(tmp_path: Path) -> None:
    problem = problem_of(tmp_path)
    assert "consolidated.*.pth" in problem.hint
    with pytest.raises(BadFile, match="cannot read"):
        Folder.of(tmp_path / "none")


def test_a_clone_without_its_large_files_is_told(tmp_path: Path) -> None:
    pointer = tmp_path / "model.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    problem = problem_of(tmp_path)
    assert problem.path == str(pointer)
    assert "lfs pull" in problem.hint

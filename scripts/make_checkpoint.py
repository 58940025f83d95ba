"""Writes a random Llama checkpoint in BF16 of any shape, as Hugging Face has it, shard by shard.

The numbers come from one block of random ones that is used again and again: 13 GB take seconds.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from random import Random

import numpy as np
from sentencepiece import SentencePieceTrainer

_BLOCK = 1 << 24


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The numbers of a Llama; ``shards`` = how many safetensors files it is spread over."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int = 32000
    shards: int = 1


SHAPES = {
    "small": Dimensions(8, 512, 8, 2, 1024, 1000),
    "1.1B": Dimensions(22, 2048, 32, 4, 5632),
    "7B": Dimensions(32, 4096, 32, 32, 11008, shards=2),
}


def write_checkpoint(folder: Path, shape: Dimensions) -> Path:
    """Write the checkpoint and return ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(folder, shape)
    _write_vocabulary(folder)
    random = np.random.default_rng(0).standard_normal(_BLOCK, np.float32) * np.float32(0.02)
    block = (random.view(np.uint32) >> 16).astype("<u2")
    tensors = list(_tensors(shape))
    places: dict[str, str] = {}
    for number in range(shape.shards):
        part = tensors[number :: shape.shards] if shape.shards > 1 else tensors
        suffix = f"-{number + 1:05}-of-{shape.shards:05}" if shape.shards > 1 else ""
        file = f"model{suffix}.safetensors"
        _write_safetensors(folder / file, part, block)
        places |= dict.fromkeys((name for name, _ in part), file)
    if shape.shards > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _tensors(shape: Dimensions) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, kv_width = shape.width, shape.width // shape.heads * shape.kv_heads
    yield "model.embed_tokens.weight", (shape.vocabulary, width)
    for layer in range(shape.layers):
        place = f"model.layers.{layer}"
        yield f"{place}.self_attn.q_proj.weight", (width, width)
        yield f"{place}.self_attn.k_proj.weight", (kv_width, width)
        yield f"{place}.self_attn.v_proj.weight", (kv_width, width)
        yield f"{place}.self_attn.o_proj.weight", (width, width)
        yield f"{place}.mlp.gate_proj.weight", (shape.feed_forward, width)
        yield f"{place}.mlp.up_proj.weight", (shape.feed_forward, width)
        yield f"{place}.mlp.down_proj.weight", (width, shape.feed_forward)
        yield f"{place}.input_layernorm.weight", (width,)
        yield f"{place}.post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (shape.vocabulary, width)


def _write_safetensors(
    path: Path, tensors: list[tuple[str, tuple[int, ...]]], block: np.ndarray
) -> None:
    header, end = {}, 0
    for name, shape in tensors:
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, (_, shape) in enumerate(tensors):
            left, begin = prod(shape), number * 12_345 % _BLOCK
            while left:
                piece = block[begin : begin + left]
                file.write(piece.data)
                left, begin = left - len(piece), 0


def _write_config(folder: Path, shape: Dimensions) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def _write_vocabulary(folder: Path) -> None:
    """A small one: the converters pad it to the rows of the embedding."""
    random, model = Random(1), io.BytesIO()
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(500)]
    SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(random.choices(words, k=12)) for _ in range(400)),
        model_writer=model,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))

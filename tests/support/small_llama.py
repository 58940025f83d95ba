"""A small random Llama in F32, F16 or BF16: large enough for every quantization type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

WIDTH, HEADS, KV_HEADS, FEED_FORWARD, VOCABULARY = 512, 8, 2, 768, 512


def write_small_llama(
    path: Path,
    *,
    layers: int = 8,
    kind: GGMLQuantizationType = GGMLQuantizationType.BF16,
    tied: bool = False,
    spoil: dict[str, float] | None = None,
    tensors_per_part: int = 0,
) -> Path:
    """Write it and return its file or first part; ``spoil`` puts a value into named tensors."""
    writer = GGUFWriter(path, "llama", split_max_tensors=tensors_per_part)
    writer.add_type("model")
    writer.add_name("small llama")
    writer.add_license("llama2")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([b"\xff odd", *(f"t{n}".encode() for n in range(1, VOCABULARY))])
    writer.add_token_scores([float(-n) for n in range(VOCABULARY)])
    writer.add_token_types([1] * VOCABULARY)
    random = np.random.default_rng(layers)
    for name, shape in _shapes(layers, tied).items():
        is_matrix = len(shape) == 2
        values = random.normal(0, 0.02, shape) if is_matrix else random.normal(1, 0.1, shape)
        values = values.astype(np.float32)
        if spoil and name in spoil:
            values.flat[values.size // 2] = spoil[name]
        stored = kind if is_matrix else GGMLQuantizationType.F32
        with np.errstate(over="ignore"):
            writer.add_tensor(name, quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return next(iter(sorted(path.parent.glob(f"{path.stem}-00001-of-?????.gguf"))), path)


def _shapes(layers: int, tied: bool) -> dict[str, tuple[int, ...]]:
    kv_width = WIDTH // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, WIDTH)}
    for layer in range(layers):
        block = f"blk.{layer}"
        shapes[f"{block}.attn_norm.weight"] = (WIDTH,)
        shapes[f"{block}.attn_q.weight"] = (WIDTH, WIDTH)
        shapes[f"{block}.attn_k.weight"] = (kv_width, WIDTH)
        shapes[f"{block}.attn_v.weight"] = (kv_width, WIDTH)
        shapes[f"{block}.attn_output.weight"] = (WIDTH, WIDTH)
        shapes[f"{block}.ffn_norm.weight"] = (WIDTH,)
        shapes[f"{block}.ffn_gate.weight"] = (FEED_FORWARD, WIDTH)
        shapes[f"{block}.ffn_up.weight"] = (FEED_FORWARD, WIDTH)
        shapes[f"{block}.ffn_down.weight"] = (WIDTH, FEED_FORWARD)
    shapes["output_norm.weight"] = (WIDTH,)
    return shapes if tied else shapes | {"output.weight": (VOCABULARY, WIDTH)}

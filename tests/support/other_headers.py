"""Headers of models that llama.cpp's mixtures treat otherwise: eight experts, Falcon."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

WIDTH, LAYERS, FEED_FORWARD, VOCABULARY = 512, 16, 1024, 320


def write_mixtral(path: Path) -> Path:
    """A Llama with eight experts a layer."""
    writer = _writer(path, "llama", kv_heads=2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        tensors |= {
            f"{block}.attn_q.weight": (WIDTH, WIDTH),
            f"{block}.attn_k.weight": (128, WIDTH),
            f"{block}.attn_v.weight": (128, WIDTH),
            f"{block}.attn_output.weight": (WIDTH, WIDTH),
            f"{block}.ffn_gate_inp.weight": (8, WIDTH),
            f"{block}.ffn_gate_exps.weight": (8, FEED_FORWARD, WIDTH),
            f"{block}.ffn_up_exps.weight": (8, FEED_FORWARD, WIDTH),
            f"{block}.ffn_down_exps.weight": (8, WIDTH, FEED_FORWARD),
        }
    return _finish(writer, path, tensors)


def write_falcon(path: Path) -> Path:
    """A Falcon, whose queries, keys and values are one matrix."""
    writer = _writer(path, "falcon", kv_heads=1)
    writer.add_layer_norm_eps(1e-5)
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        tensors |= {
            f"{block}.attn_qkv.weight": (WIDTH + 128, WIDTH),
            f"{block}.attn_output.weight": (WIDTH, WIDTH),
            f"{block}.ffn_up.weight": (FEED_FORWARD, WIDTH),
            f"{block}.ffn_down.weight": (WIDTH, FEED_FORWARD),
        }
    return _finish(writer, path, tensors)


def _writer(path: Path, architecture: str, kv_heads: int) -> GGUFWriter:
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(8)
    writer.add_head_count_kv(kv_heads)
    writer.add_vocab_size(VOCABULARY)
    return writer


def _finish(writer: GGUFWriter, path: Path, tensors: dict[str, tuple[int, ...]]) -> Path:
    ends = ("token_embd.weight", "output.weight")
    for name, shape in (tensors | dict.fromkeys(ends, (VOCABULARY, WIDTH))).items():
        kind = GGMLQuantizationType.F32 if "gate_inp" in name else GGMLQuantizationType.F16
        size = prod(shape) * (4 if "gate_inp" in name else 2)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + sum(map(prod, tensors.values())) * 4 + (1 << 20))
    return path

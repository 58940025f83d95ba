"""Writes a GGUF that holds nothing but its header: a Llama of any shape, sparse and full length.

Plans and llama.cpp's simulated allocation read no more than that, so figures for Llama 2 70B need
neither 40 GB of disk nor a licence. The types follow llama.cpp's mixture for Q4_K_M.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType

F16, F32 = GGMLQuantizationType.F16, GGMLQuantizationType.F32
Q4_K, Q5_K, Q6_K = (
    GGMLQuantizationType.Q4_K,
    GGMLQuantizationType.Q5_K,
    GGMLQuantizationType.Q6_K,
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a Llama; ``tied`` = the output layer is the embedding."""

    layers: int
    embedding: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int = 32000
    context_length: int = 4096
    tied: bool = False


LLAMA2 = {
    "Llama-2-7B": Shape(32, 4096, 32, 32, 11008),
    "Llama-2-13B": Shape(40, 5120, 40, 40, 13824),
    "Llama-2-70B": Shape(80, 8192, 64, 8, 28672),
}


def write_header(path: Path, shape: Shape, *, quantized: bool = True) -> Path:
    """Write the header of a Llama of ``shape``, in Q4_K_M or else in F16, and return ``path``."""
    writer = GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_name(path.stem)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.embedding // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_K_M if quantized else LlamaFileType.MOSTLY_F16)
    _add_vocabulary(writer, shape.vocabulary)
    data_bytes = 0
    for name, dimensions, kind in _tensors(shape):
        kind = kind if quantized or kind == F32 else F16
        block, block_bytes = GGML_QUANT_SIZES[kind]
        size = prod(dimensions) // block * block_bytes
        writer.add_tensor_info(name, dimensions, np.dtype(np.float32), size, raw_dtype=kind)
        data_bytes += size + -size % writer.data_alignment
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(header_bytes + -header_bytes % writer.data_alignment + data_bytes)
    return path


def _add_vocabulary(writer: GGUFWriter, size: int) -> None:
    control = ["<unk>", "<s>", "</s>"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*control, *raw, *(f"t{number}" for number in range(size - 259))]
    kinds = [TokenType.CONTROL] * 3 + [TokenType.BYTE] * 256 + [TokenType.NORMAL] * (size - 259)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([float(-number) for number in range(size)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], GGMLQuantizationType]]:
    """Name, dimensions (rows first) and type of every tensor, in llama.cpp's order."""
    width, kv_width = shape.embedding, shape.embedding // shape.heads * shape.kv_heads
    yield "token_embd.weight", (shape.vocabulary, width), Q6_K if shape.tied else Q4_K
    for layer in range(shape.layers):
        better = Q6_K if _gets_more_bits(layer, shape.layers) else Q4_K
        # llama.cpp gives the value matrices of the 70B model, shared by eight heads, a bit more.
        is_70b = shape.layers == 80 and shape.heads != shape.kv_heads
        value = Q5_K if is_70b and better == Q4_K else better
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (width,), F32
        yield f"{block}.attn_q.weight", (width, width), Q4_K
        yield f"{block}.attn_k.weight", (kv_width, width), Q4_K
        yield f"{block}.attn_v.weight", (kv_width, width), value
        yield f"{block}.attn_output.weight", (width, width), Q4_K
        yield f"{block}.ffn_norm.weight", (width,), F32
        yield f"{block}.ffn_gate.weight", (shape.feed_forward, width), Q4_K
        yield f"{block}.ffn_up.weight", (shape.feed_forward, width), Q4_K
        yield f"{block}.ffn_down.weight", (width, shape.feed_forward), better
    yield "output_norm.weight", (width,), F32
    if not shape.tied:
        yield "output.weight", (shape.vocabulary, width), Q6_K


def _gets_more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2

"""Makes GGUFs for tests: tiny Llama models that llama.cpp can load, and headers byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize

EMBEDDING, HEADS, KV_HEADS, FEED_FORWARD = 64, 4, 2, 128
HEAD = EMBEDDING // HEADS

# Types of values.
U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
I8 = 24  # a tensor type


def write_tiny_llama(
    path: Path,
    *,
    layers: int = 2,
    quant: GGMLQuantizationType = GGMLQuantizationType.F32,
    chat_template: str = "",
    tensors_per_part: int = 0,
    seed: int = 0,
    extra: Callable[[GGUFWriter], None] = lambda writer: None,
) -> tuple[Path, ...]:
    """Write a random Llama of ``layers`` layers and return its file, or its parts in order.

    ``extra`` may set more keys, or other values of keys; ``tensors_per_part`` splits the file.
    """
    writer = GGUFWriter(path, "llama", split_max_tensors=tensors_per_part)
    writer.add_type("model")
    writer.add_name("tiny llama")
    writer.add_context_length(256)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    is_plain = quant == GGMLQuantizationType.F32
    writer.add_file_type(LlamaFileType.ALL_F32 if is_plain else LlamaFileType.MOSTLY_Q8_0)
    vocabulary = _add_vocabulary(writer)
    if chat_template:
        writer.add_chat_template(chat_template)
    extra(writer)
    _add_weights(writer, layers, vocabulary, quant, np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tuple(sorted(path.parent.glob(f"{path.stem}-?????-of-?????.gguf"))) or (path,)


def _add_vocabulary(writer: GGUFWriter) -> int:
    """A SentencePiece vocabulary of bytes and letters; return its size."""
    control = ["<unk>", "<s>", "</s>"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["\N{LOWER ONE EIGHTH BLOCK}", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = control + raw + letters
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([float(-index) for index in range(len(tokens))])
    writer.add_token_types(
        [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
        + [TokenType.BYTE] * len(raw)
        + [TokenType.NORMAL] * len(letters)
    )
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    return len(tokens)


def _add_weights(
    writer: GGUFWriter,
    layers: int,
    vocabulary: int,
    quant: GGMLQuantizationType,
    random: np.random.Generator,
) -> None:
    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.normal(0, 0.1, (rows, columns)).astype(np.float32)
        writer.add_tensor(name, quantize(values, quant), raw_dtype=quant)

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(EMBEDDING, np.float32))

    matrix("token_embd.weight", vocabulary, EMBEDDING)
    for layer in range(layers):
        block = f"blk.{layer}"
        ones(f"{block}.attn_norm.weight")
        matrix(f"{block}.attn_q.weight", EMBEDDING, EMBEDDING)
        matrix(f"{block}.attn_k.weight", KV_HEADS * HEAD, EMBEDDING)
        matrix(f"{block}.attn_v.weight", KV_HEADS * HEAD, EMBEDDING)
        matrix(f"{block}.attn_output.weight", EMBEDDING, EMBEDDING)
        ones(f"{block}.ffn_norm.weight")
        matrix(f"{block}.ffn_gate.weight", FEED_FORWARD, EMBEDDING)
        matrix(f"{block}.ffn_up.weight", FEED_FORWARD, EMBEDDING)
        matrix(f"{block}.ffn_down.weight", EMBEDDING, FEED_FORWARD)
    ones("output_norm.weight")
    matrix("output.weight", vocabulary, EMBEDDING)


def string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, payload: bytes) -> bytes:
    """A key-value pair; ``payload`` as it stands in the file."""
    return string(key) + struct.pack("<I", kind) + payload


def text_pair(key: str, text: str) -> bytes:
    return pair(key, STRING, string(text))


def u32_pair(key: str, number: int) -> bytes:
    return pair(key, U32, struct.pack("<I", number))


def array_pair(key: str, kind: int, count: int, payload: bytes = b"") -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + payload)


def tensor(name: str, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    numbers = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + numbers + struct.pack("<IQ", kind, offset)


def gguf_bytes(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    version: int = 3,
    pair_count: int | None = None,
    tensor_count: int | None = None,
    data_bytes: int = 0,
) -> bytes:
    """A header with these pairs and tensors, 32-byte padding, then ``data_bytes`` zeros."""
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*pairs, *tensors))
    return head + bytes(-len(head) % 32 + data_bytes)


def mamba_pairs(layers: int = 1) -> list[bytes]:
    """The fewest keys of a model that is no Llama, so that its tensors are free to choose."""
    return [
        text_pair("general.architecture", "mamba"),
        u32_pair("mamba.block_count", layers),
        u32_pair("mamba.context_length", 128),
        u32_pair("mamba.embedding_length", 32),
    ]

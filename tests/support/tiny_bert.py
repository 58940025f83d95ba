"""A tiny BERT with random weights: an encoder, which llama.cpp loads for embeddings alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter, PoolingType, TokenType

_WIDTH, _HEADS, _FEED_FORWARD, _LONGEST = 64, 4, 128, 64
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = ("the", "llama", "eats", "grass", "and", "sleeps")


def write(path: Path, pooling: PoolingType) -> None:
    """Write the model; it reads at most 64 tokens."""
    writer = GGUFWriter(path, "bert")
    writer.add_context_length(_LONGEST)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    tokens = [*_SPECIAL, *(f"\N{LOWER ONE EIGHTH BLOCK}{word}" for word in _WORDS)]
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * len(_SPECIAL) + [TokenType.NORMAL] * len(_WORDS))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    _add_weights(writer, len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_weights(writer: GGUFWriter, vocabulary: int) -> None:
    random = np.random.default_rng(0)

    def matrix(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.normal(0, 0.2, shape).astype(np.float32))

    def layer(name: str, rows: int, columns: int) -> None:
        matrix(f"{name}.weight", rows, columns)
        matrix(f"{name}.bias", rows)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(_WIDTH, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(_WIDTH, np.float32))

    matrix("token_embd.weight", vocabulary, _WIDTH)
    matrix("token_types.weight", 2, _WIDTH)
    matrix("position_embd.weight", _LONGEST, _WIDTH)
    norm("token_embd_norm")
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        layer(f"blk.0.{part}", _WIDTH, _WIDTH)
    norm("blk.0.attn_output_norm")
    layer("blk.0.ffn_up", _FEED_FORWARD, _WIDTH)
    layer("blk.0.ffn_down", _WIDTH, _FEED_FORWARD)
    norm("blk.0.layer_output_norm")

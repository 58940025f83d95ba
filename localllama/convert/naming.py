"""What a Llama's tensors are called in checkpoints, and in a GGUF."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_IN_LAYER = re.compile(r"(.+)\.(\d{1,4})\.(.+)\.(weight|bias)")
_IN_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Naming:
    """One layout's names: whole ones outside the layers, those within below ``layers``."""

    layers: str
    outer: Mapping[str, str]
    inner: Mapping[str, str]

    def in_gguf(self, name: str) -> str:
        """Return the tensor's name in a GGUF, or "" if a Llama has no such tensor."""
        parts = _IN_LAYER.fullmatch(name)
        if not parts or parts[1] != self.layers:
            return self.outer.get(name, "")
        part = self.inner.get(parts[3])
        return f"blk.{int(parts[2])}.{part}.{parts[4]}" if part else ""

    def in_file(self, gguf_name: str) -> str:
        """Return what this layout calls the tensor ``gguf_name``."""
        parts = _IN_BLOCK.fullmatch(gguf_name)
        if not parts:
            return next(own for own, common in self.outer.items() if common == gguf_name)
        inner = next(own for own, common in self.inner.items() if common == parts[2])
        return f"{self.layers}.{parts[1]}.{inner}.{parts[3]}"


HUGGING_FACE = Naming(
    "model.layers",
    {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    },
    {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    },
)
META = Naming(
    "layers",
    {
        "tok_embeddings.weight": "token_embd.weight",
        "norm.weight": "output_norm.weight",
        "output.weight": "output.weight",
    },
    {
        "attention.wq": "attn_q",
        "attention.wk": "attn_k",
        "attention.wv": "attn_v",
        "attention.wo": "attn_output",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w3": "ffn_up",
        "feed_forward.w2": "ffn_down",
        "attention_norm": "attn_norm",
        "ffn_norm": "ffn_norm",
    },
)

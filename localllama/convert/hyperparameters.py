"""What config.json says of a Llama, with transformers' defaults, and its keys in a GGUF.

The keys are those of llama.cpp's convert_hf_to_gguf.py; its defaults are those of transformers'
LlamaConfig and MistralConfig, which it reads the file through.
"""

from __future__ import annotations

from math import pi
from typing import Annotated

import msgspec
import numpy as np

from localllama.convert.model import Field, Rows
from localllama.convert.source import Source, bad, decode_json, read_text
from localllama.errors import UnsupportedFile

CONFIG = "config.json"
_LLAMA = ("LlamaForCausalLM", "LLaMAForCausalLM")
_MISTRAL = "MistralForCausalLM"
_READY_MADE = (
    "look for a ready GGUF of it instead: localllama search NAME, then localllama pull "
    "hf.co/OWNER/REPO:Q4_K_M"
)
_SCALED = ("linear", "yarn")
_ROPE_KINDS = ("default", "dynamic", "llama3", *_SCALED)  # dynamic begins past the context
_MOST_TOKENS = 1 << 20  # the largest known has 262,144

Layers = Annotated[int, msgspec.Meta(ge=1, le=512)]  # 512 is llama.cpp's limit
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
Positions = Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]
Ratio = Annotated[float, msgspec.Meta(gt=0, lt=1e30)]


class Rope(msgspec.Struct, frozen=True):
    """``rope_scaling``, or ``rope_parameters`` as transformers 5 calls it."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Ratio | None = None
    factor: Ratio | None = None
    low_freq_factor: Ratio = 1.0
    high_freq_factor: Ratio = 4.0
    original_max_position_embeddings: Positions | None = None
    extrapolation_factor: float | None = None
    attention_factor: float | None = None
    attn_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None

    @property
    def kind(self) -> str:
        return (self.type or self.rope_type or "default").lower()


class Hyperparameters(msgspec.Struct, frozen=True):
    """The shape of a Llama."""

    hidden_size: Count = 4096
    intermediate_size: Count = 11008
    num_hidden_layers: Layers = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    vocab_size: Count = 32000
    max_position_embeddings: Positions = 2048
    rms_norm_eps: Ratio = 1e-6
    rope_theta: Ratio = 10000.0
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    quantization_config: dict[str, object] | None = None

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head(self) -> int:
        """Elements in one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def stated_head(self) -> int | None:
        """The head's length where the GGUF tells it apart: transformers always knows a Llama's."""
        return self.head

    @property
    def rope(self) -> Rope:
        return self.rope_parameters or self.rope_scaling or Rope()

    @property
    def theta(self) -> float:
        return self.rope.rope_theta or self.rope_theta


class _Mistral(Hyperparameters, frozen=True):
    intermediate_size: Count = 14336
    num_key_value_heads: Count | None = 8
    max_position_embeddings: Positions = 131_072

    @property
    def stated_head(self) -> int | None:
        return self.head_dim


class _Names(msgspec.Struct, frozen=True):
    architectures: list[str] = []


def read(source: Source) -> Hyperparameters:
    """Return what config.json says; raises BadFile, or UnsupportedFile for another
    architecture."""
    text = read_text(source, CONFIG)
    names = decode_json(text, _Names, source, CONFIG).architectures
    architecture = names[0] if names else "unknown"
    if architecture == _MISTRAL:
        found: Hyperparameters = decode_json(text, _Mistral, source, CONFIG)
    elif architecture in _LLAMA:
        found = decode_json(text, Hyperparameters, source, CONFIG)
    else:
        raise _unsupported(
            source,
            f"is of the architecture {architecture}; those that can be converted are "
            f"{_LLAMA[0]} and {_MISTRAL}",
        )
    check(found, source, CONFIG)
    return found


def check(found: Hyperparameters, source: Source, name: str) -> None:
    """Raise BadFile for a shape that no Llama has, UnsupportedFile for one that llama.cpp lacks."""
    heads = found.num_attention_heads
    if found.head_dim is None and found.hidden_size % heads:
        raise bad(source, name, f"asks for {heads} heads of {found.hidden_size} elements together")
    if heads % found.kv_heads:
        raise bad(source, name, f"asks for {heads} heads that share {found.kv_heads} of K and V")
    if found.head % 2:
        raise bad(source, name, f"asks for heads of {found.head} elements: RoPE turns pairs")
    if found.vocab_size > _MOST_TOKENS:
        raise bad(source, name, f"asks for a vocabulary of {found.vocab_size} tokens")
    if found.quantization_config is not None:
        raise _unsupported(source, "describes weights that are quantized already")
    if found.rope.kind not in _ROPE_KINDS:
        raise _unsupported(source, f"asks for RoPE scaling of the kind {found.rope.kind!r}")
    if found.rope.kind in _SCALED and found.rope.factor is None:
        raise bad(source, name, f"asks for {found.rope.kind} RoPE scaling by no factor")


def _unsupported(source: Source, problem: str) -> UnsupportedFile:
    path = str(source.path(CONFIG))
    return UnsupportedFile(f"{path} {problem}", _READY_MADE, path)


def metadata(of: Hyperparameters) -> dict[str, Field]:
    """Return the keys ``llama.*``."""
    numbers = {
        "block_count": of.num_hidden_layers,
        "context_length": of.max_position_embeddings,
        "embedding_length": of.hidden_size,
        "feed_forward_length": of.intermediate_size,
        "attention.head_count": of.num_attention_heads,
        "attention.head_count_kv": of.kv_heads,
        "vocab_size": of.vocab_size,
        "rope.dimension_count": of.head,
    }
    if of.stated_head:
        numbers |= dict.fromkeys(("attention.key_length", "attention.value_length"), of.stated_head)
    fields = {key: Field("u32", value) for key, value in numbers.items()}
    fields["rope.freq_base"] = Field("f32", of.theta)
    fields["attention.layer_norm_rms_epsilon"] = Field("f32", of.rms_norm_eps)
    if of.rope.kind in ("linear", "yarn"):
        fields |= _scaling(of)
    return {f"llama.{key}": field for key, field in fields.items()}


def _scaling(of: Hyperparameters) -> dict[str, Field]:
    rope = of.rope
    fields = {
        "rope.scaling.type": Field("string", rope.kind),
        "rope.scaling.factor": Field("f32", rope.factor),
    }
    if rope.kind == "linear":
        return fields
    trained = rope.original_max_position_embeddings or of.max_position_embeddings
    fields["rope.scaling.original_context_length"] = Field("u32", trained)
    attention = rope.attn_factor if rope.attention_factor is None else rope.attention_factor
    settings = {
        "yarn_ext_factor": rope.extrapolation_factor,
        "yarn_attn_factor": attention,
        "yarn_beta_fast": rope.beta_fast,
        "yarn_beta_slow": rope.beta_slow,
    }
    stated = {key: value for key, value in settings.items() if value is not None}
    return fields | {f"rope.scaling.{key}": Field("f32", value) for key, value in stated.items()}


def frequency_factors(of: Hyperparameters) -> Rows | None:
    """Return what Llama 3.1 divides each of RoPE's frequencies by, as a row; None for others.

    The formula of transformers' ``_compute_llama3_parameters``, in float32 as the converter's.
    """
    if of.rope.kind != "llama3":
        return None
    rope, f32 = of.rope, np.float32
    trained = rope.original_max_position_embeddings or 8192
    factor = rope.factor or 8.0
    exponents = (np.arange(0, of.head, 2, dtype=f32) / f32(of.head)).astype(np.float64)
    frequencies = f32(1) / (of.theta**exponents).astype(f32)
    lengths = f32(2 * pi) / frequencies
    low, high = f32(rope.low_freq_factor), f32(rope.high_freq_factor)
    smooth = (f32(trained) / lengths - low) / (high - low)
    between = f32(1) / ((f32(1) - smooth) / f32(factor) + smooth)
    long = np.where(lengths > trained / rope.low_freq_factor, f32(factor), between)
    return np.where(lengths < trained / rope.high_freq_factor, f32(1), long).reshape(1, -1)

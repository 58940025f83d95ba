"""llama.cpp's mixtures: how the type of a tensor depends on its role, its layer and the model.

Follows llama_tensor_get_type_impl in llama.cpp's src/llama-quant.cpp, branch by branch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from localllama.convert.model import Model, Tensor
from localllama.gguf_tables import TENSOR_TYPES

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")

_BLOCK_ELEMENTS = {kind.name: kind.block_elements for kind in TENSOR_TYPES.values()}
_LAYER = re.compile(r"blk\.(\d+)\.")
_LOWEST = {"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"}
_VALUE_ROLES = ("attn_qkv", "attn_kv_b", "attn_v")
_EXPERT_OUTPUT = {
    *("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M"),
    *("IQ3_S", "IQ3_M", "IQ4_XS"),
}
_ROLES = (
    *((f"{role}.weight", role) for role in (*_VALUE_ROLES, "attn_k", "attn_q", "attn_output")),
    *((role, role) for role in ("ffn_up", "ffn_gate", "ffn_down")),
)


def layer_of(tensor: str) -> int:
    """Return the layer that a tensor's name tells, -1 for none."""
    match = _LAYER.match(tensor)
    return int(match[1]) if match else -1


@dataclass(frozen=True, slots=True)
class _Facts:
    """What of a model counts for the choice; ``sharing`` query heads use one key-value head."""

    layers: int
    sharing: int
    experts: int
    is_falcon: bool
    is_70b: bool


def _facts(model: Model) -> _Facts:
    def number(key: str, default: int) -> int:
        found = model.metadata.get(f"{model.architecture}.{key}")
        value = found.value if found else default
        value = value[0] if isinstance(value, list | tuple) else value
        return value if isinstance(value, int) else default

    heads = number("attention.head_count", 0)
    kv_heads = number("attention.head_count_kv", heads)
    layers = number("block_count", 0)
    return _Facts(
        layers=layers,
        sharing=heads // kv_heads if kv_heads else 0,
        experts=number("expert_count", 0),
        is_falcon=model.architecture == "falcon",
        is_70b=_is_70b(model.architecture, layers, heads != kv_heads),
    )


def _is_70b(architecture: str, layers: int, shares_heads: bool) -> bool:
    """What llama.cpp takes for one (models/*.cpp), for it gives their value matrices more bits."""
    if architecture == "llama":
        return layers == 80 and shares_heads
    return (architecture, layers) in {("deci", 80), ("jais2", 68), ("olmo", 80), ("qwen2", 80)}


class Mixture:
    """The types of one model's tensors, which must be asked for in llama.cpp's order: it counts."""

    def __init__(self, name: str, default: str, model: Model, has_importance: bool) -> None:
        roles = [_role(tensor.name) for tensor in model.tensors]
        self.name = name
        self.default = default
        self.facts = _facts(model)
        self.has_importance = has_importance
        self.is_tied = "output" not in roles
        self.values = sum(role in _VALUE_ROLES for role in roles)
        self.seen: dict[str, int] = {}

    def type_of(self, tensor: Tensor) -> str:
        """Return what the mixture gives the next tensor."""
        role = _role(tensor.name)
        if role == "output" or (role == "token_embd" and self.is_tied):
            return self._output(tensor)
        if self.name == "MXFP4_MOE":
            return "MXFP4" if len(tensor.shape) > 2 and tensor.shape[0] > 1 else "Q8_0"
        if role == "token_embd":
            return self._embedding()
        if self.name in _LOWEST:
            return self._lowest(role)
        if role in _VALUE_ROLES:
            return self._value(self._count("value"))
        if role in ("attn_k", "attn_q"):
            return self._key_or_query(role)
        if role == "attn_output":
            return self._attention_output()
        if role in ("ffn_up", "ffn_gate"):
            return self._up_or_gate(self._layer(tensor, self._count(role)))
        if role == "ffn_down":
            return self._down(self._layer(tensor, self._count(role)))
        return self.default

    def _count(self, what: str) -> int:
        """How many of these came before."""
        before = self.seen.get(what, 0)
        self.seen[what] = before + 1
        return before

    def _layer(self, tensor: Tensor, counted: int) -> int:
        """The layer; experts do not come in order, so their names tell it."""
        return layer_of(tensor.name) if self.facts.experts > 1 else counted

    def _gets_more_bits(self, layer: int, layers: int) -> bool:
        eighth = layers // 8
        return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2

    def _output(self, tensor: Tensor) -> str:
        name, kind = self.name, self.default
        odd = tensor.shape[-1] % _BLOCK_ELEMENTS[kind] != 0
        if name == "MXFP4_MOE" or self.facts.is_falcon or odd:
            return "Q8_0"
        if name in _LOWEST or name == "IQ3_XXS":
            return "Q5_K"
        return kind if kind == "Q8_0" else "Q6_K"

    def _embedding(self) -> str:
        match self.name:
            case "IQ2_XXS" | "IQ2_XS" | "IQ1_S" | "IQ1_M":
                return "Q2_K"
            case "IQ2_S" | "IQ2_M" | "IQ3_XXS":
                return "IQ3_S"
            case "TQ1_0" | "TQ2_0" | "Q2_0":
                return "Q4_K"
        return self.default

    def _lowest(self, role: str) -> str:
        """The types of two bits and less."""
        better = "IQ3_S" if self.name in ("IQ2_S", "IQ2_M") else "Q2_K"
        if role in _VALUE_ROLES:
            self._count("value")
            return "Q4_K" if self.facts.sharing >= 4 or self.facts.experts >= 4 else better
        if role == "attn_k" and self.facts.experts == 8:
            return "Q4_K"
        if role == "ffn_down" and self._count(role) < self.facts.layers // 8:
            return better
        if role == "attn_output":
            if self.facts.experts == 8:
                return "Q5_K"
            if self.name in ("IQ1_S", "IQ1_M"):
                return "IQ2_XXS"
            return better if better == "IQ3_S" else self.default
        return self.default

    def _value(self, index: int) -> str:
        kind = self._plain_value(index)
        if self.facts.is_70b and kind in ("Q3_K", "Q4_K"):
            kind = "Q5_K"
        return "Q8_0" if self.facts.experts == 8 else kind

    def _plain_value(self, index: int) -> str:
        shared = self.facts.sharing >= 4
        match self.name:
            case "Q2_K":
                return "Q4_K" if shared else "Q3_K"
            case "IQ3_XXS":
                return "Q4_K" if shared else "IQ3_XXS" if self.has_importance else "IQ3_S"
            case "Q2_K_S" | "IQ3_XS" | "IQ3_S" if shared:
                return "Q4_K"
            case "IQ3_M":
                return "Q4_K"
            case "Q3_K_M":
                return "Q5_K" if index < 2 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if shared:
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if self._gets_more_bits(index, self.values):
                return "Q6_K"
            case "Q4_K_S" if index < 4:
                return "Q5_K"
        return self.default

    def _key_or_query(self, role: str) -> str:
        if role == "attn_k" and self.facts.experts == 8:
            return "Q8_0"
        lower = {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}
        return lower.get(self.name, self.default)

    def _attention_output(self) -> str:
        name = self.name
        if self.facts.is_falcon:
            return "Q4_K" if name == "Q3_K_L" else self.default
        if self.facts.experts == 8:
            return "Q5_K" if name in _EXPERT_OUTPUT else self.default
        better = {
            "Q2_K": "Q3_K",
            "IQ3_XXS": "IQ3_S",
            "Q3_K_M": "Q4_K",
            "Q3_K_L": "Q5_K",
            "IQ3_M": "Q4_K",
        }
        return better.get(name, self.default)

    def _up_or_gate(self, layer: int) -> str:
        layers = self.facts.layers
        is_middle = layers // 8 <= layer < 7 * layers // 8
        return "IQ3_XXS" if self.name == "IQ3_XS" and is_middle else self.default

    def _down(self, layer: int) -> str:
        layers, falcon = self.facts.layers, self.facts.is_falcon
        early, more = layer < layers // 8, self._gets_more_bits(layer, layers)
        match self.name:
            case "Q2_K":
                return "Q3_K"
            case "Q2_K_S" if early:
                return "Q4_K"
            case "IQ3_XXS" if not self.has_importance:
                return "Q4_K" if early else "Q3_K"
            case "Q3_K_M":
                if layer < layers // 16:
                    return "Q5_K"
                return "Q4_K" if not falcon or more else "Q3_K"
            case "IQ3_M" if early or (self.facts.experts == 8 and more):
                return "Q4_K"
            case "Q3_K_L":
                return "Q4_K" if falcon else "Q5_K"
            case "Q4_K_M" if falcon:
                return "Q6_K" if layer < layers // 16 else "Q5_K" if more else "Q4_K"
            case "Q4_K_M" | "Q5_K_M" if more:
                return "Q6_K"
            case "IQ4_NL" | "IQ4_XS" if early and not self.has_importance:
                return "Q5_K"
            case "Q4_K_S" if early and not falcon:
                return "Q5_K"
            case "Q4_0" | "Q5_0" if early and self.has_importance:
                return "Q4_1" if self.name == "Q4_0" else "Q5_1"
        return self.default


def _role(name: str) -> str:
    """What a tensor is for, as far as the mixture asks; empty for the rest."""
    if name == "output.weight":
        return "output"
    if name in EMBEDDINGS:
        return "token_embd"
    return next((role for part, role in _ROLES if part in name), "")

"""Which type llama.cpp gives each tensor in a file of some quantization type. Pure.

The rules are those of llama_tensor_get_type and its helpers in llama.cpp's src/llama-quant.cpp, as
of llama-cpp-python 0.3.36; the tests compare them with the installed library.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from localllama.convert.mixture import EMBEDDINGS, Mixture, layer_of
from localllama.convert.model import Model, Tensor
from localllama.errors import InvalidParameter, UnsupportedFile
from localllama.gguf_tables import FILE_TYPES, TENSOR_TYPES, TensorType

TYPES = {kind.name: kind for kind in TENSOR_TYPES.values()}
NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}
PLAIN = ("F32", "F16", "BF16")

# Where the type that most tensors get has another name than the file's.
_DEFAULTS = {
    "Q2_K_S": "Q2_K",
    "Q3_K_S": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q5_K",
    "IQ2_S": "IQ2_XS",
    "IQ2_M": "IQ2_S",
    "IQ3_XS": "IQ3_S",
    "IQ3_M": "IQ3_S",
    "MXFP4_MOE": "MXFP4",
}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_NOT_OFFERED = {"NVFP4"}  # a file type that llama-quantize does not make
# Tensor types that ggml has no way to make from float32.
_NO_TARGET = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
# What a row that is no whole number of blocks gets instead.
_SMALLER_BLOCKS = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_NEVER_QUANTIZED = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel"
    r"|per_layer_model_proj|ssm_conv1d|shortconv\.conv\.weight"
    r"|indexer\.[kq]_proj\.weight|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]"
    r"|lerp_fused)\.weight|attn_rel_b\.weight|\.position_embd|sam\.(pos_embd|neck\.|net_)"
    r"|\.rel_pos|\.patch_embd|\.patch_merger|a\.rvq\.codebook|mm\.a\.code_embd"
    r"|^(position_embd|token_types)\.weight$"
)
_OTHERWISE = {"glm5-next", "bailingmoe3"}  # llama.cpp has rules of their own for them
_NEEDS_IMPORTANCE = {"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"}
_NEVER_WITHOUT = {"IQ2_XXS", "IQ2_XS", "IQ1_S"}  # ggml ends the process without


@dataclass(frozen=True, slots=True)
class Quant:
    """A quantization type of files: llama-quantize's name, its number, what most tensors get."""

    name: str
    number: int
    default: str


# Tensors stay as they are; the file is called what most of its weights are.
COPY = Quant("COPY", -1, "F32")


@dataclass(frozen=True, slots=True)
class Override:
    """Tensors whose name the pattern finds get this type, whatever the mixture says."""

    pattern: re.Pattern[str]
    type: str


def offered() -> tuple[Quant, ...]:
    """Return every quantization type that llama-quantize offers, the smallest number first."""
    return tuple(
        Quant(name, number, _DEFAULTS.get(name, name))
        for number, name in FILE_TYPES.items()
        if name not in _NOT_OFFERED
    )


def parse(text: str) -> Quant:
    """Return the type a user means, in any case and with llama-quantize's aliases.

    Raises InvalidParameter.
    """
    wanted = text.strip().upper()
    wanted = _ALIASES.get(wanted, wanted)
    if wanted == COPY.name:
        return COPY
    for quant in offered():
        if quant.name == wanted:
            return quant
    names = [quant.name for quant in (*offered(), COPY)]
    near = [name for name in names if name[:2] == wanted[:2]] or names
    raise InvalidParameter(f"{text!r} is not a quantization type", f"there are {', '.join(near)}")


def parse_override(text: str) -> Override:
    """Return what ``PATTERN=TYPE`` means (llama-quantize's --tensor-type).

    Raises InvalidParameter.
    """
    pattern, _, kind = text.rpartition("=")
    if not pattern or kind.upper() not in TYPES or kind.upper() in _NO_TARGET:
        names = ", ".join(name for name in TYPES if name not in _NO_TARGET)
        raise InvalidParameter(
            f"{text!r} is not PATTERN=TYPE", f"like attn_v=q8_0; the types are {names}"
        )
    try:
        return Override(re.compile(pattern.lower()), kind.upper())
    except re.error as error:
        raise InvalidParameter(
            f"{pattern!r} is not a regular expression: {error}", "like attn_v or blk.0.ffn_.*"
        ) from error


def file_type(model: Model, quant: Quant) -> int:
    """Return the number that a file of this type declares (general.file_type)."""
    if quant != COPY:
        return quant.number
    if declared := model.metadata.get("general.file_type"):
        return int(str(declared.value))
    weights: Counter[str] = Counter()
    for tensor in model.tensors:
        weights[tensor.type] += prod(tensor.shape)
    return next(
        known.number for known in offered() if known.default == weights.most_common(1)[0][0]
    )


def in_order(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors as llama.cpp orders them: by layer, those of none first, then by name."""

    def key(tensor: Tensor) -> tuple[int, str]:
        return (layer_of(tensor.name), tensor.name)

    return sorted(tensors, key=key)


def choose(
    model: Model,
    quant: Quant,
    *,
    overrides: Sequence[Override] = (),
    has_importance: bool = False,
) -> list[tuple[Tensor, TensorType]]:
    """Return the model's tensors in llama.cpp's order with the type each gets.

    Raises UnsupportedFile where llama.cpp has rules of its own, or none, for a tensor.
    """
    if model.architecture in _OTHERWISE and quant.default not in PLAIN:
        raise UnsupportedFile(
            f"models of the architecture {model.architecture} are quantized in a way of their own",
            "use llama.cpp's llama-quantize for them",
        )
    tensors = in_order(model.tensors)
    mixture = Mixture(quant.name, quant.default, model, has_importance)
    return [(tensor, TYPES[_type(tensor, quant, mixture, overrides)]) for tensor in tensors]


def needs_importance(tensor: str, kind: str, quant: Quant) -> bool:
    """Whether a tensor of this type would be garbage without an importance matrix."""
    if kind in _NEVER_WITHOUT:
        return True
    if tensor in (*EMBEDDINGS, "output.weight"):
        return False
    return kind in _NEEDS_IMPORTANCE or (kind == "Q2_K" and quant.name == "Q2_K_S")


def _type(tensor: Tensor, quant: Quant, mixture: Mixture, overrides: Sequence[Override]) -> str:
    if not _is_quantizable(tensor):
        # The first of the two steps that this replaces stores what is no matrix as F32.
        return "F32" if tensor.type in PLAIN else tensor.type
    if quant == COPY:
        return tensor.type
    if quant.default in PLAIN:
        return quant.default
    for override in overrides:
        if override.pattern.search(tensor.name):
            return _fitting(tensor, override.type)
    return _fitting(tensor, mixture.type_of(tensor))


def _is_quantizable(tensor: Tensor) -> bool:
    return (
        any(length > 1 for length in tensor.shape[:-1])
        and tensor.name.endswith("weight")
        and not _NEVER_QUANTIZED.search(tensor.name)
    )


def _fitting(tensor: Tensor, kind: str) -> str:
    """The type, or another one where rows are no whole number of its blocks."""
    columns = tensor.shape[-1]
    if columns % TYPES[kind].block_elements == 0:
        return kind
    smaller = _SMALLER_BLOCKS.get(kind, kind)
    if smaller == kind and TYPES[kind].block_elements > 32:
        raise UnsupportedFile(
            f"{tensor.name} has rows of {columns} elements, which {kind} cannot hold",
            "choose another quantization type",
        )
    return smaller if columns % TYPES[smaller].block_elements == 0 else "F16"

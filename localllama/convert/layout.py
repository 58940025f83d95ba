"""The whole output before a weight is read: types, sizes, places, header. Says what cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from localllama.convert import gguf_output, provenance, types
from localllama.convert.gguf_output import padded
from localllama.convert.importance import Importance
from localllama.convert.model import Field, Model, Tensor
from localllama.convert.provenance import Origin
from localllama.convert.types import Override, Quant
from localllama.errors import InvalidParameter
from localllama.gguf_header import TensorInfo

_QUANTIZATION_VERSION = 2  # ggml's GGML_QNT_VERSION
_LEFT_OUT = {"split.no", "split.count", "split.tensors.count", "general.alignment"}
_GOOD_ENOUGH = (*types.PLAIN, "Q8_0")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to make of a model; ``requantize`` allows what was quantized before as its source."""

    quant: Quant
    overrides: tuple[Override, ...] = ()
    importance: Importance | None = None
    requantize: bool = False

    def __str__(self) -> str:
        overrides = (f"{item.pattern.pattern}={item.type}" for item in self.overrides)
        importance = (f"imatrix {self.importance.name}",) if self.importance else ()
        return "; ".join((self.quant.name, *overrides, *importance))


@dataclass(frozen=True, slots=True)
class Layout:
    """A planned file: its tensors with their places, counted from ``data_offset``, and keys."""

    model: Model
    recipe: Recipe
    origin: Origin
    tensors: tuple[tuple[Tensor, TensorInfo], ...]
    data_offset: int = 0

    @property
    def file_bytes(self) -> int:
        """The size of the file."""
        last = self.tensors[-1][1]
        return self.data_offset + padded(last.offset + last.size_bytes)

    def header(self, digests: Mapping[str, str]) -> bytes:
        """Return all before the data; as long whatever is known of the inputs' ``digests``."""
        metadata = {k: v for k, v in self.model.metadata.items() if k not in _LEFT_OUT}
        metadata["general.quantization_version"] = Field("u32", _QUANTIZATION_VERSION)
        number = types.file_type(self.model, self.recipe.quant)
        metadata["general.file_type"] = Field("u32", number)
        if self.recipe.importance:
            metadata |= self.recipe.importance.keys()
        metadata |= provenance.keys(self.model, self.origin, str(self.recipe), digests)
        infos = [info for _, info in self.tensors]
        return gguf_output.header(metadata, infos, types.NUMBERS)


def lay_out(model: Model, recipe: Recipe, origin: Origin) -> Layout:
    """Plan the file that ``recipe`` makes of ``model``.

    Raises UnsupportedFile for what llama.cpp has no rule for; whether it can be made at all,
    ``check`` says.
    """
    chosen = types.choose(
        model,
        recipe.quant,
        overrides=recipe.overrides,
        has_importance=recipe.importance is not None,
    )
    tensors, offset = [], 0
    for tensor, kind in chosen:
        size = prod(tensor.shape) // kind.block_elements * kind.block_bytes
        info = TensorInfo(tensor.name, tensor.shape[::-1], kind.name, offset, size)
        tensors.append((tensor, info))
        offset = padded(offset + size)
    layout = Layout(model, recipe, origin, tuple(tensors))
    return replace(layout, data_offset=len(layout.header({})))


def check(layout: Layout) -> None:
    """Raise InvalidParameter for what would spoil the result.

    That is a missing or foreign importance matrix, and sources that were quantized already.
    """
    for tensor, info in layout.tensors:
        if info.type != tensor.type:
            _check(tensor, info.type, layout.recipe)


def _check(tensor: Tensor, kind: str, recipe: Recipe) -> None:
    if tensor.type not in _GOOD_ENOUGH and not recipe.requantize:
        raise InvalidParameter(
            f"{tensor.name} is {tensor.type} already: making {kind} of it costs quality twice",
            "start from an F16, BF16, F32 or Q8_0 file, or say --allow-requantize",
        )
    if not types.needs_importance(tensor.name, kind, recipe.quant):
        return
    hint = "give one made by llama-imatrix with --imatrix FILE, or choose another type"
    if recipe.importance is None:
        raise InvalidParameter(
            f"{recipe.quant.name} needs an importance matrix: {tensor.name} becomes {kind}", hint
        )
    if not recipe.importance.covers(tensor):
        raise InvalidParameter(
            f"{recipe.importance.name} has nothing for {tensor.name}, and {kind} needs it", hint
        )

"""What each quantization type would make of a model: its size, and the time on this machine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from localllama.convert import types
from localllama.convert.layout import Layout, Recipe, check, lay_out
from localllama.convert.model import Model
from localllama.convert.provenance import Origin
from localllama.errors import InvalidParameter, UnsupportedFile
from localllama.native.quantizer import Quantizer

_SAMPLE_ROWS, _SAMPLE_COLUMNS = 32, 1024
# ggml builds tables for these first: 1 to 13 seconds.
_SLOW_TABLES = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S"}


@dataclass(frozen=True, slots=True)
class Estimate:
    """One type's result; ``problem`` says what it lacks, in one sentence.

    ``seconds`` is None where measuring would itself take seconds.
    """

    quant: str
    size_bytes: int
    bits_per_weight: float
    seconds: float | None
    problem: str


def estimates(model: Model, recipe: Recipe, origin: Origin, *, threads: int) -> Iterator[Estimate]:
    """Yield an estimate for every type that the model's shapes allow, the smallest file first.

    ``recipe`` has the overrides and the importance matrix; its own type does not count.
    """
    speeds = _Speeds(recipe.importance is not None)
    layouts = []
    for quant in types.offered():
        try:
            layouts.append(lay_out(model, replace(recipe, quant=quant), origin))
        except UnsupportedFile:
            continue
    for layout in sorted(layouts, key=lambda layout: layout.file_bytes):
        weights = sum(prod(info.shape) for _, info in layout.tensors)
        yield Estimate(
            quant=layout.recipe.quant.name,
            size_bytes=layout.file_bytes,
            bits_per_weight=sum(info.size_bytes for _, info in layout.tensors) * 8 / weights,
            seconds=speeds.seconds(layout, threads),
            problem=_problem(layout),
        )


def _problem(layout: Layout) -> str:
    try:
        check(layout)
    except InvalidParameter as error:
        return error.message
    return ""


class _Speeds:
    """Seconds per weight of tensor types, measured when first asked for."""

    def __init__(self, has_importance: bool) -> None:
        random = np.random.default_rng(0)
        shape = (_SAMPLE_ROWS, _SAMPLE_COLUMNS)
        self._rows = random.standard_normal(shape).astype(np.float32)
        self._importance = np.ones(_SAMPLE_COLUMNS, np.float32) if has_importance else None
        self._known: dict[str, float] = {}

    def seconds(self, layout: Layout, threads: int) -> float | None:
        """What the threads need for a whole file together."""
        weights: Counter[str] = Counter()
        for tensor, info in layout.tensors:
            if info.type != tensor.type or info.type in types.PLAIN:
                weights[info.type] += prod(info.shape)
        if _SLOW_TABLES & weights.keys():
            return None
        return sum(count * self._measure(kind) for kind, count in weights.items()) / threads

    def _measure(self, kind: str) -> float:
        if kind not in self._known:
            quantizer = Quantizer(types.NUMBERS[kind])
            began = time.perf_counter()
            quantizer.quantize(self._rows, self._importance)
            self._known[kind] = (time.perf_counter() - began) / self._rows.size
        return self._known[kind]

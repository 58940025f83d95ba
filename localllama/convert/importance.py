"""Importance matrices as llama-imatrix writes them (GGUF): how much each column of a tensor counts.

Format: llama.cpp's common/imatrix-loader.cpp. The older format without GGUF is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localllama.convert import gguf_source
from localllama.convert.model import Field, Tensor
from localllama.errors import BadFile, InvalidParameter

_SUMS, _COUNTS = ".in_sum2", ".counts"
_LONGEST_TEXT = 127  # what llama-quantize keeps of a name


@dataclass(frozen=True, slots=True)
class Importance:
    """``weights`` has a matrix for each tensor: a row for each expert, a number for each column."""

    name: str
    dataset: str
    chunks: int
    weights: dict[str, NDArray[np.float32]]

    def covers(self, tensor: Tensor) -> bool:
        """Whether there are numbers for this tensor; raises InvalidParameter for a wrong count."""
        found = self.weights.get(tensor.name)
        if found is None:
            return False
        experts = tensor.shape[-3] if len(tensor.shape) > 2 else 1
        if found.size == experts * tensor.shape[-1]:
            return True
        if tensor.name in ("token_embd.weight", "per_layer_token_embd.weight"):
            return False  # llama-quantize lets these pass
        raise InvalidParameter(
            f"{self.name} has {found.size} numbers for {tensor.name}, which has "
            f"{experts * tensor.shape[-1]} columns",
            "the importance matrix was made with another model",
        )

    def of(self, tensor: Tensor) -> NDArray[np.float32] | None:
        """Return a row of numbers for each expert of the tensor, or None."""
        if not self.covers(tensor):
            return None
        return self.weights[tensor.name].reshape(-1, tensor.shape[-1])

    def keys(self) -> dict[str, Field]:
        """Return what llama-quantize notes of the matrix in the file."""
        found = {"quantize.imatrix.file": Field("string", self.name[:_LONGEST_TEXT])}
        if self.dataset:
            found["quantize.imatrix.dataset"] = Field("string", self.dataset[:_LONGEST_TEXT])
        found["quantize.imatrix.entries_count"] = Field("u32", len(self.weights))
        if self.chunks > 0:
            found["quantize.imatrix.chunks_count"] = Field("u32", self.chunks)
        return found


def load(path: Path) -> Importance:
    """Read a file of llama-imatrix; raises BadFile, ModelNotFound, InvalidParameter."""
    metadata, tensors = gguf_source.contents(path)
    by_name = {tensor.name: tensor for tensor in tensors}
    weights = {}
    for name in by_name:
        if name.endswith(_SUMS):
            stem = name.removesuffix(_SUMS)
            counts = by_name.get(stem + _COUNTS)
            if counts is None:
                raise _foreign(path, f"it has sums and no counts for {stem}")
            weights[stem] = _mean(path, by_name[name], counts)
    if not weights:
        raise _foreign(path, "it holds no sums of activations")
    datasets = metadata.get("imatrix.datasets", Field("[string]", []))
    chunks = metadata.get("imatrix.chunk_count", Field("u32", 0))
    dataset = next(iter(datasets.value), "") if isinstance(datasets.value, list) else ""
    return Importance(path.name, str(dataset), int(str(chunks.value)), weights)


def _mean(path: Path, sums: Tensor, counts: Tensor) -> NDArray[np.float32]:
    """The mean square of each column's activations; 1 for an expert that was never asked."""
    total = sums.read(0, int(np.prod(sums.shape[:-1])))
    number = np.rint(counts.read(0, int(np.prod(counts.shape[:-1])))).reshape(-1, 1)
    if total.size % number.size:
        raise _foreign(path, f"the counts of {counts.name} do not fit its sums")
    total = total.reshape(number.size, -1)
    mean = np.where(number > 0, total / np.maximum(number, 1), np.float32(1)).astype(np.float32)
    if not np.isfinite(mean).all():
        raise _foreign(path, f"{sums.name} holds infinity or what is no number")
    return mean


def _foreign(path: Path, reason: str) -> BadFile:
    return BadFile(
        f"{path} is no usable importance matrix: {reason}",
        "make one with llama-imatrix (GGUF format)",
        str(path),
    )

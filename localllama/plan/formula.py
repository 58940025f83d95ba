"""Sizes of weights, KV cache and compute buffers from a GGUF header; pure.

Weights and KV cache are exact. The compute buffers are what llama.cpp 0.3.36's graphs of the Llama
family take, found by simulated allocation (native/measure.py) over seven shapes from 135M to 70B:
exact for those, an estimate for other architectures. KV caches that see a window only, or hold
compressed keys (MLA), are counted in full.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from localllama.errors import InvalidParameter
from localllama.gguf_file import ModelInfo, TensorInfo
from localllama.gguf_tables import TENSOR_TYPES

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
_CELL_PADDING = 256  # llama.cpp rounds the context up to this
_FLOAT = 4
_PIPELINE_COPIES = 4  # of the inputs, where several GPUs share all layers
_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.")
_STATES = ("ssm", "wkv", "shortconv")  # what metadata call them
_INPUTS = ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
_BLOCKS = {kind.name: (kind.block_elements, kind.block_bytes) for kind in TENSOR_TYPES.values()}
# What ggml keeps in a second layout for this processor (ggml-cpu: repack.cpp, amx/common.h).
_REPACKED = {
    "AVX2": {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"},
    "AVX512": {"Q2_K"},
    "DOTPROD": {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"},
    "AMX_INT8": {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"},
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer, the output, or several: weights, and the elements of K and V that a token adds."""

    weights_bytes: int
    repacked_bytes: int  # of these, what the CPU would keep a second time
    key_elements: int = 0
    value_elements: int = 0

    def kv_bytes(self, cells: int, kv_type: str) -> int:
        """The bytes of this layer's KV cache."""
        return cells * (
            row_bytes(self.key_elements, kv_type) + row_bytes(self.value_elements, kv_type)
        )


@dataclass(frozen=True, slots=True)
class Model:
    """The sizes of one model, whose last layer is the output.

    ``sums`` has what the layers before each number take together: none, the first, the first two…
    ``input_bytes`` always stay on the host. Of an output layer that is the embedding,
    ``tied_bytes`` cost the host nothing more unless they are repacked, and a GPU a copy.
    """

    sums: tuple[Layer, ...]
    input_bytes: int
    tied_bytes: int
    embedding: int
    feed_forward: int
    heads: int
    kv_elements: int  # of K, in the largest layer
    vocabulary: int
    largest_matrix_bytes: int

    @classmethod
    def of(cls, info: ModelInfo, cpu_features: Iterable[str]) -> Model:
        """Return the sizes of what a header describes, on a CPU with these features."""
        repacked = _repacked_types(frozenset(cpu_features))
        blocks: list[list[TensorInfo]] = [[] for _ in range(info.block_count)]
        inputs: list[TensorInfo] = []
        outputs: list[TensorInfo] = []
        for tensor in info.tensors:
            if match := _BLOCK.search(tensor.name):
                # Layers beyond the count predict further tokens (MTP); the last one has them.
                blocks[min(int(match[1]), info.block_count - 1)].append(tensor)
            else:
                (inputs if tensor.name.startswith(_INPUTS) else outputs).append(tensor)
        tied: list[TensorInfo] = []
        if not any(tensor.name == "output.weight" for tensor in outputs):
            tied = [tensor for tensor in inputs if tensor.name == "token_embd.weight"]
        outputs += tied
        layers = [
            Layer(
                _bytes(tensors),
                _bytes(tensors, repacked),
                heads * info.key_length,
                heads * info.value_length,
            )
            for tensors, heads in zip(blocks, _each(info.head_count_kv, info), strict=True)
        ]
        return cls(
            sums=_sums((*layers, Layer(_bytes(outputs), _bytes(outputs, repacked)))),
            input_bytes=_bytes(inputs),
            tied_bytes=_bytes(tied),
            embedding=info.embedding_length,
            feed_forward=_feed_forward(info),
            heads=max(_each(info.head_count, info)),
            kv_elements=max(layer.key_elements for layer in layers),
            vocabulary=info.vocab_size,
            largest_matrix_bytes=max(
                (tensor.size_bytes for block in blocks for tensor in block), default=0
            ),
        )

    @property
    def layers(self) -> int:
        """How many, the output included."""
        return len(self.sums) - 1

    def of_layers(self, which: range) -> Layer:
        """Return what these layers take together."""
        low, high = self.sums[which.start], self.sums[which.stop]
        return Layer(
            high.weights_bytes - low.weights_bytes,
            high.repacked_bytes - low.repacked_bytes,
            high.key_elements - low.key_elements,
            high.value_elements - low.value_elements,
        )

    def host_weights(self, layers: int) -> tuple[int, int]:
        """Return the bytes of the input and the first ``layers`` layers, and those repacked."""
        here = self.sums[layers]
        weights = self.input_bytes + here.weights_bytes
        output = self.of_layers(range(self.layers - 1, self.layers))
        if layers == self.layers and not output.repacked_bytes:
            weights -= self.tied_bytes
        return weights, here.repacked_bytes


@dataclass(frozen=True, slots=True)
class Compute:
    """The compute buffers of ``model`` for batches of ``batch_tokens`` over ``cells`` KV cells."""

    model: Model
    cells: int
    batch_tokens: int
    outputs: int  # rows of logits in one batch
    flash_attention: bool
    pipelined: bool  # several GPUs share all layers

    def layers_bytes(self) -> int:
        """On the host, where it computes layers."""
        layer = self._rows(self._layer_elements()) + self._gathered_bytes() + self._mask()
        return max(layer, self.logits_bytes())

    def gpu_layers_bytes(self, *, first: bool) -> int:
        """On a GPU that computes layers; the first one has less to keep for the others."""
        extra = 0 if not self.pipelined else 4 if first else 8
        elements = self._layer_elements() + (extra - 1) * self.model.embedding
        elements += self._cast_elements() * (self._copies() - 1)
        layer = self._rows(elements) + self._gathered_bytes() + self._copies() * self._mask()
        return max(layer, self.logits_bytes())

    def input_bytes(self) -> int:
        """On the host, where GPUs compute all layers."""
        elements = (5 if self.pipelined else 2) * self.model.embedding
        elements += self._cast_elements() * self._copies()
        return self._rows(elements) + self._copies() * self._mask()

    def logits_bytes(self) -> int:
        """The scores of the vocabulary on the output's device."""
        return self.scores_bytes(self.outputs)

    def scores_bytes(self, rows: int) -> int:
        """Scores for the host to read: a row a sequence at first, then as many as are computed."""
        return _FLOAT * rows * self.model.vocabulary

    def _gathered_bytes(self) -> int:
        """The rows of the last layer that scores are computed of, and what is added to them."""
        return _FLOAT * 2 * self.outputs * self.model.embedding

    def _layer_elements(self) -> int:
        model = self.model
        if self.flash_attention:
            return 3 * model.feed_forward + 4 * model.embedding
        feed_forward = 3 * (model.feed_forward + model.embedding)
        attention = self.cells * model.heads + 5 * model.embedding
        return max(feed_forward, attention) + self._cast_elements()

    def _cast_elements(self) -> int:
        """K and V of the batch, which plain attention keeps beside the cache."""
        return 0 if self.flash_attention else 2 * self.model.kv_elements

    def _rows(self, elements: int) -> int:
        return _FLOAT * self.batch_tokens * elements

    def _mask(self) -> int:
        return self.batch_tokens * self.cells * (2 if self.flash_attention else _FLOAT)

    def _copies(self) -> int:
        return _PIPELINE_COPIES if self.pipelined else 1


def recurrent(info: ModelInfo) -> bool:
    """Whether the model keeps a state for a sequence, maybe beside a KV cache."""
    prefixes = tuple(f"{info.architecture}.{kind}." for kind in _STATES)
    return any(key.startswith(prefixes) for key in info.metadata)


def longest_pool(info: ModelInfo) -> int:
    """Return the most cells that leave shorter contexts as they are.

    llama.cpp chooses by them how longrope turns positions.
    """
    found = info.metadata.get(f"{info.architecture}.rope.scaling.original_context_length")
    return found if isinstance(found, int) else sys.maxsize


def cells_for(context_length: int) -> int:
    """Return the KV cells that llama.cpp makes for a context."""
    return context_length + -context_length % _CELL_PADDING


def row_bytes(elements: int, kv_type: str) -> int:
    """Return the bytes of ``elements`` values of a ggml type; raises InvalidParameter."""
    if kv_type not in KV_TYPES:
        raise InvalidParameter(
            f"{kv_type!r} is not a type of KV cache", f"known: {', '.join(KV_TYPES)}"
        )
    block, block_bytes = _BLOCKS[kv_type.upper()]
    return elements * block_bytes // block


def _bytes(tensors: Iterable[TensorInfo], only: frozenset[str] | None = None) -> int:
    """The bytes of tensors, or of those the CPU repacks: matrices of ``only`` these types."""
    return sum(
        tensor.size_bytes
        for tensor in tensors
        if only is None
        or (tensor.type in only and len(tensor.shape) > 1 and tensor.shape[1] % 8 == 0)
    )


def _sums(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    def added(total: Layer, layer: Layer) -> Layer:
        return Layer(
            total.weights_bytes + layer.weights_bytes,
            total.repacked_bytes + layer.repacked_bytes,
            total.key_elements + layer.key_elements,
            total.value_elements + layer.value_elements,
        )

    return tuple(accumulate(layers, added, initial=Layer(0, 0)))


def _repacked_types(cpu_features: frozenset[str]) -> frozenset[str]:
    if "REPACK" not in cpu_features:
        return frozenset()
    return frozenset().union(*(_REPACKED[name] for name in cpu_features & _REPACKED.keys()))


def _each(per_layer: int | tuple[int, ...], info: ModelInfo) -> tuple[int, ...]:
    return per_layer if isinstance(per_layer, tuple) else (per_layer,) * info.block_count


def _feed_forward(info: ModelInfo) -> int:
    """Elements of the widest layer that a token goes through: of a mixture, its experts'."""
    plain = max(_each(info.feed_forward_length, info))

    def number(key: str) -> int:
        value = info.metadata.get(f"{info.architecture}.{key}", 0)
        return value if isinstance(value, int) else 0

    used = number("expert_used_count")
    return max(plain, used * (number("expert_feed_forward_length") or plain))

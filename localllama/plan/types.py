"""What goes into a plan and what comes out of it. Values only; bytes and tokens."""

from __future__ import annotations

from dataclasses import dataclass

HOST = "CPU"
# What an answer needs beside the question: less is no conversation.
SMALLEST_USEFUL_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Want:
    """What a user asks for; every default leaves the choice to the plan.

    ``context_length`` 0 = the plan's choice, -1 = the most that fits. ``gpu_layers`` -1 = as many
    as fit. ``gpu_memory_bytes`` caps what is taken of each GPU, in order; one value holds for all.
    ``kv_type`` "" = f16, or q8_0 where that keeps the model on the GPU. ``sequences`` share the
    cells, ``slots`` of them for replies, and a batch has ``outputs`` rows of logits. Where GPUs
    that hold the whole model have memory left, there are cells for up to ``most_slots``
    conversations. ``reserve_bytes`` stays free on every device: drivers' workspaces, a desktop, the
    page cache.
    """

    context_length: int = 0
    gpu_layers: int = -1
    gpu_memory_bytes: tuple[int, ...] = ()
    kv_type: str = ""
    batch_tokens: int = 512
    sequences: int = 1
    outputs: int = 1
    slots: int = 1
    most_slots: int = 0
    no_gpu: bool = False
    require_gpu: bool = False  # fail rather than compute everything on the CPU
    force: bool = False  # plan although it does not fit
    mmap: bool = True
    mlock: bool = False
    repack: bool = True
    flash_attention: bool | None = None
    reserve_bytes: int = 512 << 20


MOST = -1  # of Want.context_length


@dataclass(frozen=True, slots=True)
class Use:
    """What a plan takes of one device; ``available_bytes`` is what it may take.

    ``repacked_bytes`` are second copies of weights, in the layout that the CPU computes fastest
    with; ``process_bytes`` what the worker takes besides: Python, libraries, vocabulary.
    """

    device: str
    layers: int
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    available_bytes: int
    repacked_bytes: int = 0
    process_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        parts = (self.weights_bytes, self.kv_bytes, self.compute_bytes)
        return sum(parts) + self.repacked_bytes + self.process_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model will be loaded, and what that takes.

    ``layers`` counts the output layer too, as llama.cpp does: ``gpu_layers`` of it are on GPUs.
    ``tensor_split`` is the share of each GPU in layers, () with less than two. ``uses`` has the
    GPUs in llama.cpp's order and the host last. ``slots`` replies at once share ``cells`` of the KV
    cache, of which each has ``context_length`` at most. ``fits`` is False only with ``force``.
    """

    gpu_layers: int
    layers: int
    context_length: int
    trained_context_length: int
    kv_type: str
    batch_tokens: int
    tensor_split: tuple[float, ...]
    main_gpu: int
    mmap: bool
    mlock: bool
    repack: bool
    flash_attention: bool | None
    uses: tuple[Use, ...]
    slots: int
    cells: int
    fits: bool = True

    @property
    def total_bytes(self) -> int:
        """What it takes on all devices together."""
        return sum(use.total_bytes for use in self.uses)

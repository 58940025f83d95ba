"""Chooses how to load a model: what goes on which device, and the context. Pure.

Preferred in this order: everything on the GPUs at full context; everything there with a smaller
context or a KV cache of q8_0; some layers there; the host alone. What was asked for is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from localllama.errors import InvalidParameter
from localllama.gguf_file import ModelInfo
from localllama.hardware import Device, Hardware
from localllama.plan import refusals
from localllama.plan.formula import Compute, Model, cells_for, longest_pool, row_bytes
from localllama.plan.learned import kind_of
from localllama.plan.types import HOST, MOST, SMALLEST_USEFUL_CONTEXT, Plan, Use, Want

T = TypeVar("T")

# Python, its libraries and llama.cpp's tables, without the vocabulary: measured 90-130 MB.
_PROCESS_BYTES = 130_000_000
_TOKEN_BYTES = 400  # of a vocabulary entry: its texts, scores and merges
_CONTEXT_STEP = 256
_BLOCK = 32  # elements of a block of a quantized KV cache
_KV_SHARE = 4  # by default the KV cache takes at most one part in so many
# Times the trained length: beyond what any rope scaling is used for; llama.cpp spends minutes and
# all memory on 2**30.
_LONGEST_CONTEXT_FACTOR = 32
_SMALLEST_CONTEXT = 512  # that is worth naming as a choice


def fit(
    info: ModelInfo, hardware: Hardware, want: Want, corrections: Mapping[str, float] | None = None
) -> Plan:
    """Return how to load the model that ``info`` describes on this machine.

    ``corrections`` multiply the compute buffers by kind of device, as loads have taught. Raises
    DoesNotFit with up to three choices that fit, InvalidParameter for an unknown KV type and for a
    context that no worker would open.
    """
    if want.context_length not in (0, MOST):
        require_possible(want.context_length, info.context_length)
    fitter = _Fitter(info, hardware, want, corrections or {})
    plan = fitter.best()
    if plan is None:
        failed = fitter.smallest()
        if want.force:
            return failed
        choices = alternatives(info, hardware, want, corrections)
        raise refusals.does_not_fit(failed, [text for text, _ in choices], hardware, want)
    if want.require_gpu and not plan.gpu_layers:
        raise refusals.no_gpu(fitter.gpus)
    return fitter.shared(plan)


def require_possible(context_length: int, trained_context_length: int) -> None:
    """Raise InvalidParameter for a context that is empty, or far longer than any model stands."""
    longest = _LONGEST_CONTEXT_FACTOR * trained_context_length
    if not 1 <= context_length <= longest:
        raise InvalidParameter(
            f"the context length must be from 1 to {longest} tokens, not {context_length}",
            f"the model was trained with {trained_context_length}",
        )


@dataclass(frozen=True, slots=True)
class _Load:
    """One way to load it."""

    gpu_layers: int
    context_length: int
    kv_type: str
    slots: int = 0  # beyond those that are asked for
    cells: int = 0  # beyond the context's


class _Fitter:
    """Tries ways to load one model on one machine."""

    def __init__(
        self, info: ModelInfo, hardware: Hardware, want: Want, corrections: Mapping[str, float]
    ) -> None:
        self.gpus = () if want.no_gpu else hardware.gpus
        self._model = Model.of(info, hardware.cpu_features)
        self._trained = info.context_length
        self._longest_pool = longest_pool(info)
        self._want = want
        self._corrections = corrections
        self._host_bytes = max(0, hardware.memory.available_bytes - want.reserve_bytes)
        self._budgets = _budgets(self.gpus, want)
        # On the host beside a GPU that pins memory, nothing is repacked.
        self._repacks = want.repack and not any(gpu.host_buffer for gpu in self.gpus)
        self._kv_types = _kv_types(info, want)

    def best(self) -> Plan | None:
        """Return the preferred plan that fits."""
        everything = self._model.layers
        if self._want.gpu_layers >= 0 or not self.gpus:
            return self._with_layers(self._fixed_layers())
        if self._want.context_length != MOST:
            return self._with_layers(everything) or self._partial(self._least_context())
        plan = self._with_layers(everything)
        if plan is not None and plan.context_length >= min(self._trained, SMALLEST_USEFUL_CONTEXT):
            return plan
        steps = self._trained // _CONTEXT_STEP
        longest = _last(1, steps, lambda step: self._partial(step * _CONTEXT_STEP))
        return self._partial(self._trained) or longest or plan

    def smallest(self) -> Plan:
        """Return the least demanding plan for what was asked, which need not fit."""
        layers = self._fixed_layers() if self._want.gpu_layers >= 0 else 0
        load = _Load(layers, self._least_context(), self._kv_types[0])
        return replace(self._place(load, mmap=self._want.mmap, repack=False), fits=False)

    def shared(self, plan: Plan) -> Plan:
        """Return ``plan`` with cells for as many conversations as are wanted and fit.

        On GPUs alone: steps of the CPU take longer with each reply, and its memory is everybody's.
        """
        if plan.gpu_layers < plan.layers:
            return plan
        load = _Load(plan.gpu_layers, plan.context_length, plan.kv_type)
        most = min(self._share_cells(plan.gpu_layers), self._longest_pool)
        for slots in range(self._want.most_slots, 1, -1):
            cells = slots * min(plan.context_length, SMALLEST_USEFUL_CONTEXT)
            if cells <= max(most, plan.context_length):
                more = max(0, slots - plan.slots), max(0, cells - plan.context_length)
                if found := self._try(replace(load, slots=more[0], cells=more[1])):
                    return found
        return plan

    def _fixed_layers(self) -> int:
        asked = max(0, self._want.gpu_layers)
        return min(asked, self._model.layers) if self.gpus else 0

    def _with_layers(self, gpu_layers: int) -> Plan | None:
        """Return the plan with the best context for so many layers on the GPUs."""
        most, least = self._most_context(gpu_layers), self._least_context()
        for length in dict.fromkeys((most, least)):
            for kv_type in self._kv_types:
                if plan := self._try(_Load(gpu_layers, length, kv_type)):
                    return self._grown(plan, most)
        return None

    def _partial(self, context_length: int) -> Plan | None:
        """Return the plan with most layers on the GPUs, then with the longest context."""
        # By layers first: were it by KV type, a little more VRAM could mean fewer layers.
        for gpu_layers in range(self._model.layers - 1, -1, -1):
            for kv_type in self._kv_types:
                if plan := self._try(_Load(gpu_layers, context_length, kv_type)):
                    return self._grown(plan, self._most_context(gpu_layers))
        return None

    def _least_context(self) -> int:
        """Return what the context may shrink to: nothing less than what was asked for."""
        if self._want.context_length == MOST:
            return min(self._trained, _SMALLEST_CONTEXT)
        return self._want.context_length or min(self._trained, SMALLEST_USEFUL_CONTEXT)

    def _most_context(self, gpu_layers: int) -> int:
        """Return the context that was asked for, or else the longest that we would choose."""
        if self._want.context_length > 0:
            return self._want.context_length
        if self._want.context_length == MOST:
            return self._trained
        return min(self._trained, max(self._share_cells(gpu_layers), SMALLEST_USEFUL_CONTEXT))

    def _share_cells(self, gpu_layers: int) -> int:
        """Return the cells of a KV cache that takes no more than its share."""
        everywhere = gpu_layers == self._model.layers
        budget = sum(self._budgets) if everywhere else self._host_bytes + sum(self._budgets)
        per_token = self._model.sums[-1].kv_bytes(1, self._kv_types[0])
        return budget // _KV_SHARE // max(1, per_token) // _CONTEXT_STEP * _CONTEXT_STEP

    def _grown(self, plan: Plan, most: int) -> Plan:
        """Return ``plan`` with the longest context up to ``most`` that still fits."""
        longer = _last(
            plan.context_length // _CONTEXT_STEP + 1,
            most // _CONTEXT_STEP,
            lambda step: self._try(_Load(plan.gpu_layers, step * _CONTEXT_STEP, plan.kv_type)),
        )
        return longer or plan

    def _try(self, load: _Load) -> Plan | None:
        """Return the plan for one way to load, where it fits.

        Repacked beside the memory map if there is room for both, else without the map.
        """
        for mmap in dict.fromkeys((self._want.mmap, False)):
            plan = self._place(load, mmap=mmap, repack=self._repacks)
            if plan.fits:
                return plan
        return None

    def _place(self, load: _Load, *, mmap: bool, repack: bool) -> Plan:
        """Return what one way to load takes of each device, and whether that is there."""
        model, want = self._model, self._want
        cells = cells_for(load.context_length + load.cells)
        on_host = model.layers - load.gpu_layers
        sequences = want.sequences + load.slots
        outputs = max(want.outputs + load.slots, sequences)
        compute = Compute(
            model=model,
            cells=cells,
            batch_tokens=max(min(want.batch_tokens, cells), outputs),
            outputs=outputs,
            flash_attention=want.flash_attention is not False,
            pipelined=len(self.gpus) > 1 and on_host == 0,
        )
        split = self._split(range(on_host, model.layers), load, compute)
        uses = [self._gpu_use(index, share, load, compute) for index, share in enumerate(split)]
        host = self._host_use(on_host, load, compute, mmap=mmap, repack=repack)
        used = [index for index, share in enumerate(split) if share]
        shares = tuple(float(len(share)) for share in split)
        return Plan(
            gpu_layers=load.gpu_layers,
            layers=model.layers,
            context_length=load.context_length,
            trained_context_length=self._trained,
            kv_type=load.kv_type,
            batch_tokens=want.batch_tokens,
            tensor_split=shares if len(shares) > 1 and used else (),
            main_gpu=used[0] if used else 0,
            mmap=mmap,
            mlock=want.mlock,
            repack=repack,
            flash_attention=want.flash_attention,
            uses=(*uses, host),
            slots=want.slots + load.slots,
            cells=load.context_length + load.cells,
            fits=self._fits((*uses, host)),
        )

    def _split(self, layers: range, load: _Load, compute: Compute) -> list[range]:
        """Return each GPU's layers: one GPU if it can hold all, else each filled in its turn."""

        def held(index: int, count: int) -> range | None:
            use = self._gpu_use(index, layers[:count], load, compute)
            return layers[:count] if use.total_bytes <= use.available_bytes else None

        for index in range(len(self.gpus)):
            if held(index, len(layers)) is not None:
                return [layers if i == index else range(0) for i in range(len(self.gpus))]
        shares: list[range] = []
        for index in range(len(self.gpus)):
            last = index == len(self.gpus) - 1
            share = layers if last else _last(1, len(layers), partial(held, index)) or range(0)
            shares.append(share)
            layers = layers[len(share) :]
        return shares

    def _gpu_use(self, index: int, layers: range, load: _Load, compute: Compute) -> Use:
        model, gpu = self._model, self.gpus[index]
        compute_bytes = 0
        if layers:
            compute_bytes = compute.gpu_layers_bytes(first=index == 0)
            if layers.start == model.layers - 1:
                compute_bytes = compute.logits_bytes()
            if load.gpu_layers < model.layers and gpu.host_buffer:
                # For long batches the GPU computes the host's layers too, matrix by matrix.
                compute_bytes += model.largest_matrix_bytes
        here = model.of_layers(layers)
        return Use(
            device=gpu.name,
            layers=len(layers),
            weights_bytes=here.weights_bytes,
            kv_bytes=here.kv_bytes(compute.cells, load.kv_type),
            compute_bytes=self._corrected(gpu.name, compute_bytes),
            available_bytes=self._budgets[index],
        )

    def _host_use(
        self, layers: int, load: _Load, compute: Compute, *, mmap: bool, repack: bool
    ) -> Use:
        weights, repacked = self._model.host_weights(layers)
        repacked = repacked if repack else 0
        compute_bytes = compute.layers_bytes() if layers else compute.input_bytes()
        sequences = self._want.sequences + load.slots
        return Use(
            device=HOST,
            layers=layers,
            weights_bytes=weights if mmap else weights - repacked,
            kv_bytes=self._model.sums[layers].kv_bytes(compute.cells, load.kv_type),
            compute_bytes=self._corrected(HOST, compute_bytes + compute.scores_bytes(sequences)),
            available_bytes=self._host_bytes,
            repacked_bytes=repacked,
            process_bytes=_PROCESS_BYTES
            + _TOKEN_BYTES * self._model.vocabulary
            + compute.scores_bytes(compute.outputs - sequences),
        )

    def _corrected(self, device: str, compute_bytes: int) -> int:
        return round(compute_bytes * self._corrections.get(kind_of(device), 1))

    def _fits(self, uses: tuple[Use, ...]) -> bool:
        if any(use.total_bytes > use.available_bytes for use in uses):
            return False
        shared = uses[-1].total_bytes + sum(
            use.total_bytes for use, gpu in zip(uses, self.gpus, strict=False) if gpu.unified
        )
        return shared <= self._host_bytes


def _last(low: int, high: int, attempt: Callable[[int], T | None]) -> T | None:
    """Return what ``attempt`` gives for the largest number from ``low`` to ``high`` that works.

    It must work for all numbers below one that works.
    """
    best: T | None = None
    while low <= high:
        middle = (low + high) // 2
        if (result := attempt(middle)) is not None:
            best, low = result, middle + 1
        else:
            high = middle - 1
    return best


def _budgets(gpus: tuple[Device, ...], want: Want) -> list[int]:
    """Return the bytes that may be taken of each GPU."""
    caps = want.gpu_memory_bytes
    if len(caps) == 1:
        caps *= len(gpus)
    free = [max(0, gpu.free_bytes - want.reserve_bytes) for gpu in gpus]
    return [min(bytes_, cap) for bytes_, cap in zip(free, caps, strict=False)] + free[len(caps) :]


def _kv_types(info: ModelInfo, want: Want) -> tuple[str, ...]:
    """Return the types of KV cache to try; raises InvalidParameter for one that cannot be."""
    problem = ""
    if want.flash_attention is False:
        problem = "without flash attention"
    elif info.key_length % _BLOCK or info.value_length % _BLOCK:
        problem = f"with heads of {info.key_length} elements, no multiple of {_BLOCK}"
    if not want.kv_type:
        return ("f16",) if problem else ("f16", "q8_0")
    if problem and row_bytes(_BLOCK, want.kv_type) < 2 * _BLOCK:
        raise InvalidParameter(
            f"the KV cache cannot be {want.kv_type} {problem}", "take f16, the default"
        )
    return (want.kv_type,)


def alternatives(
    info: ModelInfo, hardware: Hardware, want: Want, corrections: Mapping[str, float] | None = None
) -> list[tuple[str, Plan]]:
    """Return up to three changes of ``want`` that make it fit, the nearest first."""
    asked = replace(want, force=False, require_gpu=False)
    most = replace(asked, context_length=MOST)
    quantized = len(_kv_types(info, replace(want, kv_type=""))) > 1
    smaller = quantized and want.kv_type != "q8_0"
    changes: list[tuple[str, Want]] = []
    if smaller and want.kv_type in ("f16", "bf16", "f32"):
        changes.append(("--kv-type q8_0", replace(asked, kv_type="q8_0")))
    if quantized and want.kv_type != "q4_0":
        changes.append(("--kv-type q4_0", replace(asked, kv_type="q4_0")))
    changes.append(("--ctx {}", replace(most, kv_type=want.kv_type or "f16")))
    if smaller:
        changes.append(("--ctx {} --kv-type q8_0", replace(most, kv_type="q8_0")))
    if want.gpu_layers > 0:
        changes.append(("no --gpu-layers", replace(asked, gpu_layers=-1)))
    if want.gpu_memory_bytes:
        changes.append(("no --gpu-memory", replace(asked, gpu_memory_bytes=())))
    found: list[tuple[str, Plan]] = []
    for text, changed in changes:
        plan = _Fitter(info, hardware, changed, corrections or {}).best()
        shortest = found[-1][1].context_length if found and found[-1][1].kv_type == "f16" else 0
        if plan is not None and len(found) < 3 and plan.context_length != shortest:
            found.append((text.format(plan.context_length), plan))
    return found

"""One word for whether a model fits: by its plan, or by sizes alone before its header is known."""

from __future__ import annotations

from localllama.hardware import Hardware
from localllama.plan.types import Plan

FITS, PARTLY, CPU, NO = "fits", "partly", "CPU", "no"


def verdict(plan: Plan | None) -> str:
    """Return ``fits`` (all on GPUs, or there are none), ``partly``, ``CPU``, or for None ``no``."""
    if plan is None:
        return NO
    if len(plan.uses) == 1 or plan.gpu_layers == plan.layers:
        return FITS
    return PARTLY if plan.gpu_layers else CPU


def guess(needed_bytes: int, hardware: Hardware, reserve_bytes: int = 0) -> str:
    """Return the verdict on a model that takes so much; ``reserve_bytes`` stay free everywhere."""
    host = max(0, hardware.memory.available_bytes - reserve_bytes)
    gpus = sum(max(0, gpu.free_bytes - reserve_bytes) for gpu in hardware.gpus)
    if any(gpu.unified for gpu in hardware.gpus):
        host = max(0, host - gpus)  # it is the same memory
    if needed_bytes <= (gpus or host):
        return FITS
    return PARTLY if gpus and needed_bytes <= gpus + host else NO

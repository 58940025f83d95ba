"""Says why nothing that was asked for fits, and what would."""

from __future__ import annotations

from collections.abc import Sequence

from localllama.amounts import size
from localllama.errors import DoesNotFit
from localllama.hardware import Device, Hardware
from localllama.plan.types import HOST, Plan, Want


def no_gpu(gpus: tuple[Device, ...]) -> DoesNotFit:
    """Return the refusal of a plan without a GPU, where one is required."""
    if not gpus:
        return DoesNotFit(
            "a GPU is required, and llama.cpp sees none", "localllama doctor tells why"
        )
    return DoesNotFit(
        "a GPU is required, and not one layer fits on it",
        "take a smaller context (--ctx), a smaller model or quantization type",
    )


def does_not_fit(
    failed: Plan, choices: Sequence[str], hardware: Hardware, want: Want
) -> DoesNotFit:
    """Explain by the whole machine, or by the device that lacks most, and name what would fit."""
    gpus = () if want.no_gpu else hardware.gpus
    extra = sum(
        use.available_bytes for use, gpu in zip(failed.uses, gpus, strict=False) if not gpu.unified
    )
    over = max(failed.uses, key=lambda use: use.total_bytes - use.available_bytes)
    needed, available, where = over.total_bytes, over.available_bytes, f"memory on {over.device}"
    if over.device == HOST:
        available, where = available + extra, "memory"
    beside = f" beside the reserve of {size(want.reserve_bytes)}" if want.reserve_bytes else ""
    return DoesNotFit(
        f"the model needs {size(needed)} of {where} with a context of "
        f"{failed.context_length} tokens, and {size(available)} are available{beside}",
        f"what fits: {', or '.join(choices)}; --force tries it all the same"
        if choices
        else "close other programs, or take a smaller quantization type or a smaller model; "
        "--force tries it all the same",
        needed_bytes=needed,
        available_bytes=available,
    )

"""Says in words and rows what a plan does."""

from __future__ import annotations

from localllama.amounts import size
from localllama.hardware import Hardware
from localllama.plan.types import HOST, Plan, Want


def sentence(plan: Plan) -> str:
    """Return the plan in one sentence.

    >>> # All 33 layers on CUDA0, with a context of 4096 tokens, all that the model has.
    """
    return f"{_where(plan)}, with a context of {plan.context_length} tokens{_context(plan)}."


def parallel(plan: Plan, want: Want) -> str:
    """Return how many replies there can be at once, and why.

    >>> # 12 replies at once, with a KV cache of 49152 tokens for all of them
    """
    said = f"{plan.slots} replies at once" if plan.slots > 1 else "one reply at a time"
    if plan.cells > plan.context_length:
        said += f", with a KV cache of {plan.cells} tokens for all of them"
    if plan.slots >= want.most_slots:
        return said
    if plan.gpu_layers < plan.layers:
        return f"{said}: with layers on the CPU more would hardly be faster"
    return f"{said}: there is no memory for more conversations of this length"


def idle_gpu(plan: Plan, hardware: Hardware, want: Want) -> str:
    """Return why a GPU of this machine computes nothing although nobody excluded it, else ""."""
    if want.no_gpu or want.gpu_layers == 0 or plan.gpu_layers:
        return ""
    if hardware.unusable_gpu:
        return (
            f"{hardware.unusable_gpu} stays idle: this llama.cpp was built without support for it; "
            "localllama doctor tells how to get one with it"
        )
    if not hardware.gpus:
        return ""
    free = ", ".join(f"{size(gpu.free_bytes)} on {gpu.name}" for gpu in hardware.gpus)
    return f"the GPU stays idle: not one layer fits into what is free there ({free})"


def rows(plan: Plan) -> list[list[int | str]]:
    """Return device, layers and bytes of weights, KV cache, compute, other and total a device."""
    return [
        [
            use.device,
            use.layers,
            use.weights_bytes + use.repacked_bytes,
            use.kv_bytes,
            use.compute_bytes,
            use.process_bytes,
            use.total_bytes,
            use.available_bytes,
        ]
        for use in plan.uses
    ]


def _where(plan: Plan) -> str:
    gpus = [use.device for use in plan.uses if use.layers and use.device != HOST]
    if not plan.gpu_layers:
        return f"All {plan.layers} layers on the CPU"
    names = " and ".join(gpus)
    if plan.gpu_layers == plan.layers:
        return f"All {plan.layers} layers on {names}"
    rest = plan.layers - plan.gpu_layers
    return f"{plan.gpu_layers} of {plan.layers} layers on {names} and {rest} on the CPU"


def _context(plan: Plan) -> str:
    kv = "" if plan.kv_type == "f16" else f" in a KV cache of {plan.kv_type}"
    if plan.context_length < plan.trained_context_length:
        return f"{kv} of the {plan.trained_context_length} that the model has"
    if plan.context_length > plan.trained_context_length:
        return f"{kv}, more than the {plan.trained_context_length} that the model was trained for"
    return f"{kv}, all that the model has"

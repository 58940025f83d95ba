"""Puts llama.cpp's own figures for compute buffers into a plan."""

from __future__ import annotations

from dataclasses import replace

from localllama.hardware import Hardware
from localllama.native.measure import Measured, Options
from localllama.plan.types import HOST, Plan, Use, Want


def options(plan: Plan, want: Want, rpc_servers: tuple[str, ...] = ()) -> Options:
    """Return what to simulate for ``plan``."""
    more = plan.slots - want.slots
    return Options(
        context_length=plan.cells,
        gpu_layers=plan.gpu_layers,
        kv_type=plan.kv_type,
        batch_tokens=plan.batch_tokens,
        sequences=want.sequences + more,
        outputs=want.outputs + more,
        tensor_split=plan.tensor_split,
        repack=plan.repack,
        flash_attention=plan.flash_attention,
        rpc_servers=rpc_servers,
    )


def corrected(plan: Plan, measured: Measured, hardware: Hardware) -> Plan:
    """Return ``plan`` with the compute buffers that llama.cpp would allocate on this machine."""
    buffers = {gpu.name: gpu.buffer for gpu in hardware.gpus}
    on_gpus = {name: measured.compute_bytes.get(buffer, 0) for name, buffer in buffers.items()}
    everything = sum((*measured.compute_bytes.values(), *measured.output_bytes.values()))
    figures = {**on_gpus, HOST: everything - sum(on_gpus.values())}
    uses: tuple[Use, ...] = tuple(
        replace(use, compute_bytes=figures.get(use.device, 0)) for use in plan.uses
    )
    fits = plan.fits and all(use.total_bytes <= use.available_bytes for use in uses)
    return replace(plan, uses=uses, fits=fits)

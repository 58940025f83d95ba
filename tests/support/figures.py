"""Compares a plan's figures with llama.cpp's own, device by device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from localllama import gguf_file, hardware, plan
from localllama.hardware import Hardware
from localllama.native import measure
from localllama.plan import Plan, Want

_MIB = 1 << 20
_ROUNDING = 6 * _MIB // 1000  # llama.cpp prints hundredths of a MiB
_PLENTY = 1 << 40


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity on one device, in bytes."""

    what: str
    device: str
    planned: int
    found: int

    @property
    def is_right(self) -> bool:
        """Weights and KV cache within 1 %, compute buffers within 15 % or 32 MiB."""
        error = abs(self.planned - self.found)
        if self.what == "compute":
            return error <= max(0.15 * self.found, 32 * _MIB)
        return error <= 0.01 * self.found + _ROUNDING

    @property
    def error(self) -> float:
        """The relative error."""
        return (self.planned - self.found) / max(1, self.found)


def compare(
    path: Path, want: Want, rpc_servers: Sequence[str] = (), *, really: bool
) -> tuple[Plan, list[Figure]]:
    """Plan for this machine with plenty of memory, load or simulate that, compare the figures.

    Simulated, the weights are left out and the KV cache is a total.
    """
    servers = tuple(rpc_servers)
    machine = roomy(hardware.probe(servers))
    chosen = plan.fit(gguf_file.read_info(path), machine, replace(want, mmap=False))
    found = measure.measure([path], plan.options(chosen, want, servers), really=really)
    figures = [
        Figure("compute", use.device, use.compute_bytes, corrected.compute_bytes)
        for use, corrected in zip(
            chosen.uses, plan.corrected(chosen, found, machine).uses, strict=True
        )
    ]
    kv_bytes = sum(use.kv_bytes for use in chosen.uses)
    figures.append(Figure("KV", "all", kv_bytes, found.kv_total_bytes))
    if really:
        buffers = {gpu.name: (gpu.buffer,) for gpu in machine.gpus}
        buffers[plan.HOST] = ("CPU", "CPU_REPACK")
        for use in chosen.uses:
            names = buffers[use.device]
            weights = sum(found.weights_bytes.get(name, 0) for name in names)
            kv = sum(found.kv_bytes.get(name, 0) for name in names)
            figures.append(
                Figure("weights", use.device, use.weights_bytes + use.repacked_bytes, weights)
            )
            figures.append(Figure("KV", use.device, use.kv_bytes, kv))
    return chosen, figures


def roomy(machine: Hardware) -> Hardware:
    """Return the machine with more memory than anything needs."""
    return replace(
        machine,
        memory=replace(machine.memory, available_bytes=_PLENTY),
        devices=tuple(replace(device, free_bytes=_PLENTY) for device in machine.devices),
    )

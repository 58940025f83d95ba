"""``localllama plan``: what of a model goes where, before anything is loaded or downloaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from localllama import hardware, plan
from localllama.cli import headers, output
from localllama.cli.app import App, complete_known, json_option, offline_option
from localllama.cli.placement import Bytes, idle_note, placement_options
from localllama.config import Config
from localllama.errors import DoesNotFit, EngineError, InvalidParameter
from localllama.gguf_file import ModelInfo
from localllama.hardware import Hardware
from localllama.native import measure
from localllama.plan import Plan
from localllama.wants import Want, planned

_EXAMPLES = """\b
Examples:
  localllama plan smollm2:135m --ctx max
  localllama plan llama2:13b                          every type, nothing downloaded
  localllama plan llama2:7b --vram 8GB --ram 16GB     on a machine you do not have
"""
_CONTEXTS = (4096, 16384)  # of the rows per type, beside all that the model has


@dataclass(frozen=True, slots=True)
class Row:
    """One type and context; ``plan`` is None where it does not fit."""

    info: ModelInfo
    context_length: int
    plan: Plan | None


@click.command("plan", epilog=_EXAMPLES)
@click.argument("model", shell_complete=complete_known)
@click.option("--quant", default="", help="Quantization type, like Q4_K_M or Q8_0.")
@placement_options
@click.option("--vram", type=Bytes(), multiple=True, help="Instead of this machine: a card.")
@click.option("--ram", type=Bytes(), help="Instead of this machine: free memory.")
@click.option("--unified", is_flag=True, help="With --ram: memory that CPU and GPU share.")
@offline_option
@json_option
def plan_command(
    model: str,
    quant: str,
    want: Want,
    vram: tuple[int, ...],
    ram: int | None,
    unified: bool,
    as_json: bool,
) -> None:
    """Show how MODEL would be loaded: layers and memory on each device, and the context.

    Of a model that is not installed only headers are read: a row for every quantization type.
    """
    is_described = bool(vram or ram or unified)
    machine = _machine(vram, ram, unified=unified) if is_described else hardware.probe()
    app = App.start()
    with headers.opened(app, model, quant) as found:
        for problem in machine.problems:
            output.say(f"note: {problem}")
        if len(found) > 1:
            _show_rows(
                rows([info for _, info in found], machine, want, app.config), as_json=as_json
            )
            return
        paths, info = found[0]
        wish = planned(want, info, app.config)
        known = plan.ratios(plan.loads(app.paths.loads_file), info.architecture, machine.llama_cpp)
        chosen = plan.fit(info, machine, wish, known)
        if not is_described:
            chosen = _measured(chosen, paths, machine, wish)
    note = idle_note(want, plan.idle_gpu(chosen, machine, wish), used=chosen.gpu_layers > 0)
    _show(info, chosen, note, as_json=as_json)


def rows(infos: Sequence[ModelInfo], machine: Hardware, want: Want, config: Config) -> list[Row]:
    """Return a row per type and context, smallest type first."""
    found = []
    for info in sorted(infos, key=lambda info: info.file_bytes):
        contexts = {min(length, info.context_length) for length in _CONTEXTS}
        lengths = (
            (want.context_length,) if want.context_length else (*contexts, info.context_length)
        )
        for length in sorted(set(lengths)):
            changed = replace(want, context_length=length, force=False)
            try:
                chosen = plan.fit(info, machine, planned(changed, info, config))
            except DoesNotFit:
                found.append(Row(info, length, None))
            else:
                found.append(Row(info, chosen.context_length, chosen))
    return found


def _machine(vram: tuple[int, ...], ram: int | None, *, unified: bool) -> Hardware:
    if unified and not ram:
        raise InvalidParameter("--unified needs --ram", "like --ram 16GB --unified")
    if unified and vram:
        raise InvalidParameter("unified memory has no --vram", "give --ram alone")
    memory = ram or hardware.memory().available_bytes
    return hardware.described(memory, vram, unified=unified)


def _measured(chosen: Plan, paths: tuple[Path, ...], machine: Hardware, want: plan.Want) -> Plan:
    """Return the plan with llama.cpp's own compute buffers, where it can tell them."""
    servers = hardware.rpc_servers_of(os.environ)
    try:
        found = measure.measure(paths, plan.options(chosen, want, servers))
    except EngineError as error:
        output.say(f"note: compute buffers are estimated: {error.message}")
        return chosen
    return plan.corrected(chosen, found, machine)


def _show(info: ModelInfo, chosen: Plan, idle_gpu: str, *, as_json: bool) -> None:
    if as_json:
        explanation = {"explanation": plan.sentence(chosen), "idle_gpu": idle_gpu}
        output.as_json({"model": _facts(info), **asdict(chosen), **explanation})
        return
    output.result(plan.sentence(chosen))
    if idle_gpu:
        output.say(f"note: {idle_gpu}")
    if not chosen.fits:
        output.say("note: this does not fit")
    output.result("")
    sizes = [
        [str(cell) if i < 2 else output.size(int(cell)) for i, cell in enumerate(row)]
        for row in plan.rows(chosen)
    ]
    head = ("DEVICE", "LAYERS", "WEIGHTS", "KV CACHE", "COMPUTE", "PROCESS", "TOTAL", "AVAILABLE")
    output.table(head, sizes)


def _show_rows(found: list[Row], *, as_json: bool) -> None:
    if as_json:
        output.as_json(
            [
                {
                    **_facts(row.info),
                    "context_length": row.context_length,
                    "fits": plan.verdict(row.plan),
                    "plan": asdict(row.plan) if row.plan else None,
                }
                for row in found
            ]
        )
        return
    output.table(
        ("TYPE", "SIZE", "CONTEXT", "KV CACHE", "GPU LAYERS", "MEMORY", "FITS"),
        [
            (
                row.info.quantization,
                output.size(row.info.file_bytes),
                str(row.context_length),
                row.plan.kv_type if row.plan else "",
                f"{row.plan.gpu_layers}/{row.plan.layers}" if row.plan else "",
                output.size(row.plan.total_bytes) if row.plan else "",
                plan.verdict(row.plan),
            )
            for row in found
        ],
    )


def _facts(info: ModelInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "quantization": info.quantization,
        "parameters": info.parameters,
        "size_bytes": info.file_bytes,
        "trained_context_length": info.context_length,
    }

"""``localllama doctor``: what this machine has, and what stands in the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from localllama import doctor, hardware, plan
from localllama.cli import output
from localllama.cli.app import App, json_option, offline_option
from localllama.engine import snapshots
from localllama.hardware import Hardware


@click.command("doctor", epilog="\b\nExample:\n  localllama doctor --json")
@offline_option
@json_option
def doctor_command(as_json: bool) -> None:
    """Look at this machine: devices, memory, disk, network, and what is wrong with them.

    The exit code is 0 whatever is found; --json lists the troubles for programs.
    """
    app = App.start()
    facts = doctor.collect(app.store, app.config, app.catalog, hardware.probe())
    snapshots_bytes = sum(size for _, size in snapshots.files(app.paths.snapshots))
    errors = plan.errors(plan.loads(app.paths.loads_file))
    found = list(doctor.troubles(facts))
    if as_json:
        machine = asdict(facts.hardware)
        machine["cpu_features"] = sorted(facts.hardware.cpu_features)
        nvidia = [asdict(gpu) for gpu in facts.nvidia]
        troubles = [asdict(trouble) for trouble in found]
        output.as_json(
            {
                "hardware": machine,
                "nvidia": nvidia,
                "planner": [asdict(error) for error in errors],
                "troubles": troubles,
                "snapshots_bytes": snapshots_bytes,
            }
        )
        return
    _show(facts.hardware)
    _show_planner(errors)
    if snapshots_bytes:
        output.result(
            f"\n{output.size(snapshots_bytes)} of earlier conversations are kept computed in "
            f"{app.paths.snapshots}; localllama prune --cache removes them"
        )
    for trouble in found:
        output.result(f"\n! {trouble.problem}\n  fix: {trouble.fix}")
    if not found:
        output.result("\nNo trouble found.")


def _show_planner(errors: Sequence[plan.Error]) -> None:
    if not errors:
        return
    output.result("\nThe planner's largest errors, measured at real loads:")
    output.table(
        ("ARCHITECTURE", "DEVICE", "LLAMA.CPP", "LOADS", "WEIGHTS", "KV CACHE", "COMPUTE"),
        [
            (
                error.architecture,
                error.device,
                error.build,
                str(error.loads),
                f"{error.weights:+.1%}",
                f"{error.kv:+.1%}",
                f"{error.compute:+.1%}",
            )
            for error in errors
        ],
    )


def _show(machine: Hardware) -> None:
    memory = machine.memory
    fast = f", {memory.performance_cores} of them fast"
    output.result(
        f"memory    {output.size(memory.available_bytes)} of {output.size(memory.total_bytes)} free"
    )
    output.result(
        f"cores     {memory.cores}{fast if memory.performance_cores < memory.cores else ''}"
    )
    output.result(f"llama.cpp {machine.llama_cpp or '?'}: {', '.join(machine.backends)}")
    if not machine.gpus:
        unusable = machine.unusable_gpu
        output.result(f"GPU       {f'{unusable}, idle' if unusable else 'none was found'}")
    output.result("")
    output.table(
        ("DEVICE", "KIND", "BACKEND", "FREE", "TOTAL", "DESCRIPTION"),
        [
            (
                device.name,
                device.kind,
                device.backend,
                output.size(device.free_bytes),
                output.size(device.total_bytes),
                device.description,
            )
            for device in machine.devices
        ],
    )

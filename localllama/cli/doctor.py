"""``localllama doctor``: what this machine has, and what stands in the way."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click

from localllama import catalog, gguf_file, hardware, plan
from localllama.cli import checks, output
from localllama.cli.app import App, json_option, offline_option
from localllama.engine import snapshots
from localllama.errors import DoesNotFit, LocalLlamaError
from localllama.hardware import Hardware
from localllama.runner import Want, planned

_OLLAMA_PORT = 11434
_ENDPOINT_SECONDS = 3.0
_LISTING_SECONDS = 10.0  # nvidia-smi wakes sleeping cards


@click.command("doctor", epilog="\b\nExample:\n  localllama doctor --json")
@offline_option
@json_option
def doctor_command(as_json: bool) -> None:
    """Look at this machine: devices, memory, disk, network, and what is wrong with them.

    The exit code is 0 whatever is found; --json lists the troubles for programs.
    """
    app = App.start()
    facts = collect(app)
    snapshots_bytes = sum(size for _, size in snapshots.files(app.paths.snapshots))
    errors = plan.errors(plan.loads(app.paths.loads_file))
    found = list(checks.troubles(facts))
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


def collect(app: App) -> checks.Facts:
    """Return what can be found out about this machine, in some seconds at most."""
    machine = hardware.probe()
    nvidia = hardware.nvidia()
    folder = app.paths.data
    return checks.Facts(
        hardware=machine,
        nvidia=nvidia,
        nvidia_names=tuple(gpu.name for gpu in nvidia) or _nvidia_names(),
        amd_gpu=Path("/dev/kfd").exists(),
        system=sys.platform,
        machine=platform.machine(),
        model=app.config.run.model,
        model_trouble=_model_trouble(app, machine),
        models_folder=str(folder),
        disk_free_bytes=hardware.free_disk_bytes(folder),
        disk_type=hardware.disk_type(folder),
        endpoint=app.config.network.hf_endpoint,
        endpoint_trouble=_endpoint_trouble(app),
        port_owner=port_owner(_OLLAMA_PORT),
    )


def port_owner(port: int) -> str:
    """Return who listens on a loopback port, "" when nobody does."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            with connection.makefile("rb") as stream:
                answer = stream.read(4096)
    except ConnectionRefusedError:
        return ""
    except OSError:
        return "another program"
    return "Ollama" if b"Ollama is running" in answer else "another program"


def _model_trouble(app: App, machine: Hardware) -> str:
    """Why the default model does not fit here, from its header or else from the catalog."""
    try:
        name = app.name(app.config.run.model)
        model = app.store.find(name)
        if model is not None:
            paths = app.store.weights(model)
            info = gguf_file.read_split_info(paths)
            plan.fit(info, machine, planned(Want(), info, app.config))
            return ""
        family = app.catalog.families.get(name.repo.casefold())
        entry = family.find(name.tag) if family else None
        if entry is None:
            return ""
        needed = plan.memory_bytes(catalog.estimate(entry, entry.default_quant))
    except DoesNotFit as error:
        return error.message
    except LocalLlamaError:
        return ""  # a name or a file that is wrong is for the command that needs it
    available = machine.memory.available_bytes + sum(gpu.free_bytes for gpu in machine.gpus)
    if needed <= available:
        return ""
    return f"it needs {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are available"


def _endpoint_trouble(app: App) -> str:
    from localllama import download

    network = app.config.network
    if network.offline:
        return ""
    impatient = replace(network, timeout_seconds=_ENDPOINT_SECONDS, retries=1)
    try:
        download.get_bytes(f"{network.hf_endpoint.rstrip('/')}/api/models?limit=1", impatient)
    except LocalLlamaError as error:
        return error.message
    return ""


def _nvidia_names() -> tuple[str, ...]:
    """The cards that nvidia-smi or the kernel module show, where NVML cannot be asked."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_LISTING_SECONDS,
        )
        names = tuple(line.strip() for line in listed.stdout.splitlines() if line.strip())
    except (OSError, subprocess.TimeoutExpired):
        names = ()
    if names or not Path("/proc/driver/nvidia/gpus").is_dir():
        return names
    return tuple("an NVIDIA GPU" for _ in Path("/proc/driver/nvidia/gpus").iterdir())


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

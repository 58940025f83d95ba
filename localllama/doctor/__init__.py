"""Collects what there is to know of this machine, for the checks of what stands in the way."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from localllama import catalog, gguf_file, hardware, plan, pull
from localllama.catalog import Catalog
from localllama.config import Config, Network
from localllama.doctor.checks import Facts, Trouble, troubles
from localllama.errors import DoesNotFit, LocalLlamaError
from localllama.hardware import Hardware
from localllama.store import Store
from localllama.wants import Want, planned

__all__ = ["Facts", "Trouble", "collect", "port_owner", "troubles"]

_OLLAMA_PORT = 11434
_ENDPOINT_SECONDS = 3.0
_LISTING_SECONDS = 10.0  # nvidia-smi wakes sleeping cards


def collect(store: Store, config: Config, known: Catalog, machine: Hardware) -> Facts:
    """Return what can be found out about this machine, in some seconds at most."""
    nvidia = hardware.nvidia()
    folder = store.paths.data
    return Facts(
        hardware=machine,
        nvidia=nvidia,
        nvidia_names=tuple(gpu.name for gpu in nvidia) or _nvidia_names(),
        amd_gpu=Path("/dev/kfd").exists(),
        system=sys.platform,
        machine=platform.machine(),
        model=config.run.model,
        model_trouble=_model_trouble(store, config, known, machine),
        models_folder=str(folder),
        disk_free_bytes=hardware.free_disk_bytes(folder),
        disk_type=hardware.disk_type(folder),
        endpoint=config.network.hf_endpoint,
        endpoint_trouble=_endpoint_trouble(config.network),
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


def _model_trouble(store: Store, config: Config, known: Catalog, machine: Hardware) -> str:
    """Why the default model does not fit here, from its header or else from the catalog."""
    try:
        name = pull.full_name(config.run.model, store, lambda: known)
        model = store.find(name)
        if model is not None:
            paths = store.weights(model)
            info = gguf_file.read_split_info(paths)
            plan.fit(info, machine, planned(Want(), info, config))
            return ""
        family = known.families.get(name.repo.casefold())
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


def _endpoint_trouble(network: Network) -> str:
    from localllama import download

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

"""What can be wrong with a machine: one pure function a trouble, over what doctor collects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from localllama.amounts import size
from localllama.hardware import Hardware, NvidiaGpu

_NETWORK_DISKS = ("nfs", "cifs", "smb", "9p", "afs", "fuse.sshfs", "webdav", "davfs", "glusterfs")
_LOW_DISK_BYTES = 5_000_000_000  # a 7B model with room to spare
_BUSY_SHARE = 0.1  # of a card: what a desktop may take without being told


@dataclass(frozen=True, slots=True)
class Facts:
    """What doctor found; "" and () stand for what is absent or was not asked."""

    hardware: Hardware
    nvidia: tuple[NvidiaGpu, ...] = ()
    nvidia_names: tuple[str, ...] = ()  # cards that the system shows, with or without NVML
    amd_gpu: bool = False
    system: str = "linux"
    machine: str = "x86_64"
    model: str = ""  # the default one
    model_trouble: str = ""  # why it does not fit
    models_folder: str = ""
    disk_free_bytes: int = 1 << 62
    disk_type: str = ""
    endpoint: str = ""
    endpoint_trouble: str = ""
    port_owner: str = ""  # who listens on Ollama's port


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that will hurt, its cause, and the exact way out."""

    code: str
    problem: str
    fix: str


Check = Callable[[Facts], Trouble | None]


def troubles(facts: Facts) -> Iterator[Trouble]:
    """Yield every trouble of the facts, the gravest kind first."""
    for check in CHECKS:
        if trouble := check(facts):
            yield trouble


def devices_unknown(facts: Facts) -> Trouble | None:
    """The child that asks ggml died or hung, or a server is away."""
    if not facts.hardware.problems:
        return None
    return Trouble(
        "devices",
        "; ".join(facts.hardware.problems),
        "run with LOCALLLAMA_DEBUG=1; --no-gpu works meanwhile",
    )


def cpu_only_build(facts: Facts) -> Trouble | None:
    """A GPU is there that this build of llama.cpp cannot use."""
    wanted = ""
    names = ", ".join(facts.nvidia_names)
    if facts.nvidia_names and not _has(facts, "CUDA", "Vulkan"):
        wanted = "CUDA"
    elif facts.amd_gpu and not _has(facts, "ROCm", "Vulkan"):
        wanted, names = "HIP", "an AMD GPU"
    elif (facts.system, facts.machine) == ("darwin", "arm64") and not _has(facts, "MTL"):
        wanted, names = "METAL", "Apple's GPU"
    if not wanted:
        return None
    return Trouble(
        "cpu_only_build",
        f"this machine has {names}, and this llama.cpp was built without support for it",
        f"CMAKE_ARGS=-DGGML_{wanted}=on pip install --force-reinstall --no-cache-dir "
        f"--no-binary llama-cpp-python llama-cpp-python=={facts.hardware.llama_cpp}",
    )


def driver_too_old(facts: Facts) -> Trouble | None:
    """A CUDA build, a card and a driver, and yet no device."""
    if not facts.nvidia_names or not _has(facts, "CUDA"):
        return None
    if any(device.backend == "CUDA" for device in facts.hardware.devices):
        return None
    has = ""
    if facts.nvidia:
        major, minor = facts.nvidia[0].cuda
        has = f" {facts.nvidia[0].driver} (for CUDA up to {major}.{minor})"
    return Trouble(
        "driver",
        f"llama.cpp was built for CUDA, and the NVIDIA driver{has} gives it no device",
        "update the NVIDIA driver and restart; or build llama-cpp-python with a CUDA toolkit no "
        "newer than the driver supports",
    )


def vram_taken(facts: Facts) -> Trouble | None:
    """Other processes hold a good part of a card."""
    busy = [
        (gpu, process)
        for gpu in facts.nvidia
        for process in gpu.processes
        if process.used_bytes > _BUSY_SHARE * gpu.total_bytes
    ]
    if not busy:
        return None
    listed = ", ".join(
        f"{process.name} (pid {process.pid}) {size(process.used_bytes)} of {gpu.name}"
        for gpu, process in busy
    )
    return Trouble(
        "vram_taken",
        f"other processes hold VRAM: {listed}",
        "end them, or plan with what is left: localllama does so by itself",
    )


def model_too_large(facts: Facts) -> Trouble | None:
    """The default model does not fit now."""
    if not facts.model_trouble:
        return None
    return Trouble(
        "memory",
        f"{facts.model}, the default model, does not fit: {facts.model_trouble}",
        "close other programs, or choose a smaller model: LOCALLLAMA_MODEL=NAME",
    )


def no_avx2(facts: Facts) -> Trouble | None:
    """A build for, or a processor of, before 2013."""
    is_intel = facts.machine.lower() in ("x86_64", "amd64")
    features = facts.hardware.cpu_features
    if not is_intel or not features or "AVX2" in features:
        return None
    return Trouble(
        "no_avx2",
        "llama.cpp computes without AVX2 here, several times slower",
        "if the processor has AVX2 (from 2013 on), rebuild on this machine: pip install "
        f"--force-reinstall --no-binary llama-cpp-python "
        f"llama-cpp-python=={facts.hardware.llama_cpp}",
    )


def disk_full(facts: Facts) -> Trouble | None:
    """No room for another model."""
    if facts.disk_free_bytes >= _LOW_DISK_BYTES:
        return None
    return Trouble(
        "disk_full",
        f"{size(facts.disk_free_bytes)} are free on the disk of {facts.models_folder}",
        'localllama prune, localllama rm NAME, or another folder: models = "..." in config.toml',
    )


def network_disk(facts: Facts) -> Trouble | None:
    """Models are mapped into memory: over a network every page is a request."""
    if not facts.disk_type.startswith(_NETWORK_DISKS):
        return None
    return Trouble(
        "network_disk",
        f"the models are on a network disk ({facts.disk_type}): loading is slow, and a lost "
        "connection ends the process that runs them",
        'put them on a disk of this machine: models = "..." in config.toml',
    )


def endpoint_unreachable(facts: Facts) -> Trouble | None:
    """Nothing can be downloaded."""
    if not facts.endpoint_trouble:
        return None
    return Trouble(
        "network",
        f"{facts.endpoint} cannot be asked: {facts.endpoint_trouble}",
        "check the connection, HTTPS_PROXY and HF_ENDPOINT; installed models work without",
    )


def port_taken(facts: Facts) -> Trouble | None:
    """Ollama's port is not free for a server of ours."""
    if not facts.port_owner:
        return None
    return Trouble(
        "port_taken",
        f"port 11434 is taken by {facts.port_owner}",
        "stop it, or serve on another port: OLLAMA_HOST=127.0.0.1:11435",
    )


def _has(facts: Facts, *backends: str) -> bool:
    return any(backend in facts.hardware.backends for backend in backends)


CHECKS: tuple[Check, ...] = (
    devices_unknown,
    cpu_only_build,
    driver_too_old,
    vram_taken,
    model_too_large,
    no_avx2,
    disk_full,
    network_disk,
    endpoint_unreachable,
    port_taken,
)

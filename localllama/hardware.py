"""What this machine has: memory, cores, free disk, and the devices that llama.cpp can compute on.

Devices are asked for in a short-lived child, so that no front end ever holds a CUDA context.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from localllama.errors import EngineError
from localllama.files import write_atomic

# A driver that has to wake a card takes some seconds; one that hangs never answers.
_PROBE_SECONDS = 30.0
_UNIFIED_BACKENDS = ("MTL",)
_HOST_BACKENDS = {"CPU", "BLAS", "RPC"}  # what these can do depends on the build and the processor


@dataclass(frozen=True, slots=True)
class Memory:
    """The host's memory and processor at this moment.

    ``performance_cores`` leaves out the slow cores of hybrid processors where the system tells
    them apart, else it is ``cores``.
    """

    available_bytes: int  # that a new process can take without swapping
    total_bytes: int
    cores: int  # physical: llama.cpp gains nothing from their twins
    performance_cores: int


@dataclass(frozen=True, slots=True)
class Device:
    """What ggml says of one device; ``kind`` is cpu, gpu, igpu, accel or meta.

    ``backend`` is CUDA, MTL, Vulkan, ROCm, RPC, CPU…; ``buffer`` what llama.cpp's log calls its
    memory. Where ``host_buffer``, weights that stay on the host are pinned and not repacked.
    """

    name: str
    description: str
    kind: str
    backend: str
    free_bytes: int
    total_bytes: int
    buffer: str = ""
    device_id: str = ""
    host_buffer: bool = False

    @property
    def unified(self) -> bool:
        """Whether its memory is the host's: Apple's and integrated GPUs."""
        return self.kind == "igpu" or self.backend in _UNIFIED_BACKENDS


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a plan needs to know of a machine.

    ``cpu_features`` are ggml's names (AVX2, NEON, REPACK…), ``backends`` those in this build.
    ``unusable_gpu`` names a GPU that this build cannot use. ``problems`` says why something that
    was asked for is missing, ready for people.
    """

    memory: Memory
    devices: tuple[Device, ...] = ()
    cpu_features: frozenset[str] = frozenset()
    backends: tuple[str, ...] = ()
    llama_cpp: str = ""
    unusable_gpu: str = ""
    problems: tuple[str, ...] = ()

    @property
    def gpus(self) -> tuple[Device, ...]:
        """The devices that take layers, in llama.cpp's order: RPC, GPUs, else integrated ones."""
        gpus = [device for device in self.devices if device.kind == "gpu"]
        remote = [device for device in gpus if device.backend == "RPC"]
        local: dict[str, Device] = {}
        for device in gpus:
            if device.backend != "RPC":  # one card may be there twice, under CUDA and Vulkan
                local.setdefault(device.device_id or device.name, device)
        if not local:
            local = {d.name: d for d in self.devices if d.kind == "igpu"}
        return (*remote, *local.values())


@dataclass(frozen=True, slots=True)
class NvidiaProcess:
    """A process that holds memory of an NVIDIA GPU."""

    name: str
    pid: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class NvidiaGpu:
    """One NVIDIA GPU as its driver (NVML) describes it; ``cuda`` is the newest it supports."""

    name: str
    driver: str
    cuda: tuple[int, int]
    free_bytes: int
    total_bytes: int
    processes: tuple[NvidiaProcess, ...] = ()


def memory() -> Memory:
    """Return what the host has at this moment; takes milliseconds."""
    import psutil

    found = psutil.virtual_memory()
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return Memory(found.available, found.total, cores, _performance_cores() or cores)


def probe(
    rpc_servers: tuple[str, ...] | None = None, *, remembered: Path | None = None
) -> Hardware:
    """Return what the host has and what ggml can use; takes a child process, 0.3 s and more.

    ``rpc_servers`` default to those of the environment. A child that dies or hangs is an answer
    too: no devices, and the reason among the problems. The file ``remembered`` keeps the answer of
    a build without GPU backends, which only another build or machine changes.
    """
    from localllama.native import child

    servers = rpc_servers_of(os.environ) if rpc_servers is None else rpc_servers
    known = _Remembered(None if servers else remembered)
    if (answer := known.read()) is not None:
        return _hardware(memory(), answer)
    try:
        answer = child.ask(
            "localllama.native.probe",
            {"rpc_servers": list(servers)},
            timeout_seconds=_PROBE_SECONDS,
        )
    except EngineError as error:
        return Hardware(memory(), problems=(f"asking for devices: {error.message}",))
    if _HOST_BACKENDS.issuperset(answer["backends"]):
        known.write(answer)
    return _hardware(memory(), answer)


def without_gpus(remembered: Path) -> bool:
    """Whether probe() once found that there are none to put layers on; asks nobody."""
    return not rpc_servers_of(os.environ) and _Remembered(remembered).read() is not None


def described(ram_bytes: int, vram_bytes: Sequence[int] = (), *, unified: bool = False) -> Hardware:
    """Return a machine with so much free memory: CUDA cards, or with ``unified`` Apple's memory.

    Metal lets a process have two thirds of the memory, three quarters above 36 GB.
    """
    host = Memory(ram_bytes, ram_bytes, 8, 8)
    if unified:
        share = ram_bytes * 3 // 4 if ram_bytes > 36e9 else ram_bytes * 2 // 3
        gpu = Device("MTL0", "Apple GPU", "gpu", "MTL", share, share)
        return Hardware(host, (gpu,), frozenset(("DOTPROD", "REPACK")))
    cards = (
        Device(f"CUDA{index}", "NVIDIA GPU", "gpu", "CUDA", size, size, host_buffer=True)
        for index, size in enumerate(vram_bytes)
    )
    return Hardware(host, tuple(cards), frozenset(("AVX2", "REPACK")))


def rpc_servers_of(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the ``host:port`` in LOCALLLAMA_RPC, which commas separate."""
    listed = environ.get("LOCALLLAMA_RPC", "").split(",")
    return tuple(item.strip() for item in listed if item.strip())


def nvidia() -> tuple[NvidiaGpu, ...]:
    """Return what NVIDIA's driver tells; () without nvidia-ml-py or without a driver."""
    try:
        pynvml: Any = import_module("pynvml")
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_nvidia_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def usable_threads() -> int:
    """Return the logical cores that this process may use: quantizing gains from every one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_disk_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that ``folder`` is on, or will be made on."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def disk_type(folder: Path) -> str:
    """Return the kind of filesystem that ``folder`` is on, or will be made on; "" = unknown."""
    import psutil

    place = folder.absolute()
    mounts = [
        mount
        for mount in psutil.disk_partitions(all=True)
        if place.is_relative_to(mount.mountpoint)
    ]
    return str(max(mounts, key=lambda mount: len(mount.mountpoint)).fstype) if mounts else ""


class _Remembered:
    """The answer of this build of llama.cpp on this machine, in a file; None = in none."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def read(self) -> dict[str, Any] | None:
        """Return the answer, None where there is none or it is of another build."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            if self._file is not None:
                known = json.loads(self._file.read_bytes())
                if known["build"] == _build():
                    return dict(known["answer"])
        return None

    def write(self, answer: Mapping[str, Any]) -> None:
        """Keep the answer; a disk that is full or read-only costs time later, nothing else."""
        if self._file is not None:
            with suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps({"build": _build(), "answer": answer})
                write_atomic(self._file, text.encode())


def _build() -> list[str | int]:
    """What another machine or installation of llama.cpp does not share."""
    found = find_spec("llama_cpp")
    libraries = Path(found.origin).parent / "lib" if found and found.origin else Path("llama_cpp")
    newest = max((file.stat().st_mtime_ns for file in libraries.glob("*")), default=0)
    return [platform.node(), str(libraries), newest]


def _hardware(host: Memory, answer: Mapping[str, Any]) -> Hardware:
    known = {field.name for field in fields(Device)}
    return Hardware(
        memory=host,
        devices=tuple(
            _device({key: value for key, value in device.items() if key in known}, host)
            for device in answer["devices"]
        ),
        cpu_features=frozenset(answer["cpu_features"]),
        backends=tuple(answer["backends"]),
        llama_cpp=answer["llama_cpp"],
        unusable_gpu=_unusable_gpu(answer["backends"]),
        problems=tuple(answer["problems"]),
    )


def _device(known: Mapping[str, Any], host: Memory) -> Device:
    """Return a device; of the processor, ggml calls all memory free."""
    device = Device(**known)
    if device.kind != "cpu":
        return device
    return replace(device, free_bytes=host.available_bytes, total_bytes=host.total_bytes)


def _unusable_gpu(backends: Sequence[str], root: Path = Path("/")) -> str:
    """A GPU that the system shows and no backend is for, in words; "" where there is none."""
    known = {*backends}
    if not known & {"CUDA", "Vulkan"} and (root / "proc/driver/nvidia/gpus").is_dir():
        return "the NVIDIA GPU"
    if not known & {"ROCm", "Vulkan"} and (root / "dev/kfd").exists():
        return "the AMD GPU"
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return "Apple's GPU" if apple and "MTL" not in known else ""


def _performance_cores(root: Path = Path("/sys/devices")) -> int:
    """The physical performance cores, 0 where the system does not tell; Linux and macOS may."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "hw.perflevel0.physicalcpu"]
        said = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        return int(said) if said.isdecimal() else 0
    try:
        numbers = (root / "cpu_core/cpus").read_text()  # "0-15", or "0,2,4-7"
        threads = [number for part in numbers.split(",") for number in _range(part)]
        siblings = {
            (root / f"system/cpu/cpu{number}/topology/thread_siblings_list").read_text()
            for number in threads
        }
    except (OSError, ValueError):
        return 0
    return len(siblings)


def _range(text: str) -> range:
    first, _, last = text.strip().partition("-")
    return range(int(first), int(last or first) + 1)


def _nvidia_gpu(pynvml: Any, index: int) -> NvidiaGpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    cuda = pynvml.nvmlSystemGetCudaDriverVersion()  # 12040 = 12.4
    running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return NvidiaGpu(
        name=str(pynvml.nvmlDeviceGetName(handle)),
        driver=str(pynvml.nvmlSystemGetDriverVersion()),
        cuda=(cuda // 1000, cuda % 1000 // 10),
        free_bytes=memory.free,
        total_bytes=memory.total,
        processes=tuple(
            NvidiaProcess(_process_name(process.pid), process.pid, process.usedGpuMemory or 0)
            for process in running
        ),
    )


def _process_name(pid: int) -> str:
    import psutil

    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "?"  # another user's, or outside this container

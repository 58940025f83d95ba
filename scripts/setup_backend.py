"""Which build of llama.cpp suits a machine: pure decisions, no probing, no installing.

Every way to get a build is an Attempt, in the order in which they are worth trying: the prebuilt
wheels of the llama-cpp-python project first, since they cost seconds, then compiling. Only on a
machine without a GPU compiling comes first, because the prebuilt CPU wheels are built for any
processor and lack RPC.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Version = tuple[int, int]

BACKENDS = ("cuda", "metal", "rocm", "vulkan", "cpu")

# RPC lets several machines share a model; the image tools (llava) are a quarter of the compile.
COMMON_ARGS = ("-DGGML_RPC=ON", "-DLLAVA_BUILD=OFF")

# The CUDA releases with prebuilt wheels, newest first, with the compute capabilities they serve.
# Their Python tag is py3, so any Python will do; pip has the last word.
CUDA_WHEELS: tuple[tuple[Version, Version, Version], ...] = (
    ((13, 2), (7, 5), (99, 0)),
    ((13, 0), (7, 5), (99, 0)),
    ((12, 5), (6, 0), (99, 0)),
    ((12, 4), (6, 0), (99, 0)),
    ((12, 3), (6, 0), (99, 0)),
    ((12, 2), (6, 0), (99, 0)),
    ((12, 1), (6, 0), (99, 0)),
    ((11, 8), (6, 0), (8, 9)),
)
WINDOWS_CUDA_WHEELS = {(13, 2), (13, 0), (12, 5), (12, 4), (11, 8)}

# The first CUDA release whose compiler knows a compute capability.
CUDA_SUPPORT: tuple[tuple[Version, Version], ...] = (
    ((12, 1), (12, 9)),
    ((12, 0), (12, 8)),
    ((10, 3), (12, 9)),
    ((10, 0), (12, 8)),
    ((8, 9), (11, 8)),
    ((8, 6), (11, 1)),
)

COMPILER_COMMANDS = {
    "apt": "sudo apt install g++",
    "dnf": "sudo dnf install gcc-c++",
    "pacman": "sudo pacman -S gcc",
    "zypper": "sudo zypper install gcc-c++",
    "xcode": "xcode-select --install",
}
CUDA_COMMANDS = {
    "apt": "sudo apt install nvidia-cuda-toolkit",
    "dnf": "sudo dnf install cuda-toolkit",
    "pacman": "sudo pacman -S cuda",
    "zypper": "sudo zypper install cuda-toolkit",
}
NVIDIA_DRIVER_COMMANDS = {
    "apt": "sudo apt install nvidia-driver",
    "dnf": "sudo dnf install akmod-nvidia",
    "pacman": "sudo pacman -S nvidia",
}
VULKAN_COMMANDS = {
    "apt": "sudo apt install g++ libvulkan-dev glslc spirv-headers",
    "dnf": "sudo dnf install gcc-c++ vulkan-loader-devel glslc spirv-headers-devel",
    "pacman": "sudo pacman -S gcc vulkan-headers vulkan-icd-loader shaderc spirv-headers",
}
ROCM_COMMANDS = {
    "apt": "sudo apt install rocm-hip-sdk",
    "dnf": "sudo dnf install rocm-hip-devel",
    "pacman": "sudo pacman -S rocm-hip-sdk",
}


@dataclass(frozen=True, slots=True)
class Card:
    """An NVIDIA card; ``capability`` is None where the driver is too old to tell."""

    name: str
    capability: Version | None


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A compiler for a GPU, the release it belongs to and where its shared libraries are."""

    path: str
    version: Version
    library_dir: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What matters here about a machine; the defaults describe one with nothing in it."""

    system: str = "Linux"
    arch: str = "x86_64"
    packager: str = ""  # apt, dnf, pacman, zypper or xcode: how its user installs things
    compiler: str = ""  # a C++ compiler
    macos: Version = (0, 0)
    apple_silicon: bool = False
    nvidia_on_bus: bool = False  # an NVIDIA card is plugged in, with or without a driver
    cards: tuple[Card, ...] = ()
    driver_cuda: Version | None = None  # the newest CUDA the driver runs
    nvcc: Toolkit | None = None
    rocm: Toolkit | None = None  # hipcc
    amd_targets: tuple[str, ...] = ()  # gfx1100, ...
    vulkan_gpu: str = ""
    vulkan_sdk: bool = False  # headers, loader, glslc and SPIRV-Headers: enough to compile

    def command(self, commands: dict[str, str], otherwise: str) -> str:
        """Return the one command that fits this machine's package manager."""
        return commands.get(self.packager, otherwise)

    @property
    def compiler_command(self) -> str:
        """What installs a C++ compiler here."""
        return self.command(COMPILER_COMMANDS, "install a C++ compiler")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to get a build: from the wheel index ``index``, or compiled where that is empty."""

    backend: str
    reason: str
    index: str = ""
    cmake_args: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    toolkit: str = ""  # compiler and release it is compiled with, beside the C++ one
    runtime: tuple[str, ...] = ()  # packages with the shared libraries it needs
    library_dir: str = ""  # where the toolkit keeps those libraries

    @property
    def title(self) -> str:
        """A few words for messages; they tell the attempts of a plan apart."""
        return f"{self.backend}, {'wheel index ' + self.index if self.index else 'compiled'}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Attempts in order; ``advice`` tells by backend what is missing and the command to fix it."""

    attempts: tuple[Attempt, ...]
    advice: dict[str, str]

    def advice_beyond(self, installed: str) -> list[str]:
        """Return what would have given something better than the backend ``installed``."""
        better = BACKENDS[: BACKENDS.index(installed)] if installed else BACKENDS
        return [self.advice[name] for name in better if name in self.advice]


def choose(machine: Machine, override: str = "auto") -> Plan:
    """Return the ways to a build for ``machine``, best first; ``override`` allows one backend."""
    wanted = BACKENDS if override == "auto" else (override,)
    attempts = tuple(a for name in wanted for a in _ATTEMPTS[name](machine))
    advice = {name: text for name in wanted if (text := _ADVICE[name](machine))}
    return Plan(attempts, advice)


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _intel_64(machine: Machine) -> bool:
    return machine.system in ("Linux", "Windows") and machine.arch in ("x86_64", "AMD64")


def cuda_wheels(machine: Machine) -> list[Version]:
    """Return the CUDA releases whose wheels suit driver and cards: the newest of each major."""
    if not (machine.cards and machine.driver_cuda and _intel_64(machine)):
        return []
    capabilities = [card.capability for card in machine.cards if card.capability]
    found: dict[int, Version] = {}
    for version, lowest, highest in CUDA_WHEELS:
        published = machine.system == "Linux" or version in WINDOWS_CUDA_WHEELS
        served = all(lowest <= capability <= highest for capability in capabilities)
        if published and served and version <= machine.driver_cuda:
            found.setdefault(version[0], version)
    return list(found.values())


def cuda_runtime(version: Version) -> tuple[str, ...]:
    """Return the packages with the shared libraries that a CUDA wheel expects on the machine."""
    suffix = f"-cu{version[0]}" if version[0] < 13 else ""
    return tuple(
        f"nvidia-{name}{suffix}=={_dotted(version)}.*" for name in ("cuda-runtime", "cublas")
    )


def nvcc_problem(machine: Machine) -> str:
    """Return why nvcc cannot compile for these cards, or nothing."""
    if machine.nvcc is None:
        return "there is no CUDA compiler (nvcc)"
    version = machine.nvcc.version
    if machine.driver_cuda and version[0] > machine.driver_cuda[0]:
        return (
            f"nvcc {_dotted(version)} is newer than the driver, "
            f"which runs CUDA {_dotted(machine.driver_cuda)}"
        )
    for capability in filter(None, (card.capability for card in machine.cards)):
        if version[0] >= 13 and capability < (7, 5):
            return f"nvcc {_dotted(version)} no longer knows compute {_dotted(capability)}"
        needed = next((cuda for known, cuda in CUDA_SUPPORT if capability >= known), (0, 0))
        if version < needed:
            return (
                f"nvcc {_dotted(version)} does not know compute {_dotted(capability)} yet: "
                f"that takes CUDA {_dotted(needed)}"
            )
    return ""


def _cuda(machine: Machine) -> Iterator[Attempt]:
    if not machine.cards:
        return
    names = ", ".join(dict.fromkeys(card.name for card in machine.cards))
    for version in cuda_wheels(machine):
        assert machine.driver_cuda is not None
        yield Attempt(
            "cuda",
            f"{names}; the driver runs CUDA up to {_dotted(machine.driver_cuda)}",
            index=f"cu{version[0]}{version[1]}",
            runtime=cuda_runtime(version),
        )
    if machine.nvcc and machine.compiler and not nvcc_problem(machine):
        known = {card.capability for card in machine.cards if card.capability}
        # Without a list CMake compiles for every generation of cards, which takes an hour.
        wanted = ";".join(f"{major}{minor}" for major, minor in sorted(known)) or "native"
        yield Attempt(
            "cuda",
            f"{names}; nvcc {_dotted(machine.nvcc.version)} compiles for compute {wanted}",
            cmake_args=("-DGGML_CUDA=on", f"-DCMAKE_CUDA_ARCHITECTURES={wanted}", *COMMON_ARGS),
            environment=(("CUDACXX", machine.nvcc.path),),
            toolkit=f"nvcc {_dotted(machine.nvcc.version)}",
            library_dir=machine.nvcc.library_dir,
        )


def _cuda_advice(machine: Machine) -> str:
    if not machine.cards:
        if not machine.nvidia_on_bus:
            return ""
        fix = machine.command(NVIDIA_DRIVER_COMMANDS, "install NVIDIA's driver")
        return f"an NVIDIA card is there but its driver does not answer; to fix it: {fix}"
    if problem := nvcc_problem(machine):
        site = "install the CUDA toolkit from https://developer.nvidia.com/cuda-downloads"
        fix = machine.command(CUDA_COMMANDS, site) if machine.nvcc is None else site
        return f"{problem}, so nothing can be compiled for the NVIDIA card; to fix it: {fix}"
    if not machine.compiler:
        return f"there is no C++ compiler to go with nvcc; to fix it: {machine.compiler_command}"
    return ""


def _metal(machine: Machine) -> Iterator[Attempt]:
    if machine.system != "Darwin" or machine.arch != "arm64":
        return
    if machine.macos >= (11, 0):
        yield Attempt("metal", "Apple Silicon", index="metal")
    if machine.compiler:
        yield Attempt("metal", "Apple Silicon", cmake_args=("-DGGML_METAL=on", *COMMON_ARGS))


def _metal_advice(machine: Machine) -> str:
    if machine.apple_silicon and machine.arch != "arm64":
        return (
            "this Python is built for Intel and cannot use Apple's GPU; to fix it: "
            "brew install python && make setup PYTHON=/opt/homebrew/bin/python3"
        )
    if machine.apple_silicon and not machine.compiler:
        return f"there is no C++ compiler; to fix it: {machine.compiler_command}"
    return ""


def _rocm(machine: Machine) -> Iterator[Attempt]:
    if machine.rocm is None or not machine.amd_targets or machine.system != "Linux":
        return
    targets = ";".join(machine.amd_targets)
    reason = f"AMD {targets} with ROCm {_dotted(machine.rocm.version)}"
    if machine.rocm.version >= (7, 2) and machine.rocm.version < (8, 0) and _intel_64(machine):
        yield Attempt("rocm", reason, index="rocm72")
    if machine.rocm.path and machine.compiler:
        root = machine.rocm.path.removesuffix("/bin/hipcc")
        yield Attempt(
            "rocm",
            reason,
            cmake_args=("-DGGML_HIP=on", f"-DGPU_TARGETS={targets}", *COMMON_ARGS),
            environment=(("HIPCXX", f"{root}/lib/llvm/bin/clang"), ("HIP_PATH", root)),
            toolkit=f"ROCm {_dotted(machine.rocm.version)}",
        )


def _rocm_advice(machine: Machine) -> str:
    if not machine.amd_targets or (machine.rocm and machine.rocm.path and machine.compiler):
        return ""
    fix = machine.command(ROCM_COMMANDS, "install AMD's ROCm with its HIP compiler")
    return f"nothing can be compiled for the AMD card without hipcc; to fix it: {fix}"


def _vulkan(machine: Machine) -> Iterator[Attempt]:
    if not machine.vulkan_gpu:
        return
    if _intel_64(machine):
        yield Attempt("vulkan", machine.vulkan_gpu, index="vulkan")
    if machine.vulkan_sdk and machine.compiler:
        yield Attempt("vulkan", machine.vulkan_gpu, cmake_args=("-DGGML_VULKAN=on", *COMMON_ARGS))


def _vulkan_advice(machine: Machine) -> str:
    if not machine.vulkan_gpu or (machine.vulkan_sdk and machine.compiler):
        return ""
    fix = machine.command(VULKAN_COMMANDS, "install the Vulkan SDK and a C++ compiler")
    return f"nothing can be compiled for {machine.vulkan_gpu} by Vulkan; to fix it: {fix}"


def _cpu(machine: Machine) -> Iterator[Attempt]:
    if machine.compiler:
        yield Attempt("cpu", "compiled for exactly this processor", cmake_args=COMMON_ARGS)
    yield Attempt("cpu", "built for any processor of this kind, without RPC", index="cpu")


def _cpu_advice(machine: Machine) -> str:
    if machine.compiler:
        return ""
    return f"there is no C++ compiler; to fix it: {machine.compiler_command}"


_ATTEMPTS = {"cuda": _cuda, "metal": _metal, "rocm": _rocm, "vulkan": _vulkan, "cpu": _cpu}
_ADVICE = {
    "cuda": _cuda_advice,
    "metal": _metal_advice,
    "rocm": _rocm_advice,
    "vulkan": _vulkan_advice,
    "cpu": _cpu_advice,
}

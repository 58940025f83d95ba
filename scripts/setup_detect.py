"""What this machine has for running models: graphics cards, drivers and compilers.

Everything is asked of the vendors' own tools; a tool that is missing, fails or hangs counts as
an empty answer.
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from setup_backend import Card, Machine, Toolkit, Version

NVIDIA_PCI_VENDOR = "0x10de"
CUDA_FOLDERS = ("/usr/local/cuda", "/opt/cuda")
PACKAGERS = {"apt-get": "apt", "dnf": "dnf", "pacman": "pacman", "zypper": "zypper"}


def detect() -> Machine:
    """Return what this machine has; takes a second or two where there are cards."""
    system = platform.system()
    cards, driver_cuda = _nvidia()
    vulkan_gpu = _vulkan_gpu() if system in ("Linux", "Windows") else ""
    return Machine(
        system=system,
        arch=platform.machine(),
        packager=_packager(system),
        compiler=_first_tool(["c++", "g++", "clang++", "cl"]),
        macos=parse_version(platform.mac_ver()[0]) or (0, 0),
        apple_silicon=system == "Darwin" and _ask("sysctl", "-n", "hw.optional.arm64") == "1",
        nvidia_on_bus=_on_bus(NVIDIA_PCI_VENDOR),
        cards=cards,
        driver_cuda=driver_cuda,
        nvcc=_nvcc(),
        rocm=_rocm(),
        amd_targets=parse_rocminfo(_ask(_first_tool(["rocminfo"], ["/opt/rocm"]))),
        vulkan_gpu=vulkan_gpu,
        vulkan_sdk=bool(vulkan_gpu) and _vulkan_sdk(),
    )


def cpu_identity() -> str:
    """Return what a compile for exactly this processor depends on, as one text."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    telling = ("flags", "Features", "model name", "CPU part")
    facts = {line for line in lines if line.startswith(telling)}
    return "\n".join(sorted(facts)) or _ask("sysctl", "-n", "machdep.cpu.brand_string")


def parse_version(text: str) -> Version | None:
    """Return the first ``major.minor`` in ``text``."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def parse_driver_cuda(nvidia_smi: str) -> Version | None:
    """Return the newest CUDA that the driver runs, from the header that nvidia-smi prints."""
    found = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+\.\d+)", nvidia_smi)
    return parse_version(found[1]) if found else None


def parse_cards(listing: str) -> tuple[Card, ...]:
    """Return the cards of ``nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader``."""
    lines = [line for line in listing.splitlines() if ", " in line]
    parts = [line.rpartition(", ") for line in lines]
    return tuple(Card(name.strip(), parse_version(capability)) for name, _, capability in parts)


def parse_card_names(listing: str) -> tuple[Card, ...]:
    """Return the cards of ``nvidia-smi -L``: all that a driver without compute_cap tells."""
    return tuple(Card(name, None) for name in re.findall(r"(?m)^GPU \d+: (.+?) \(UUID", listing))


def parse_nvcc(text: str) -> Version | None:
    """Return the release from ``nvcc --version``."""
    found = re.search(r"release (\d+\.\d+)", text)
    return parse_version(found[1]) if found else None


def parse_rocminfo(text: str) -> tuple[str, ...]:
    """Return the distinct targets (gfx1100) among the agents that rocminfo lists."""
    return tuple(sorted(set(re.findall(r"(?m)^\s*Name:\s+(gfx[1-9a-f][0-9a-f]+)\s*$", text))))


def parse_vulkaninfo(summary: str) -> str:
    """Return the name of the first real GPU in ``vulkaninfo --summary``; none is empty."""
    for device in re.split(r"(?m)^GPU\d+:", summary)[1:]:
        kind = re.search(r"deviceType\s*=\s*PHYSICAL_DEVICE_TYPE_(\w+)", device)
        name = re.search(r"deviceName\s*=\s*(.+)", device)
        if kind and name and kind[1] in ("DISCRETE_GPU", "INTEGRATED_GPU"):
            return name[1].strip()
    return ""


def _ask(tool: str, *arguments: str) -> str:
    """Return what a command prints, or nothing where it is missing, fails or hangs."""
    if not tool:
        return ""
    try:
        done = subprocess.run(
            [tool, *arguments], capture_output=True, text=True, errors="replace", timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _first_tool(names: Iterable[str], roots: Iterable[str] = ()) -> str:
    """Return the first of ``names`` under ``root/bin`` of any root, or else on the PATH."""
    folders = os.pathsep.join(f"{root}/bin" for root in roots if root)
    for name in names:
        if found := (folders and shutil.which(name, path=folders)) or shutil.which(name):
            return found
    return ""


def _packager(system: str) -> str:
    if system == "Darwin":
        return "xcode"
    return next((name for tool, name in PACKAGERS.items() if shutil.which(tool)), "")


def _on_bus(vendor: str) -> bool:
    """Tell whether a display device (PCI class 03) of this vendor is plugged in (Linux only)."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            kind = (device / "class").read_text()
            if kind.startswith("0x03") and (device / "vendor").read_text().strip() == vendor:
                return True
        except OSError:
            continue
    return False


def _nvidia() -> tuple[tuple[Card, ...], Version | None]:
    smi = _first_tool(["nvidia-smi"]) or "/usr/lib/wsl/lib/nvidia-smi"
    header = _ask(smi)
    if not header:
        return (), None
    cards = parse_cards(_ask(smi, "--query-gpu=name,compute_cap", "--format=csv,noheader"))
    return cards or parse_card_names(_ask(smi, "-L")), parse_driver_cuda(header)


def _nvcc() -> Toolkit | None:
    named = [os.environ.get(name, "") for name in ("CUDA_PATH", "CUDA_HOME")]
    path = _first_tool(["nvcc"], named) or _first_tool(["nvcc"], CUDA_FOLDERS)
    version = parse_nvcc(_ask(path, "--version"))
    if version is None:
        return None
    # nvcc on the PATH can be a wrapper script outside its toolkit.
    roots = (Path(path).resolve().parent.parent, *map(Path, CUDA_FOLDERS))
    libraries = (root / "lib64" for root in roots)
    return Toolkit(path, version, next((str(p) for p in libraries if _holds_cudart(p)), ""))


def _holds_cudart(folder: Path) -> bool:
    return any(folder.glob("libcudart.so*"))


def _rocm() -> Toolkit | None:
    root = Path(os.environ.get("ROCM_PATH", "/opt/rocm"))
    hipcc = _first_tool(["hipcc"], [str(root)])
    release = root / ".info" / "version"
    text = release.read_text() if release.is_file() else _ask(hipcc, "--version")
    version = parse_version(text)
    return Toolkit(hipcc, version) if version else None


def _vulkan_gpu() -> str:
    if found := parse_vulkaninfo(_ask("vulkaninfo", "--summary")):
        return found
    # Without vulkaninfo a loader and a render node say as much, except for the card's name.
    loader = ctypes.util.find_library("vulkan")
    nodes = list(Path("/dev/dri").glob("renderD*"))
    return "a GPU" if loader and nodes and not shutil.which("vulkaninfo") else ""


def _vulkan_sdk() -> bool:
    roots = [
        Path(root) for root in (os.environ.get("VULKAN_SDK", ""), "/usr", "/usr/local") if root
    ]
    headers = any((root / "include" / "vulkan" / "vulkan.h").is_file() for root in roots)
    spirv = any(match for root in roots for match in root.glob("*/cmake/SPIRV-Headers*/*.cmake"))
    return headers and spirv and bool(shutil.which("glslc"))

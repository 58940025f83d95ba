"""scripts/setup.py: which build of llama.cpp a machine gets, and that asking again is free."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from setup import python_problem
from setup_backend import Attempt, Card, Machine, Toolkit, choose, cuda_runtime
from setup_detect import (
    parse_card_names,
    parse_cards,
    parse_driver_cuda,
    parse_nvcc,
    parse_rocminfo,
    parse_vulkaninfo,
)
from setup_install import (
    Build,
    IndexUnreachable,
    SetupError,
    Stamp,
    Venv,
    _index_answers,
    link_libraries,
    pinned_version,
    wheel_key,
)
from setup_watch import CommandFailed, NoAnswer, parse_step, watch

REPOSITORY = Path(__file__).resolve().parent.parent
SETUP = REPOSITORY / "scripts" / "setup.py"

ADA = Card("NVIDIA GeForce RTX 4090", (8, 9))
BLACKWELL = Card("NVIDIA GeForce RTX 5090", (12, 0))
PASCAL = Card("NVIDIA GeForce GTX 1080", (6, 1))
MAXWELL = Card("NVIDIA GeForce GTX 980", (5, 2))
NVCC_12 = Toolkit("/usr/local/cuda/bin/nvcc", (12, 4), "/usr/local/cuda/lib64")

PC = Machine(packager="apt", compiler="/usr/bin/c++")
MAC = Machine("Darwin", "arm64", "xcode", "/usr/bin/c++", macos=(14, 5), apple_silicon=True)
NVIDIA = replace(PC, nvidia_on_bus=True, cards=(ADA,), driver_cuda=(12, 4), nvcc=NVCC_12)
AMD = replace(PC, rocm=Toolkit("/opt/rocm/bin/hipcc", (7, 2)), amd_targets=("gfx1100",))
VULKAN = replace(PC, vulkan_gpu="Intel Arc A770", vulkan_sdk=True)


def ways(machine: Machine, override: str = "auto") -> list[str]:
    return [attempt.index or attempt.backend for attempt in choose(machine, override).attempts]


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        pytest.param(NVIDIA, ["cu124", "cu118", "cuda", "cpu", "cpu"], id="nvidia"),
        pytest.param(
            replace(NVIDIA, driver_cuda=(13, 1)),
            ["cu130", "cu125", "cu118", "cuda", "cpu", "cpu"],
            id="nvidia with a newer driver than any nvcc",
        ),
        pytest.param(
            replace(NVIDIA, driver_cuda=(11, 4), nvcc=None), ["cpu", "cpu"], id="driver too old"
        ),
        pytest.param(
            replace(NVIDIA, driver_cuda=(11, 8)), ["cu118", "cpu", "cpu"], id="nvcc too new"
        ),
        pytest.param(
            replace(NVIDIA, nvcc=None), ["cu124", "cu118", "cpu", "cpu"], id="nvidia, no nvcc"
        ),
        pytest.param(
            replace(NVIDIA, compiler=""), ["cu124", "cu118", "cpu"], id="nvidia, no C++ compiler"
        ),
        pytest.param(
            replace(NVIDIA, cards=(BLACKWELL,), driver_cuda=(13, 2)),
            ["cu132", "cu125", "cpu", "cpu"],
            id="card newer than nvcc",
        ),
        pytest.param(
            replace(NVIDIA, cards=(PASCAL,), driver_cuda=(13, 0)),
            ["cu125", "cu118", "cuda", "cpu", "cpu"],
            id="card too old for CUDA 13",
        ),
        pytest.param(
            replace(NVIDIA, cards=(ADA, MAXWELL)), ["cuda", "cpu", "cpu"], id="oldest card decides"
        ),
        pytest.param(
            replace(NVIDIA, cards=(Card("Tesla", None),)),
            ["cu124", "cu118", "cuda", "cpu", "cpu"],
            id="capability unknown",
        ),
        pytest.param(replace(NVIDIA, arch="aarch64"), ["cuda", "cpu", "cpu"], id="nvidia on Arm"),
        pytest.param(
            replace(NVIDIA, system="Windows", arch="AMD64", driver_cuda=(12, 3), nvcc=None),
            ["cu118", "cpu", "cpu"],
            id="Windows has fewer wheels",
        ),
        pytest.param(MAC, ["metal", "metal", "cpu", "cpu"], id="Apple Silicon"),
        pytest.param(replace(MAC, compiler=""), ["metal", "cpu"], id="Apple Silicon, no Xcode"),
        pytest.param(replace(MAC, arch="x86_64"), ["cpu", "cpu"], id="Intel Python on Apple"),
        pytest.param(AMD, ["rocm72", "rocm", "cpu", "cpu"], id="AMD"),
        pytest.param(
            replace(AMD, rocm=Toolkit("/usr/bin/hipcc", (6, 3))),
            ["rocm", "cpu", "cpu"],
            id="ROCm 6",
        ),
        pytest.param(
            replace(AMD, rocm=None, vulkan_gpu="Radeon"),
            ["vulkan", "cpu", "cpu"],
            id="AMD, no ROCm",
        ),
        pytest.param(VULKAN, ["vulkan", "vulkan", "cpu", "cpu"], id="Vulkan"),
        pytest.param(replace(VULKAN, vulkan_sdk=False), ["vulkan", "cpu", "cpu"], id="no glslc"),
        pytest.param(PC, ["cpu", "cpu"], id="no GPU"),
        pytest.param(Machine(packager="apt"), ["cpu"], id="no GPU, no compiler"),
    ],
)
def test_choose(machine: Machine, expected: list[str]) -> None:
    assert ways(machine) == expected


@pytest.mark.parametrize(
    ("machine", "backend", "expected"),
    [
        (NVIDIA, "cpu", ["cpu", "cpu"]),
        (NVIDIA, "cuda", ["cu124", "cu118", "cuda"]),
        (NVIDIA, "metal", []),
        (replace(NVIDIA, vulkan_gpu="RTX 4090"), "vulkan", ["vulkan"]),
        (PC, "cuda", []),
        (MAC, "metal", ["metal", "metal"]),
        (AMD, "rocm", ["rocm72", "rocm"]),
    ],
)
def test_an_override_never_ends_in_another_backend(
    machine: Machine, backend: str, expected: list[str]
) -> None:
    assert ways(machine, backend) == expected


def compiled(machine: Machine) -> Attempt:
    return next(attempt for attempt in choose(machine).attempts if not attempt.index)


@pytest.mark.parametrize(
    ("machine", "arguments"),
    [
        (NVIDIA, "-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=89"),
        (
            replace(NVIDIA, cards=(ADA, PASCAL, ADA)),
            "-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=61;89",
        ),
        (
            replace(NVIDIA, cards=(Card("Tesla", None),)),
            "-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=native",
        ),
        (MAC, "-DGGML_METAL=on"),
        (AMD, "-DGGML_HIP=on -DGPU_TARGETS=gfx1100"),
        (VULKAN, "-DGGML_VULKAN=on"),
        (PC, ""),
    ],
)
def test_what_is_compiled(machine: Machine, arguments: str) -> None:
    *backend, rpc, no_images = compiled(machine).cmake_args
    assert " ".join(backend) == arguments
    assert (rpc, no_images) == ("-DGGML_RPC=ON", "-DLLAVA_BUILD=OFF")


def test_a_compile_uses_the_toolkit_that_was_found() -> None:
    assert compiled(NVIDIA).environment == (("CUDACXX", "/usr/local/cuda/bin/nvcc"),)
    assert compiled(NVIDIA).library_dir == "/usr/local/cuda/lib64"
    assert dict(compiled(AMD).environment)["HIP_PATH"] == "/opt/rocm"


@pytest.mark.parametrize(
    ("machine", "problem", "command"),
    [
        (replace(NVIDIA, nvcc=None), "no CUDA compiler", "sudo apt install nvidia-cuda-toolkit"),
        (
            replace(NVIDIA, nvcc=None, packager="pacman"),
            "no CUDA compiler",
            "sudo pacman -S cuda",
        ),
        (replace(NVIDIA, driver_cuda=(11, 8)), "newer than the driver", "cuda-downloads"),
        (replace(NVIDIA, cards=(BLACKWELL,)), "does not know compute 12.0 yet", "cuda-downloads"),
        (
            replace(
                NVIDIA, nvcc=replace(NVCC_12, version=(13, 0)), driver_cuda=(13, 0), cards=(PASCAL,)
            ),
            "no longer knows compute 6.1",
            "cuda-downloads",
        ),
        (replace(NVIDIA, cards=()), "its driver does not answer", "sudo apt install nvidia-driver"),
        (replace(NVIDIA, compiler=""), "no C++ compiler", "sudo apt install g++"),
        (replace(MAC, compiler=""), "no C++ compiler", "xcode-select --install"),
        (replace(MAC, arch="x86_64"), "built for Intel", "brew install python"),
        (replace(AMD, rocm=None), "without hipcc", "sudo apt install rocm-hip-sdk"),
        (replace(VULKAN, vulkan_sdk=False), "by Vulkan", "glslc"),
    ],
)
def test_a_gpu_left_unused_is_explained_with_one_command(
    machine: Machine, problem: str, command: str
) -> None:
    [advice] = choose(machine).advice_beyond("cpu")
    assert problem in advice
    assert command in advice.partition("to fix it: ")[2]


def test_there_is_no_advice_where_nothing_is_missing() -> None:
    assert [choose(machine).advice_beyond("") for machine in (PC, NVIDIA, MAC, AMD, VULKAN)] == [
        [] for _ in range(5)
    ]
    assert choose(replace(NVIDIA, nvcc=None)).advice_beyond("cuda") == []
    assert "sudo dnf install gcc-c++" in choose(Machine(packager="dnf")).advice_beyond("")[0]


def test_cuda_libraries_are_those_of_the_wheel() -> None:
    assert cuda_runtime((12, 4)) == (
        "nvidia-cuda-runtime-cu12==12.4.*",
        "nvidia-cublas-cu12==12.4.*",
    )
    assert cuda_runtime((13, 0)) == ("nvidia-cuda-runtime==13.0.*", "nvidia-cublas==13.0.*")


NVIDIA_SMI = """\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.54.14              Driver Version: 550.54.14      CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+
"""
NEW_NVIDIA_SMI = "| NVIDIA-SMI 595.20   KMD Version: 595.20   CUDA UMD Version: 13.2   |"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NVIDIA_SMI, (12, 4)),
        (NEW_NVIDIA_SMI, (13, 2)),
        ("| NVIDIA-SMI 390.157   Driver Version: 390.157 |", None),
        ("| Driver Version: 550.54   CUDA Version: N/A |", None),
        ("", None),
    ],
)
def test_parse_driver_cuda(text: str, expected: tuple[int, int] | None) -> None:
    assert parse_driver_cuda(text) == expected


def test_parse_cards() -> None:
    assert parse_cards("NVIDIA GeForce RTX 4090, 8.9\nNVIDIA GeForce GTX 1080, 6.1\n") == (
        ADA,
        PASCAL,
    )
    assert parse_cards("NVIDIA Thing, rev B, [N/A]") == (Card("NVIDIA Thing, rev B", None),)
    assert parse_cards('Field "compute_cap" is not a valid field to query.') == ()
    assert parse_card_names("GPU 0: Tesla K80 (UUID: GPU-1)\nGPU 1: Tesla K80 (UUID: GPU-2)") == (
        Card("Tesla K80", None),
        Card("Tesla K80", None),
    )


def test_parse_nvcc() -> None:
    text = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.4, V12.4.131"
    assert parse_nvcc(text) == (12, 4)
    assert parse_nvcc("sh: nvcc: command not found") is None


def test_parse_rocminfo() -> None:
    text = """
  Name:                    AMD Ryzen 9 7950X
  Name:                    gfx1100
      Name:                    amdgcn-amd-amdhsa--gfx1100
  Name:                    gfx90a
  Name:                    gfx1100
  Name:                    gfx000
"""
    assert parse_rocminfo(text) == ("gfx1100", "gfx90a")


def test_parse_vulkaninfo_wants_a_real_gpu() -> None:
    software = """
GPU0:
\tdeviceType         = PHYSICAL_DEVICE_TYPE_CPU
\tdeviceName         = llvmpipe (LLVM 15.0.6, 256 bits)
"""
    real = """
GPU1:
\tdeviceType         = PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
\tdeviceName         = Intel(R) Arc(tm) A770 Graphics
"""
    assert parse_vulkaninfo(software) == ""
    assert parse_vulkaninfo(software + real) == "Intel(R) Arc(tm) A770 Graphics"


@pytest.mark.parametrize(
    ("line", "expected"),
    [("  [12/144] Building CXX object", "12/144"), ("[  8%] Building CXX", "8%"), ("[info]", "")],
)
def test_parse_step(line: str, expected: str) -> None:
    assert parse_step(line) == expected


def test_the_wheel_key_tells_apart_what_differs() -> None:
    base = compiled(PC)
    keys = {
        wheel_key("0.3.36", base, "", "flags: avx2"),
        wheel_key("0.3.37", base, "", "flags: avx2"),
        wheel_key("0.3.36", base, "-DGGML_BLAS=ON", "flags: avx2"),
        wheel_key("0.3.36", base, "", "flags: avx2 avx512f"),
        wheel_key("0.3.36", replace(base, toolkit="nvcc 12.4"), "", "flags: avx2"),
        wheel_key("0.3.36", replace(base, cmake_args=()), "", "flags: avx2"),
        wheel_key("0.3.36", replace(base, backend="cuda"), "", "flags: avx2"),
    }
    assert len(keys) == 7
    # What is only said about an attempt does not matter.
    assert wheel_key("0.3.36", replace(base, reason="other"), "", "flags: avx2") in keys


@pytest.mark.parametrize(
    ("line", "alive"),
    [
        ("  Fetched page https://index.invalid/ as text/html", True),
        (
            "Could not fetch URL https://index.invalid/: 404 Client Error: Not Found - skipping",
            True,
        ),
        ("Looking in links: https://index.invalid/", False),
    ],
)
def test_a_wheel_index_that_answers_is_told_from_silence(line: str, alive: bool) -> None:
    assert _index_answers(line) is alive


@pytest.mark.parametrize(
    "reason",
    [
        "connection error: Failed to resolve IP address",
        "index.invalid didn't respond within 5.0 seconds",
        "503 Server Error: Service Unavailable",
    ],
)
def test_a_wheel_index_that_cannot_be_reached_is_given_up_at_once(reason: str) -> None:
    with pytest.raises(IndexUnreachable):
        _index_answers(f"Could not fetch URL https://index.invalid/: {reason} - skipping")


def test_a_silent_command_is_stopped(tmp_path: Path) -> None:
    script = "import time; print('Looking', flush=True); time.sleep(60)"
    with pytest.raises(NoAnswer):
        watch(
            [sys.executable, "-c", script],
            label="test",
            log=tmp_path / "log",
            patience_seconds=0.1,
            is_alive=_index_answers,
        )


def test_a_failed_command_shows_its_last_lines_and_keeps_them_all(tmp_path: Path) -> None:
    script = "print(*range(100), sep='\\n'); raise SystemExit(3)"
    with pytest.raises(CommandFailed) as failure:
        watch([sys.executable, "-c", script], label="test", log=tmp_path / "log")
    assert "\n99\n" in str(failure.value)
    assert "\n50\n" not in str(failure.value)
    assert len((tmp_path / "log").read_text().splitlines()) == 100


def test_missing_cuda_libraries_are_linked_beside_llama_cpp(tmp_path: Path) -> None:
    package, target = tmp_path / "nvidia" / "lib", tmp_path / "llama_cpp" / "lib"
    package.mkdir(parents=True)
    target.mkdir(parents=True)
    for name in ("libcudart.so.12", "libcublas.so.12", "libcublasLt.so.12", "libnvblas.so.12"):
        (package / name).touch()
    link_libraries([package, tmp_path / "missing"], target)
    link_libraries([package], target)
    names = sorted(link.name for link in target.iterdir())
    assert names == ["libcublas.so.12", "libcublasLt.so.12", "libcudart.so.12"]
    assert (target / "libcudart.so.12").resolve() == (package / "libcudart.so.12").resolve()


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Venv:
    root = tmp_path_factory.mktemp("venv") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    return Venv(REPOSITORY, root)


def a_stamp(venv: Venv) -> Stamp:
    return Stamp(venv.place(), Build("0.3.36", "cpu, compiled", "auto", ["buy a GPU"]), "key", True)


def test_a_stamp_is_read_back(venv: Venv) -> None:
    venv.write_stamp(a_stamp(venv))
    assert venv.stamp() == a_stamp(venv)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"build": {}}', '{"build": 1, "place": 2}'])
def test_a_damaged_stamp_counts_as_none(venv: Venv, text: str) -> None:
    venv.stamp_file.write_text(text)
    assert venv.stamp() is None


def test_a_stamp_does_not_move_to_another_folder_or_python(venv: Venv, tmp_path: Path) -> None:
    stamp = a_stamp(venv)
    venv.write_stamp(stamp)
    assert Venv(tmp_path, venv.root).stamp() is None
    venv.write_stamp(replace(stamp, place=stamp.place.replace("(3, ", "(2, ")))
    assert venv.stamp() is None


def test_what_is_installed_stays_until_something_else_is_wanted(venv: Venv) -> None:
    build, stamp = a_stamp(venv).build, a_stamp(venv)
    assert build.will_do("0.3.36", "")
    assert not build.will_do("0.3.37", "")
    assert not build.will_do("0.3.36", "cuda")
    assert not build.will_do("0.3.36", "auto")
    assert replace(build, requested="cuda").will_do("0.3.36", "cuda")
    assert stamp.has_packages("key", dev=True)
    assert stamp.has_packages("key", dev=False)
    assert not replace(stamp, dev=False).has_packages("key", dev=True)
    assert not stamp.has_packages("other key", dev=False)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(SetupError, match="holds other files"):
        Venv(REPOSITORY, tmp_path).create()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_constraints_pin_llama_cpp() -> None:
    text = (REPOSITORY / "constraints.txt").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+", pinned_version(text, "llama-cpp-python"))
    assert "//" not in text
    with pytest.raises(SetupError, match="does not pin"):
        pinned_version("click==8.1", "llama-cpp-python")


@pytest.mark.parametrize(
    ("version", "newer", "has_ensurepip", "expected"),
    [
        ((3, 9), "/usr/bin/python3.12", True, "make setup PYTHON=/usr/bin/python3.12"),
        ((3, 9), None, True, "install Python 3.11 or newer"),
        ((3, 11), None, False, "sudo apt install python3.11-venv"),
    ],
)
def test_an_unfit_python_is_told_what_to_do(
    version: tuple[int, int], newer: str | None, has_ensurepip: bool, expected: str
) -> None:
    assert python_problem(version, newer, has_ensurepip).endswith(expected)


def test_a_fit_python_has_no_problem() -> None:
    assert python_problem((3, 11), None, True) == ""


def run_setup(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SETUP, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def test_a_dry_run_prints_the_plan_and_installs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    done = run_setup("--dry-run", "--backend", "cpu", "--venv", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"1\. cpu, ", done.stdout)
    assert not folder.exists()


def test_a_dry_run_for_what_is_not_there_says_so() -> None:
    backend = "rocm" if sys.platform == "darwin" else "metal"
    done = run_setup("--dry-run", "--backend", backend)
    assert done.returncode == 1
    assert f"nothing that --backend {backend} could use" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_backend_is_a_usage_error() -> None:
    assert run_setup("--backend", "abacus").returncode == 2

"""How the environment comes about: venv, a llama.cpp build, the package, and a stamp at the end.

Compiled wheels are kept in the user's cache, so a second clone takes seconds. Nothing is put in
place before it is complete, and the stamp is written last: an interrupted run is simply repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from setup_backend import Attempt, Plan, choose
from setup_detect import cpu_identity, detect
from setup_watch import CommandFailed, NoAnswer, SetupError, say, watch

INDEX = "https://abetlen.github.io/llama-cpp-python/whl/{}/llama-cpp-python/"
INDEX_PATIENCE_SECONDS = 8  # pip's start and one request, over however many addresses

# llama_supports_gpu_offload() says yes to every build with RPC, so this asks for a device.
CHECK = """
import ctypes, llama_cpp
from llama_cpp._ggml import libggml
by_type = libggml.ggml_backend_dev_by_type
by_type.restype, by_type.argtypes = ctypes.c_void_p, [ctypes.c_int]
GPU, IGPU = 1, 2
offload = llama_cpp.llama_supports_gpu_offload() and bool(by_type(GPU) or by_type(IGPU))
print("gpu" if offload else "cpu")
"""


class AttemptFailed(SetupError):
    """This way to a build does not work here; another one may."""


class IndexUnreachable(AttemptFailed):
    """The host with the prebuilt wheels does not answer; asking again is a waste of time."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted; an empty ``backend`` keeps what is installed."""

    repository: Path
    venv: Path
    backend: str = ""
    dev: bool = True
    rebuild: bool = False


@dataclass(frozen=True, slots=True)
class Build:
    """An installed llama.cpp, what was asked for, and what keeps better backends from working."""

    version: str
    title: str
    requested: str
    advice: list[str]

    def will_do(self, version: str, backend: str) -> bool:
        """Tell whether it is what is wanted; ``auto`` wants a fresh look at the machine."""
        return self.version == version and backend in ("", self.requested) and backend != "auto"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a finished set-up left in a venv; ``place`` ties it to its Python and folders."""

    place: str
    build: Build
    packages: str
    dev: bool

    def has_packages(self, packages: str, dev: bool) -> bool:
        """Tell whether the packages are those of the project's files."""
        return self.packages == packages and (self.dev or not dev)


def pinned_version(constraints: str, package: str) -> str:
    """Return the version that the constraints file pins a package to; raises SetupError."""
    found = re.search(rf"(?m)^{re.escape(package)}==(\S+)", constraints)
    if not found:
        raise SetupError(f"constraints.txt does not pin {package}")
    return found[1]


def packages_key(repository: Path) -> str:
    """Return a digest of the files that decide which packages are installed."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt", "localllama/__init__.py"):
        digest.update((repository / name).read_bytes())
    return digest.hexdigest()


def wheel_key(version: str, attempt: Attempt, user_args: str, cpu: str) -> str:
    """Return the folder name of a compiled wheel: everything its content depends on.

    The Python version is not part of it, since the wheel is tagged py3; the C library is.
    """
    facts = [
        version,
        attempt.backend,
        attempt.toolkit,
        *attempt.cmake_args,
        user_args,
        sysconfig.get_platform(),
        *platform.libc_ver(),
        cpu,
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return f"llama-cpp-python-{version}-{attempt.backend}-{digest[:16]}"


def wheel_cache() -> Path:
    """Return the folder of this user's compiled wheels."""
    if chosen := os.environ.get("LOCALLLAMA_CACHE"):
        return Path(chosen).expanduser() / "wheels"
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home()))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "localllama" / "wheels"


def print_plan(backend: str) -> None:
    """Print what set-up would try, in order, and why; raises SetupError."""
    plan = _plan(backend)
    for number, attempt in enumerate(plan.attempts, 1):
        print(f"{number}. {attempt.title}: {attempt.reason}")
        if attempt.cmake_args:
            print(f"   CMAKE_ARGS={' '.join(attempt.cmake_args)}")
    for text in plan.advice_beyond(""):
        print(f"Note: {text}")


def set_up(request: Request) -> None:
    """Bring the venv to what is wanted, doing only what is missing; raises SetupError."""
    venv = Venv(request.repository, request.venv)
    version = pinned_version(venv.constraints.read_text(), "llama-cpp-python")
    packages = packages_key(request.repository)
    stamp = venv.stamp()
    if stamp is None:
        venv.create()
    if stamp and not request.rebuild and stamp.build.will_do(version, request.backend):
        build = stamp.build
    else:
        backend = request.backend or (stamp.build.requested if stamp else "auto")
        build = _install_llama(venv, backend, version, request.rebuild)
    if stamp is None or build is not stamp.build or not stamp.has_packages(packages, request.dev):
        dev = request.dev or (stamp is not None and stamp.dev)
        venv.install_package(dev)
        venv.write_stamp(Stamp(venv.place(), build, packages, dev))
        say(f"Ready: localllama with llama.cpp for {build.title}, in {venv.root}")
    for text in build.advice:
        say(f"Note: a graphics card is not used: {text}; then: make setup BACKEND=auto")


class Venv:
    """A virtual environment that holds localllama from a checkout."""

    def __init__(self, repository: Path, root: Path) -> None:
        self.repository = repository
        self.root = root
        self.python = root / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.constraints = repository / "constraints.txt"
        self.log = root / "localllama-setup.log"
        self.stamp_file = root / "localllama-setup.json"

    def place(self) -> str:
        """Return what ties a stamp to its venv: its Python and both folders; '' if it is broken."""
        show = "import sys; print(sys.version_info[:2])"
        try:
            done = subprocess.run([self.python, "-c", show], capture_output=True, text=True)
        except OSError:
            return ""
        if done.returncode != 0:
            return ""
        return f"{done.stdout.strip()} {self.root} {self.repository}"

    def stamp(self) -> Stamp | None:
        """Return the stamp, unless the venv was moved, is broken or has another Python now."""
        try:
            data = json.loads(self.stamp_file.read_text())
            stamp = Stamp(**data | {"build": Build(**data["build"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return stamp if stamp.place == self.place() else None

    def write_stamp(self, stamp: Stamp) -> None:
        """Record a finished set-up."""
        fresh = self.stamp_file.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(stamp), indent=2))
        fresh.replace(self.stamp_file)

    def create(self) -> None:
        """Make the venv with a fresh pip; one that we made and that is broken or moved is redone.

        Raises SetupError where the folder holds anything but a virtual environment, and
        CommandFailed where pip cannot be brought up to date.
        """
        exists = (self.root / "pyvenv.cfg").is_file()
        if not exists and self.root.exists() and any(self.root.iterdir()):
            raise SetupError(f"{self.root} holds other files; name an empty folder with --venv")
        useless = exists and (self.stamp_file.exists() or not self.place())
        say(f"Making a virtual environment for Python {platform.python_version()} in {self.root}")
        command = [sys.executable, "-m", "venv", *(["--clear"] if useless else []), str(self.root)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SetupError((done.stderr or done.stdout).strip() or "python -m venv failed")
        self.pip("pip", "install", "--upgrade", "pip", "-c", str(self.constraints))

    def pip(self, label: str, *arguments: str) -> None:
        """Run pip with the user's own settings; raises CommandFailed with its last lines."""
        watch([self.python, "-m", "pip", *arguments], label=label, log=self.log)

    def install_package(self, dev: bool) -> None:
        """Install the checkout itself, editable, with its packages; raises CommandFailed."""
        target = str(self.repository) + ("[dev]" if dev else "")
        self.pip("packages", "install", "-e", target, "-c", str(self.constraints))

    def library_folder(self) -> Path:
        """Return where llama_cpp keeps its shared libraries; raises AttemptFailed."""
        found = next(iter(self.root.glob("lib/python*/site-packages/llama_cpp/lib")), None)
        if found is None:
            raise AttemptFailed("the build holds no shared libraries")
        return found


def _plan(backend: str) -> Plan:
    """Return what to try on this machine; raises SetupError where there is nothing."""
    plan = choose(detect(), backend)
    if plan.attempts:
        return plan
    problem = f"this machine has nothing that --backend {backend} could use"
    raise SetupError("; ".join([problem, *plan.advice_beyond("")]))


def _install_llama(venv: Venv, backend: str, version: str, rebuild: bool) -> Build:
    """Install the first build that works on this machine; raises SetupError where none does."""
    plan = _plan(backend)
    venv.stamp_file.unlink(missing_ok=True)  # from here on the venv is not what it says
    index_reachable = True
    for attempt in plan.attempts:
        say(f"llama.cpp {version} for {attempt.title} ({attempt.reason})")
        try:
            if attempt.index and not index_reachable:
                raise IndexUnreachable
            _install_attempt(venv, attempt, version, rebuild)
        except IndexUnreachable:
            index_reachable = False
            say("  no: the index of prebuilt wheels cannot be reached")
        except (AttemptFailed, CommandFailed) as problem:
            say(f"  no: {problem}")
        else:
            return Build(version, attempt.title, backend, plan.advice_beyond(attempt.backend))
    message = "none of these builds of llama.cpp could be installed"
    raise SetupError("; ".join([message, *plan.advice_beyond("")]))


def _install_attempt(venv: Venv, attempt: Attempt, version: str, rebuild: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="localllama-", ignore_cleanup_errors=True) as scratch:
        if attempt.index:
            wheel = _prebuilt(venv, attempt, version, Path(scratch))
        else:
            wheel = _compiled(venv, attempt, version, rebuild, Path(scratch))
        venv.pip("install", "uninstall", "--yes", "llama-cpp-python")
        venv.pip("install", "install", str(wheel), "-c", str(venv.constraints))
    _check(venv, attempt)


def _prebuilt(venv: Venv, attempt: Attempt, version: str, scratch: Path) -> Path:
    """Return the wheel from the attempt's index; raises IndexUnreachable or AttemptFailed."""
    # That page alone is asked, for this wheel alone: it can bring no other version or package.
    command = ["download", "-vv", "--no-index", "--no-deps", "--only-binary", ":all:"]
    command += ["--find-links", INDEX.format(attempt.index), "--dest", str(scratch)]
    command += ["--retries", "0", "--timeout", "5", f"llama-cpp-python=={version}"]
    try:
        watch(
            [venv.python, "-m", "pip", *command],
            label="download",
            log=venv.log,
            patience_seconds=INDEX_PATIENCE_SECONDS,
            is_alive=_index_answers,
        )
    except NoAnswer:
        raise IndexUnreachable from None
    except CommandFailed:
        raise AttemptFailed(f"it has no wheel of {version} for this machine") from None
    return _only_wheel(scratch)


def _index_answers(line: str) -> bool:
    """Tell whether pip -vv got an answer; raises IndexUnreachable where it got none."""
    if "Could not fetch URL" in line and not re.search(r"4\d\d Client Error", line):
        raise IndexUnreachable
    return bool(re.match(r"\s*(Fetched page|Could not fetch URL|Collecting)", line))


def _compiled(venv: Venv, attempt: Attempt, version: str, rebuild: bool, scratch: Path) -> Path:
    user_args = os.environ.get("CMAKE_ARGS", "")
    kept = wheel_cache() / wheel_key(version, attempt, user_args, cpu_identity())
    if not rebuild and (wheels := sorted(kept.glob("*.whl"))):
        say(f"  compiled before: {wheels[0]}")
        return wheels[0]
    say("  compiling; this takes minutes, once")
    environment = dict(attempt.environment)
    environment["CMAKE_ARGS"] = " ".join(filter(None, [*attempt.cmake_args, user_args]))
    environment["TMPDIR"] = str(scratch)  # what is left of an interrupted compile goes with it
    # pip's own cache does not know CMAKE_ARGS: it would hand out a build for another backend.
    command = ["wheel", "-v", "--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python"]
    command += ["--wheel-dir", str(scratch), f"llama-cpp-python=={version}"]
    watch(
        [venv.python, "-m", "pip", *command],
        label="compile",
        log=venv.log,
        environment=environment,
    )
    built = _only_wheel(scratch)
    kept.mkdir(parents=True, exist_ok=True)
    arriving = kept / f"{built.name}.{os.getpid()}"
    try:
        shutil.copyfile(built, arriving)
        return arriving.replace(kept / built.name)
    finally:
        arriving.unlink(missing_ok=True)


def _only_wheel(folder: Path) -> Path:
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise AttemptFailed("pip made no wheel")
    return wheels[0]


def _check(venv: Venv, attempt: Attempt) -> None:
    """Load the build in a child and look for a GPU; raises AttemptFailed."""
    done = _load(venv)
    if attempt.backend == "cuda" and re.search(r"lib(cudart|cublas)", done.stderr):
        _add_cuda_libraries(venv, attempt)
        done = _load(venv)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise AttemptFailed(f"it does not load: {last}")
    if attempt.backend != "cpu" and done.stdout.strip() != "gpu":
        raise AttemptFailed("it loads but sees no graphics card")


def _load(venv: Venv) -> subprocess.CompletedProcess[str]:
    return subprocess.run([venv.python, "-c", CHECK], capture_output=True, text=True)


def _add_cuda_libraries(venv: Venv, attempt: Attempt) -> None:
    """Put CUDA's shared libraries beside llama.cpp's, where its loader looks first."""
    if attempt.runtime:
        say("  adding the CUDA libraries that the wheel expects (a large download)")
        venv.pip("CUDA libraries", "install", *attempt.runtime)
    target = venv.library_folder()
    packages = target.parent.parent.glob("nvidia/**/lib")
    toolkit = [Path(attempt.library_dir)] if attempt.library_dir else []
    link_libraries([*packages, *toolkit], target)


def link_libraries(folders: list[Path], target: Path) -> None:
    """Link the CUDA runtime and cuBLAS of ``folders`` into ``target``."""
    for folder in folders:
        for pattern in ("libcudart.so.*", "libcublas.so.*", "libcublasLt.so.*"):
            for library in folder.glob(pattern):
                link = target / library.name
                if not link.exists():
                    link.symlink_to(library)

"""Make a virtual environment with localllama and the llama.cpp build that suits this machine.

    python3 scripts/setup.py               everything, with the tools that tests need
    python3 scripts/setup.py --dry-run     say what would be installed, and why
    python3 scripts/setup.py --backend cpu cuda, metal, rocm, vulkan, cpu; auto looks again

Running it again costs nothing. This file alone must run on older Pythons, to say so.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parent.parent
NEWER_PYTHONS = ("python3.14", "python3.13", "python3.12", "python3.11")


def python_problem(version: tuple[int, int], newer: str | None, has_ensurepip: bool) -> str:
    """Return why this Python cannot make the environment and what to do, or nothing."""
    name = f"{version[0]}.{version[1]}"
    if version < (3, 11):
        fix = f"make setup PYTHON={newer}" if newer else "install Python 3.11 or newer"
        return f"This is Python {name}; localllama needs 3.11 or newer. To fix it: {fix}"
    if not has_ensurepip:
        return (
            f"Python {name} cannot make virtual environments here. "
            f"To fix it: sudo apt install python{name}-venv"
        )
    return ""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line; argparse ends the program where they are wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--backend",
        default="",
        choices=("auto", "cuda", "metal", "rocm", "vulkan", "cpu"),
        help="build of llama.cpp; without it: keep what is installed, or auto the first time",
    )
    parser.add_argument("--venv", type=Path, default=REPOSITORY / ".venv", metavar="DIR")
    parser.add_argument("--no-dev", action="store_true", help="leave out the tools tests need")
    parser.add_argument("--rebuild", action="store_true", help="compile even if a wheel is kept")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, install nothing")
    return parser.parse_args(arguments)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Set up, or say what is wrong; returns the exit code."""
    options = parse_arguments(arguments)
    newer = next(filter(None, map(shutil.which, NEWER_PYTHONS)), None)
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    problem = python_problem(sys.version_info[:2], newer, has_ensurepip)
    if problem:
        print(problem, file=sys.stderr)
        return 1

    import setup_install
    from setup_watch import SetupError

    signal.signal(signal.SIGTERM, _interrupt)  # so that it cleans up as after Ctrl-C
    venv = options.venv.expanduser().absolute()
    try:
        if options.dry_run:
            setup_install.print_plan(options.backend or "auto")
        else:
            request = setup_install.Request(
                REPOSITORY, venv, options.backend, not options.no_dev, options.rebuild
            )
            setup_install.set_up(request)
    except SetupError as error:
        print(f"\nSet-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; nothing half-made is kept. Run it again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

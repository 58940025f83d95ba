"""Measures one-pass conversion beside convert_hf_to_gguf.py and llama-quantize, and compares bytes.

    make bench-convert ARGS="--shape 1.1B"

LOCALLLAMA_REF_CONVERT   the command of convert_hf_to_gguf.py ("python .../convert_hf_to_gguf.py")
LOCALLLAMA_REF_QUANTIZE  the path of llama-quantize

What is not set is left out, with a word. Times are wall times, memory is ru_maxrss.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFReader
from make_checkpoint import SHAPES, write_checkpoint

TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q4_K_M"),
    *("Q4_K_S", "Q4_0", "Q4_1", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "IQ4_XS", "IQ4_NL"),
)
MOST_OF_REFERENCE = 0.72
MOST_MEMORY = {"1.1B": 250_000_000, "7B": 300_000_000, "small": 250_000_000}
_SLACK = 1.03  # file system's own blocks


@dataclass(frozen=True, slots=True)
class Run:
    """What one process took."""

    seconds: float
    peak_bytes: int
    written_bytes: int


# A process begins with the peak of the one that starts it (execve keeps signal->maxrss), so a small
# one stands in between.
_SMALL = """
import json, os, subprocess, sys, time
began = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, used = os.wait4(process.pid, 0)
code = os.waitstatus_to_exitcode(status)
print(json.dumps([code, time.monotonic() - began, used.ru_maxrss * 1024, used.ru_oublock * 512]))
"""


def run(*command: str | Path) -> Run:
    """Run a command that must succeed, and measure it."""
    small = (sys.executable, "-S", "-c", _SMALL)
    done = subprocess.run([*small, *map(str, command)], capture_output=True, text=True, check=True)
    code, seconds, peak_bytes, written_bytes = json.loads(done.stdout)
    if code:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return Run(seconds, peak_bytes, written_bytes)


def convert(source: Path, out: Path, quant: str) -> Run:
    """Our way."""
    command = (sys.executable, "-m", "localllama", "convert", source, out)
    return run(*command, "--quant", quant, "--yes")


def differences(ours: Path, theirs: Path) -> list[str]:
    """Return the names of what differs: tensors, and keys but for names and provenance."""
    first, second = GGUFReader(ours), GGUFReader(theirs)
    names = [tensor.name for tensor in first.tensors]
    if names != [tensor.name for tensor in second.tensors]:
        return ["the list of tensors"]
    found = [
        a.name
        for a, b in zip(first.tensors, second.tensors, strict=True)
        if a.tensor_type != b.tensor_type or a.data.tobytes() != b.data.tobytes()
    ]
    return found + [
        key
        for key in sorted(first.fields.keys() | second.fields.keys())
        if not key.startswith(("GGUF.", "general.", "localllama."))
        and _value(first, key) != _value(second, key)
    ]


def _value(reader: GGUFReader, key: str) -> list[bytes] | None:
    field = reader.fields.get(key)
    return [part.tobytes() for part in field.parts] if field else None


def measure(shape: str, source: Path, folder: Path, quant: str) -> dict[str, object]:
    """Convert to one type by both ways; returns figures and what is wrong with them."""
    ours = convert(source, folder / "ours.gguf", quant)
    size = (folder / "ours.gguf").stat().st_size
    figures: dict[str, object] = {
        "shape": shape,
        "type": quant,
        "seconds": round(ours.seconds, 1),
        "peak_mb": ours.peak_bytes // 10**6,
        "written_per_output": round(ours.written_bytes / size, 3),
    }
    wrong = []
    if ours.peak_bytes > MOST_MEMORY[shape]:
        wrong.append("memory")
    if ours.written_bytes > size * _SLACK:
        wrong.append("bytes written")
    if reference := _reference(source, folder, quant):
        figures["reference_seconds"] = [round(step.seconds, 1) for step in reference]
        figures["reference_peak_mb"] = max(step.peak_bytes for step in reference) // 10**6
        if len(reference) == 2:
            ratio = ours.seconds / sum(step.seconds for step in reference)
            figures["ratio"] = round(ratio, 3)
            if shape != "small" and ratio > MOST_OF_REFERENCE:
                wrong.append("time")
        wrong += differences(folder / "ours.gguf", folder / "theirs.gguf")
    return figures | {"wrong": wrong}


def _reference(source: Path, folder: Path, quant: str) -> list[Run]:
    """The two steps, the first only where its result is not there yet."""
    convert_command = os.environ.get("LOCALLLAMA_REF_CONVERT")
    quantize_command = os.environ.get("LOCALLLAMA_REF_QUANTIZE")
    if not convert_command or not quantize_command:
        print("reference left out: set LOCALLLAMA_REF_CONVERT, LOCALLLAMA_REF_QUANTIZE")
        return []
    whole = folder / "whole.gguf"
    steps = []
    if not whole.exists():
        options = ("--outfile", str(whole), "--outtype", "bf16")
        steps.append(run(*shlex.split(convert_command), source, *options))
    return [*steps, run(quantize_command, whole, folder / "theirs.gguf", quant)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=SHAPES, default="1.1B")
    parser.add_argument("--checkpoint", type=Path, help="use this one, not a random one")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--all-types", action="store_true", help="compare every type's bytes")
    parser.add_argument("--folder", type=Path, help="where to work; default a temporary one")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="bench-convert-", dir=options.folder))
    failed = False
    try:
        source = options.checkpoint or write_checkpoint(folder / "source", SHAPES[options.shape])
        for quant in TYPES if options.all_types else (options.type,):
            figures = measure(options.shape, source, folder, quant)
            print(json.dumps(figures), flush=True)
            failed |= bool(figures["wrong"])
    finally:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

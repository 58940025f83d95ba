"""llama.cpp's own quantization from the installed library: what ours is compared with."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path

from gguf import GGUFReader
from llama_cpp import llama_cpp as c

from localllama.convert import types

# "[   1/ 291]  output.weight - [ 4096, 32000, 1, 1], type = f16, size = ... MiB (q6_K)"
_LINE = re.compile(r"\] +(\S+) +- \[.*\], type = +(\w+), size = [^(\n]*(?:\((\w+)\))?")


def quantize(
    source: Path,
    out: Path,
    quant: str,
    *,
    importance: dict[str, Sequence[float]] | None = None,
    dry_run: bool = False,
    requantize: bool = True,
) -> str:
    """Run llama_model_quantize and return its log."""
    params = c.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = types.parse(quant).number
    params.dry_run = dry_run
    params.allow_requantize = requantize
    entries = _entries(importance or {})
    if importance:
        params.imatrix = entries
    lines: list[str] = []
    callback = c.llama_log_callback(
        lambda level, text, _: lines.append(text.decode(errors="replace"))
    )
    c.llama_log_set(callback, ctypes.c_void_p())
    status = c.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    c.llama_log_set(c.llama_log_callback(lambda level, text, _: None), ctypes.c_void_p())
    log = "".join(lines)
    assert status == 0, log[-2000:]
    return log


def chosen_types(
    source: Path, quant: str, importance: dict[str, Sequence[float]] | None = None
) -> dict[str, str]:
    """Return the type llama.cpp would give each tensor of a file; reads its header only."""
    log = quantize(source, Path("unused"), quant, importance=importance, dry_run=True)
    found = {}
    for name, before, after in _LINE.findall(log):
        found[name] = (after or before).upper()
    return found


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Return type and bytes of every tensor, in the order of the file."""
    return {
        tensor.name: (tensor.tensor_type.name, tensor.data.tobytes())
        for tensor in GGUFReader(path).tensors
    }


def _entries(importance: dict[str, Sequence[float]]) -> ctypes.Array[c.llama_model_imatrix_data]:
    array = (c.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, numbers) in zip(array, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = (ctypes.c_float * len(numbers))(*numbers)
        entry.size = len(numbers)
    return array

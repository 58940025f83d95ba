"""What llama.cpp would allocate: a model and a context made with ``no_alloc``, read off its log.

Reads headers only, so a sparse file with nothing but a header will do, and takes 0.1-0.7 s in a
child process (most of it the vocabulary). ``really=True`` allocates and loads: then the lines for
weights and KV cache per device, 0.00 in a simulation, have their figures too.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from localllama.errors import EngineError, LocalLlamaError
from localllama.native import child

_MIB = 1 << 20
_TIMEOUT_SECONDS = 60.0
# "load_tensors:   CPU model buffer size =  92.10 MiB"; RPC devices are called RPC0[host:port].
_BUFFER = re.compile(r":\s+(\S+)\s+(model|KV|output|compute) buffer size = +([\d.]+) MiB")
_KV_TOTAL = re.compile(r"llama_kv_cache: size = +([\d.]+) MiB \( *(\d+) cells")
_FLASH_ATTENTION = re.compile(r"flash_attn += (\w+)|Flash Attention (enabled|disabled)")


@dataclass(frozen=True, slots=True)
class Options:
    """What of a load counts for its memory; as the worker gives it to llama.cpp."""

    context_length: int
    gpu_layers: int = -1
    kv_type: str = "f16"
    batch_tokens: int = 512
    sequences: int = 1
    outputs: int = 1  # rows of logits
    tensor_split: tuple[float, ...] = ()
    repack: bool = True
    flash_attention: bool | None = None
    rpc_servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes per buffer type (CPU, CPU_REPACK, CUDA0, CUDA_Host, RPC0[host:port]…).

    ``kv_total_bytes`` and ``cells`` are of the whole KV cache.
    """

    weights_bytes: dict[str, int] = field(default_factory=dict)
    kv_bytes: dict[str, int] = field(default_factory=dict)
    compute_bytes: dict[str, int] = field(default_factory=dict)
    output_bytes: dict[str, int] = field(default_factory=dict)
    kv_total_bytes: int = 0
    cells: int = 0
    flash_attention: bool = False


def measure(paths: Sequence[str | Path], options: Options, *, really: bool = False) -> Measured:
    """Return what loading ``paths`` (the parts of one model) with ``options`` takes.

    Raises EngineError where llama.cpp cannot do it, or dies of it.
    """
    question = {"paths": [str(path) for path in paths], "really": really, **asdict(options)}
    log = child.ask(__name__, question, timeout_seconds=_TIMEOUT_SECONDS)
    return parse("".join(log))


def parse(log: str) -> Measured:
    """Return the figures in llama.cpp's log."""
    figures: dict[str, dict[str, int]] = {"model": {}, "KV": {}, "output": {}, "compute": {}}
    for device, kind, mebibytes in _BUFFER.findall(log):
        known = figures[kind]
        known[device] = known.get(device, 0) + round(float(mebibytes) * _MIB)
    totals = _KV_TOTAL.findall(log)
    modes = [said or resolved for said, resolved in _FLASH_ATTENTION.findall(log)]
    return Measured(
        weights_bytes=figures["model"],
        kv_bytes=figures["KV"],
        compute_bytes=figures["compute"],
        output_bytes=figures["output"],
        kv_total_bytes=sum(round(float(mebibytes) * _MIB) for mebibytes, _ in totals),
        cells=max((int(cells) for _, cells in totals), default=0),
        flash_attention=bool(modes) and modes[-1] == "enabled",
    )


def main() -> None:
    """Answer the question on stdin with llama.cpp's log."""
    question = json.load(sys.stdin)
    paths, really = question.pop("paths"), question.pop("really")
    options = Options(**question)
    try:
        json.dump(_load(paths, options, really=really), sys.stdout)
    except LocalLlamaError as error:
        sys.exit(error.message)


def _load(paths: Sequence[str], options: Options, *, really: bool) -> list[str]:
    from llama_cpp import llama_cpp as c

    from localllama.native import ggml
    from localllama.native.llama import context_params

    log: list[str] = []
    keep = c.llama_log_callback(
        lambda _level, text, _data: log.append(text.decode("utf-8", "replace"))
    )
    c.llama_log_set(keep, ctypes.c_void_p())
    c.llama_backend_init()
    ggml.add_rpc_servers(options.rpc_servers)
    model = c.llama_model_default_params()
    model.no_alloc = not really
    model.load_mode = 0  # no memory map: its buffers would show the file, and no_alloc aborts
    model.n_gpu_layers = options.gpu_layers
    no_devices = (ctypes.c_void_p * 1)(None)
    if options.gpu_layers == 0:
        model.devices = ctypes.cast(no_devices, ctypes.c_void_p)
    model.use_extra_bufts = options.repack
    # Kept in names: ctypes does not keep alive what a structure points to.
    split = (ctypes.c_float * c.llama_max_devices())(*options.tensor_split)
    model.tensor_split = split
    parts = (ctypes.c_char_p * len(paths))(*(path.encode() for path in paths))
    loaded = c.llama_model_load_from_splits(parts, len(paths), model)
    if not loaded:
        raise EngineError("it cannot load the model: " + _reason(log))
    context = context_params(
        options.context_length,
        sequences=options.sequences,
        outputs=options.outputs,
        batch_tokens=options.batch_tokens,
        kv_type=options.kv_type,
        flash_attention=options.flash_attention,
    )
    if not c.llama_init_from_model(loaded, context):
        raise EngineError("it cannot make the context: " + _reason(log))
    return log


def _reason(log: Sequence[str]) -> str:
    lines = "".join(log).splitlines()
    return next((line for line in lines if "error" in line or "failed" in line), lines[-1])


if __name__ == "__main__":
    main()

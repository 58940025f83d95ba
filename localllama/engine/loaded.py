"""A loaded model: its context, and how its requests become tokens."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from time import perf_counter

import psutil

from localllama import hardware
from localllama.engine.api import DeviceBytes, Generate, LoadOptions, Ready
from localllama.engine.embedding import Embedder
from localllama.engine.prompter import Prompter
from localllama.errors import InvalidParameter
from localllama.native import ggml, measure
from localllama.native.llama import Library
from localllama.plan import HOST, require_possible


class LoadedModel:
    """Loads a model as LoadOptions say; ``ready`` tells what came of it.

    The context is one pool of ``cells``, whatever the number of slots: one conversation may use
    ``context_length`` of them, which may be all, and several share them.
    """

    def __init__(self, options: LoadOptions, on_progress: Callable[[float], object]) -> None:
        """Load; raises what native.llama raises, InvalidParameter, InvalidTemplate."""
        begun = perf_counter()
        buffers: list[str] = []

        def log(line: str) -> None:
            sys.stderr.write(line)
            if "buffer size" in line:
                buffers.append(line)

        library = Library(log)
        if options.gpu_layers:  # a server has one client at a time
            ggml.add_rpc_servers(hardware.rpc_servers_of(os.environ))
        model = library.load(
            options.paths,
            gpu_layers=options.gpu_layers,
            on_progress=on_progress,
            tensor_split=options.tensor_split,
            main_gpu=options.main_gpu,
            mmap=options.mmap,
            mlock=options.mlock,
            repack=options.repack,
        )
        require_possible(options.context_length, model.trained_context_length)
        self.vocab = model.vocab
        self.divisible = not model.recurrent
        self.windowed = model.windowed
        self.speculates = options.speculate and self.divisible
        self.sequences = options.sequences(divisible=self.divisible)
        self.prompter = Prompter(model.vocab, model.chat_template, options)
        threads = options.threads or _physical_cores()
        self.cells = options.cells or options.context_length
        self.context = model.context(
            self.cells,
            threads=threads,
            sequences=self.sequences,
            outputs=options.outputs(divisible=self.divisible),
            batch_tokens=options.batch_tokens,
            kv_type=options.kv_type,
            flash_attention=options.flash_attention,
        )
        self.context_length = options.context_length  # llama.cpp rounds its own up
        self.rotates_further = 0 < model.original_context_length < self.context.length
        self.replies = self.context.remembers
        trained = model.trained_context_length
        self.embedder = Embedder(
            model,
            longest=self.context_length if self.replies else min(self.context_length, trained),
            whole=not self.replies,
            threads=threads,
        )
        self.ready = Ready(
            context_length=self.context_length,
            trained_context_length=model.trained_context_length,
            template=self.prompter.origin,
            load_seconds=perf_counter() - begun,
            system_info=library.system_info,
            devices=_held("".join(buffers)),
        )

    def kept_tokens(self, request: Generate, tokens: Sequence[int]) -> int:
        """How many ``tokens`` of a request stay when the context shifts.

        Raises InvalidParameter where it cannot.
        """
        if not self.context.can_shift or not self.divisible:
            raise InvalidParameter(
                "the memory of this model cannot shift its context",
                "use the context policy drop-oldest or stop, or a longer context (--ctx)",
            )
        return self.prompter.kept_tokens(request, tokens)


def _held(log: str) -> tuple[DeviceBytes, ...]:
    """What llama.cpp's log says that each device holds; what is no GPU's is the host's."""
    found = measure.parse(log)
    gpus = {
        device.buffer: device.name for device in ggml.devices() if device.kind in ("gpu", "igpu")
    }

    def on(device: str, *figures: dict[str, int]) -> int:
        return sum(
            size
            for sizes in figures
            for buffer, size in sizes.items()
            if gpus.get(buffer, HOST) == device
        )

    return tuple(
        DeviceBytes(
            device=device,
            weights_bytes=on(device, found.weights_bytes),
            kv_bytes=on(device, found.kv_bytes),
            compute_bytes=on(device, found.compute_bytes, found.output_bytes),
        )
        for device in (*gpus.values(), HOST)
    )


def _physical_cores() -> int:
    """Hyper-threads share the units that matter here, and a container may own fewer cores."""
    usable = len(psutil.Process().cpu_affinity()) if hasattr(os, "sched_getaffinity") else 0
    return min(psutil.cpu_count(logical=False) or 1, usable or 1_000)

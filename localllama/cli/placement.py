"""The options of ``run``, ``bench`` and ``plan`` that say where a model goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from localllama import plan
from localllama.config import parse_size
from localllama.plan import KV_TYPES
from localllama.wants import Want

R = TypeVar("R")


class Bytes(click.ParamType[int]):
    """A size such as 6GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Context(click.ParamType[int]):
    """A number of tokens, or max."""

    name = "context"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "max" or isinstance(value, int):
            return plan.MOST if value == "max" else value
        if not value.isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of tokens nor max", param, ctx)
        return int(value)


_OPTIONS = (
    click.option("--ctx", type=_Context(), metavar="N|max", help="Context length in tokens."),
    click.option("--kv-type", type=click.Choice(KV_TYPES), help="Type of the KV cache."),
    click.option("--gpu-layers", type=click.IntRange(min=0), help="Layers on GPUs; default all."),
    click.option("--gpu-memory", type=Bytes(), multiple=True, help="At most this of each GPU."),
    click.option("--no-gpu", is_flag=True, help="Use the CPU only."),
    click.option("--require-gpu", is_flag=True, help="Refuse to use the CPU only."),
    click.option("--force", is_flag=True, help="Load it although it does not fit."),
)


def placement_options(command: Callable[..., R]) -> Callable[..., R]:
    """Add the options, which reach the command as a Want called ``want``."""

    @wraps(command)
    def collected(
        ctx: int | None,
        kv_type: str | None,
        gpu_layers: int | None,
        gpu_memory: tuple[int, ...],
        no_gpu: bool,
        require_gpu: bool,
        force: bool,
        **others: Any,
    ) -> R:
        if require_gpu and (no_gpu or gpu_layers == 0):
            other = "--no-gpu" if no_gpu else "--gpu-layers 0"
            raise click.UsageError(f"--require-gpu and {other} exclude each other")
        want = Want(
            context_length=ctx or 0,
            gpu_layers=-1 if gpu_layers is None else gpu_layers,
            gpu_memory_bytes=gpu_memory,
            kv_type=kv_type or "",
            no_gpu=no_gpu,
            require_gpu=require_gpu,
            force=force,
        )
        return command(want=want, **others)

    for option in reversed(_OPTIONS):
        option(collected)
    return collected


def idle_note(want: Want, idle_gpu: str, *, used: bool) -> str:
    """Return ``idle_gpu``, or that options for GPUs change nothing where none is ``used``."""
    asked = want.gpu_layers > 0 or want.gpu_memory_bytes
    if idle_gpu or used or not asked:
        return idle_gpu
    return "no GPU is used: --gpu-layers and --gpu-memory change nothing"

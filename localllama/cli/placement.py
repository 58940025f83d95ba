"""The options of ``run``, ``bench`` and ``plan`` that say where a model goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from localllama import plan
from localllama.config import parse_size
from localllama.plan import KV_TYPES
from localllama.runner import Want

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
    """Add the options, which reach the command as a runner.Want called ``want``."""

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

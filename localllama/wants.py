"""What front ends ask for beside a model, and what that, the model and config.toml plan for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from localllama import plan
from localllama.config import Config
from localllama.engine import sampling
from localllama.engine.api import LoadOptions
from localllama.errors import InvalidParameter
from localllama.gguf_file import ModelInfo
from localllama.store import Installed

# Replies at once share the KV cache: one more costs a row of logits. On a CPU sixteen together get
# hardly more tokens a second than four, and each comes later (docs/benchmarks.md).
_SLOTS = 4
_SERVED_SLOTS = 16  # where memory is left for them
MOST_SLOTS = 250  # llama.cpp has 256 sequences, of which some are kept for their tokens


@dataclass(frozen=True, slots=True)
class Want:
    """What a front end asks for beyond the model; defaults leave it to the program.

    Where fields have the same name as in plan.Want, they mean the same.
    """

    context_length: int = 0  # plan.MOST = the longest that fits
    exact_context: bool = False  # a worker that has more will not do
    gpu_layers: int = -1
    threads: int = 0
    template: str = ""  # Jinja source, or the name of a built-in one
    force: bool = False  # load although the plan says that it does not fit
    keep_alive_seconds: float | None = None  # after the last client; negative = for ever
    gpu_memory_bytes: tuple[int, ...] = ()
    kv_type: str = ""
    no_gpu: bool = False
    require_gpu: bool = False
    serves_many: bool = False  # as many replies at once as memory is left for


def parameter_layers(model: Installed, config: Config) -> list[tuple[str, dict[str, object]]]:
    """Return the sampling parameters below a chat's own, the most important layer first."""
    return [
        ("model", sampling.known(model.parameters)),
        ("config.toml", dict(config.parameters)),
        ("GGUF", sampling.known(model.info.get("sampling") or {})),
        ("catalog", sampling.known(model.catalog_parameters)),
    ]


def planned(want: Want, info: ModelInfo, config: Config) -> plan.Want:
    """Return what to plan for: a worker that the runner would start."""
    divisible = not plan.recurrent(info)
    slots = config.run.slots or _SLOTS
    if slots > MOST_SLOTS:
        raise InvalidParameter(
            f"{slots} replies at once are too many", f"llama.cpp can have {MOST_SLOTS}"
        )
    most = config.run.slots or _SERVED_SLOTS
    shape = LoadOptions(paths=(), context_length=0, slots=slots)
    return plan.Want(
        context_length=want.context_length,
        gpu_layers=want.gpu_layers,
        gpu_memory_bytes=want.gpu_memory_bytes,
        kv_type=want.kv_type or config.run.kv_type,
        sequences=shape.sequences(divisible=divisible),
        outputs=shape.outputs(divisible=divisible),
        slots=slots,
        most_slots=most if want.serves_many and divisible else 0,
        no_gpu=want.no_gpu,
        require_gpu=want.require_gpu,
        force=want.force,
        reserve_bytes=config.run.reserve_bytes,
    )


def context_asked(model: Installed, want: Want, config: Config) -> int:
    """Return the context length that somebody asked for, as in Want."""
    own = model.parameters.get("num_ctx")
    return (
        want.context_length
        or (own if isinstance(own, int) and own > 0 else 0)
        or config.run.context_length
    )


def kv_type_asked(model: Installed, want: Want, config: Config) -> str:
    """Return the type of the KV cache that somebody asked for, as in Want."""
    own = model.parameters.get("kv_type")
    return want.kv_type or (own if isinstance(own, str) else "") or config.run.kv_type


def planned_for(model: Installed, want: Want, info: ModelInfo, config: Config) -> plan.Want:
    """Return what to plan for, with what the model's own parameters ask for."""
    asked, kv_type = context_asked(model, want, config), kv_type_asked(model, want, config)
    return planned(replace(want, context_length=asked, kv_type=kv_type), info, config)

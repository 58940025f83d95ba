"""Requests' options as the engine takes them: sampling, loading, formats, durations. Pure."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from localllama.config import parse_duration
from localllama.engine import grammar, sampling
from localllama.errors import InvalidParameter
from localllama.server.http import require_shallow

_LARGEST_SEED = 2**32 - 1
_MOST_LOGPROBS = 20
_LOG = logging.getLogger("localllama.server")
# Options that say how to load. Those without a field of Want are known, and change nothing here.
_LOAD = ("num_ctx", "num_gpu", "num_thread")
_UNUSED = {
    **{"num_batch": int, "main_gpu": int, "draft_num_predict": int},
    **{"use_mmap": bool, "use_mlock": bool, "low_vram": bool, "numa": bool, "f16_kv": bool},
    **{"vocab_only": bool, "logits_all": bool, "embedding_only": bool, "penalize_newline": bool},
    **{"tfs_z": float},
}


def options(given: Mapping[str, Any] | None) -> tuple[dict[str, object], dict[str, int]]:
    """Split Ollama's options into those for sampling and those for loading.

    Unknown ones are left out with a line in the log. Raises InvalidParameter for a wrong type.
    """
    chosen: dict[str, object] = {}
    loading: dict[str, int] = {}
    for name, value in (given or {}).items():
        if value is None:
            continue
        if name in _LOAD:
            loading[name] = _load_option(name, value)
        elif name == "num_keep":
            keep_tokens(given)
        elif name in _UNUSED:
            _require_type(name, value, _UNUSED[name])
        elif sampling.known({name: value}):
            chosen[name] = _option(name, value)
        else:
            _LOG.warning("invalid option provided: %r", name[:80])
    return {name: value for name, value in chosen.items() if value is not None}, loading


def keep_tokens(given: Mapping[str, Any] | None) -> int:
    """Return how many tokens of the beginning stay when something must go; -1 = the prompt."""
    value = (given or {}).get("num_keep") or 0
    _require_type("num_keep", value, int)
    return max(-1, int(value))


def _load_option(name: str, value: object) -> int:
    _require_type(name, value, int)
    assert isinstance(value, int)
    least, most = (-1, 10_000) if name == "num_gpu" else (0, 2**31 - 1)
    if not least <= value <= most:
        raise InvalidParameter(f'option "{name}" must be from {least} to {most}')
    return value


def _option(name: str, value: object) -> object:
    """Return a sampling option as sampling.resolve wants it; None = not set."""
    kind = sampling.lookup(name).kind
    if kind is int or kind is float:
        _require_type(name, value, kind)
    if name == "seed" and isinstance(value, int):
        return seed(value)
    if name in ("num_predict", "max_tokens") and isinstance(value, int):
        return max(-1, value)  # -2 is Ollama's "until the context is full"
    return stops(value) if name == "stop" else value


def seed(value: int) -> int:
    """Return a seed of 64 bits, as clients choose it, as one that llama.cpp takes."""
    return -1 if value < 0 else value % _LARGEST_SEED


def stops(value: object) -> object:
    """Return stop texts without empty ones, which some clients send; None for none."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, list):
        return [text for text in value if text != ""] or None
    return value


def _require_type(name: str, value: object, kind: type) -> None:
    accepted = (int, float) if kind is float else (kind,)
    is_whole = kind is int and isinstance(value, float) and value.is_integer()
    if not (isinstance(value, accepted) or is_whole) or (
        kind is not bool and isinstance(value, bool)
    ):
        words = {int: "integer", float: "float32", bool: "bool"}
        raise InvalidParameter(f'option "{name}" must be of type {words[kind]}')


def bound(form: str | dict[str, Any] | None) -> dict[str, str]:
    """Return the fields of Sampling that hold a reply to ``json`` or a JSON Schema.

    Raises InvalidParameter.
    """
    if form is None or form == "":
        return {}
    if form == "json":
        return {"grammar": grammar.JSON}
    if isinstance(form, str):
        raise InvalidParameter(f'invalid format: {form[:40]!r}; expected "json" or a JSON Schema')
    require_shallow(form, "the schema")
    return {"schema": msgspec.json.encode(form).decode()}


def duration(value: str | float) -> float:
    if not isinstance(value, str):
        return float(value)
    try:
        return parse_duration(value)
    except ValueError as error:
        raise InvalidParameter(f"keep_alive: {error}") from error


def logprobs(asked: bool | None, most: int | None) -> int:
    """Return Sampling.logprobs; raises InvalidParameter."""
    if not asked:
        return -1
    if not 0 <= (most or 0) <= _MOST_LOGPROBS:
        raise InvalidParameter(f"top_logprobs must be from 0 to {_MOST_LOGPROBS}")
    return most or 0

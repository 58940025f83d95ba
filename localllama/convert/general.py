"""The keys ``general.*`` that a checkpoint's files answer for: name, size, licence, sampling."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import msgspec

from localllama.convert.hyperparameters import CONFIG
from localllama.convert.model import Field, Tensor
from localllama.convert.source import Source, read_optional_json, read_text
from localllama.errors import BadFile

_CARD, _GENERATION = "README.md", "generation_config.json"
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (0, "K"))


class _Names(msgspec.Struct, frozen=True):
    name: str | None = msgspec.field(default=None, name="_name_or_path")


class _Sampling(msgspec.Struct, frozen=True):
    """What generation_config.json recommends; the fields are llama.cpp's keys."""

    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    temp: float | None = msgspec.field(default=None, name="temperature")
    penalty_repeat: float | None = msgspec.field(default=None, name="repetition_penalty")


def fields(source: Source, tensors: Iterable[Tensor]) -> dict[str, Field]:
    """Return the keys; a model card that is damaged has none to give."""
    found = {
        "general.architecture": Field("string", "llama"),
        "general.type": Field("string", "model"),
        "general.name": Field("string", _name(source)),
        "general.size_label": Field("string", size_label(tensors)),
    }
    return found | _sampling(source) | _card_fields(_card(source))


def size_label(tensors: Iterable[Tensor]) -> str:
    """Return the number of parameters as llama.cpp rounds it: 6.7B, 135M."""
    count = sum(prod(tensor.shape) for tensor in tensors)
    least, unit = next(item for item in _UNITS if count > item[0])
    scaled = count / (least or 1e3)
    return f"{scaled:.{max(2 - len(str(round(scaled)).lstrip('0')), 0)}f}{unit}"


def _name(source: Source) -> str:
    config = read_optional_json(source, CONFIG, _Names)
    name = config.name if config and config.name else ""
    is_name = name.count("/") == 1 and not name.startswith((".", "/"))  # and no path
    words = (name if is_name else source.name).rpartition("/")[2].replace("-", " ").split()
    return " ".join(word.title() if word.isalpha() and word.islower() else word for word in words)


def _sampling(source: Source) -> dict[str, Field]:
    try:
        found = read_optional_json(source, _GENERATION, _Sampling)
    except BadFile:  # many repositories have one that transformers does not read either
        return {}
    values = msgspec.structs.asdict(found) if found else {}
    return {
        f"general.sampling.{key}": Field("i32" if key == "top_k" else "f32", value)
        for key, value in values.items()
        if value is not None
    }


def _card(source: Source) -> dict[str, Any]:
    """Return what stands between the first two lines of dashes of the README."""
    import yaml

    if _CARD not in source.sizes:
        return {}
    try:
        lines = read_text(source, _CARD).decode().splitlines()
        end = lines.index("---", 1) if lines[:1] == ["---"] else 0
        text = "".join(f"{line}\n" for line in lines[1:end]).replace("\t", "  ")
        # To YAML, the language code of Norwegian means false.
        found = yaml.safe_load(text.replace("- no\n", '- "no"\n'))
    except (BadFile, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _card_fields(card: dict[str, Any]) -> dict[str, Field]:
    licence = ",".join(_texts(card.get("license")))
    texts = {
        "license": licence,
        "license.name": card.get("license_name"),
        "license.link": card.get("license_link"),
    }
    lists = {
        "tags": [*_texts(card.get("tags")), *_texts(card.get("pipeline_tag"))],
        "languages": [*_texts(card.get("languages")), *_texts(card.get("language"))],
    }
    strings = {k: Field("string", v) for k, v in texts.items() if v and isinstance(v, str)}
    arrays = {key: Field("[string]", values) for key, values in lists.items() if values}
    return {f"general.{key}": field for key, field in (strings | arrays).items()}


def _texts(value: object) -> list[str]:
    """Return a text, or the texts of a list."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]

"""Reads and checks models.toml files; knows their keys and how values are inherited.

A later file is merged into the earlier ones table by table. After that a tag takes what it does
not say from its family, and what both do not say from the tag it is ``like``. Every mistake is an
InvalidConfig that names file, table and key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from localllama.errors import InvalidConfig
from localllama.names import is_digest

# Quantization types as llama.cpp spells them, with the bits per weight of everything but the
# output matrix. From the sizes of Llama 2 7B, Llama 3 8B and Llama 3.1 70B files, which agree
# within 2 % (Q2_K: 12 %, llama.cpp changed the mixture in January 2024).
BITS_PER_WEIGHT = {
    "IQ1_S": 1.6,
    "IQ1_M": 1.83,
    "IQ2_XXS": 2.1,
    "IQ2_XS": 2.33,
    "IQ2_S": 2.46,
    "IQ2_M": 2.68,
    "Q2_K_S": 2.73,
    "Q2_K": 2.94,
    "IQ3_XXS": 3.06,
    "IQ3_XS": 3.27,
    "IQ3_S": 3.44,
    "Q3_K_S": 3.45,
    "IQ3_M": 3.58,
    "Q3_K_M": 3.84,
    "Q3_K_L": 4.18,
    "IQ4_XS": 4.26,
    "Q4_0": 4.5,
    "IQ4_NL": 4.5,
    "Q4_K_S": 4.54,
    "Q4_K_M": 4.8,
    "Q4_1": 5.0,
    "Q5_0": 5.5,
    "Q5_K_S": 5.5,
    "Q5_K_M": 5.65,
    "Q5_1": 6.0,
    "Q6_K": 6.56,
    "Q8_0": 8.5,
    "F16": 16.0,
    "BF16": 16.0,
    "F32": 32.0,
}
_TEMPLATES = ("llama2", "llama3", "chatml", "alpaca", "mistral", "plain")


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a value must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_gguf(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(".gguf") and ".." not in value


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(holds(item) for item in value)


def _is_quant(value: Any) -> bool:
    return isinstance(value, str) and value in BITS_PER_WEIGHT


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


_TEXT = _Rule("a text", _matches(r"(?s).+"))
_FLAG = _Rule("true or false", lambda v: isinstance(v, bool))
_WHOLE = _Rule("a whole number", lambda v: type(v) is int and v > 0)
_NUMBER = _Rule("a number", lambda v: type(v) in (int, float))
_TEXTS = _Rule("a list of texts", lambda v: _is_list(v, lambda item: isinstance(item, str)))
_REPO = _Rule("a repository like owner/repo", _matches(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+"))
_QUANT = _Rule("a quantization type like Q4_K_M", _is_quant)
_QUANTS = _Rule("a list of quantization types like Q4_K_M", lambda v: _is_list(v, _is_quant))

# A table's keys and what each value must be; "*" stands for any key.
_SHAPE_KEYS = ("layers", "embedding", "heads", "kv_heads", "feed_forward", "vocabulary")
_SAMPLING_KEYS = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n", "repeat_penalty"),
    *("presence_penalty", "frequency_penalty"),
)
_LICENCE = {
    "name": _TEXT,
    "link": _Rule("a web address", _matches(r"https?://.+")),
    "accept": _FLAG,
}
_FILE = {
    "name": _Rule("a .gguf file name", _is_gguf),
    "source": _TEXT,
    "size": _WHOLE,
    "sha256": _Rule("64 hex digits", lambda v: isinstance(v, str) and is_digest(v)),
}
_TAG: dict[str, Any] = {
    "aliases": _TEXTS,
    "like": _TEXT,
    "description": _TEXT,
    "parameters": _WHOLE,
    "shape": dict.fromkeys((*_SHAPE_KEYS, "head_size"), _WHOLE),
    "context_length": _WHOLE,
    "licence": _TEXT,
    "gated": _FLAG,
    "original": _REPO,
    "meta": _Rule("a model of Meta's download like llama-2-7b-chat", _matches(r"[a-z0-9.-]+")),
    "gguf": _REPO,
    "file": _Rule("a .gguf file name with {quant} in it", lambda v: _is_gguf(v) and "{quant}" in v),
    "files": {"*": _FILE},
    "quants": _QUANTS,
    "default_quant": _QUANT,
    "template": _Rule(f"one of {', '.join(_TEMPLATES)}", lambda v: v in _TEMPLATES),
    "fim": _FLAG,
    "sampling": dict.fromkeys(_SAMPLING_KEYS, _NUMBER) | {"stop": _TEXTS},
}
_FAMILY = {**_TAG, "default": _TEXT, "tags": {"*": _TAG}}
_FILE_LAYOUT = {"licences": {"*": _LICENCE}, "quants": {"*": _QUANTS}, "families": {"*": _FAMILY}}

_REQUIRED = ("parameters", "shape", "context_length", "licence")  # what `like` can give, too


@dataclass(frozen=True, slots=True)
class Tables:
    """The merged tables of all files; ``files`` keeps who said what, for messages."""

    files: Sequence[tuple[Path, Mapping[str, Any]]]
    merged: Mapping[str, Any]

    def families(self) -> Mapping[str, Any]:
        """Return the tables under ``families``."""
        families: Mapping[str, Any] = self.merged.get("families", {})
        return families

    def quants(self) -> Mapping[str, Sequence[str]]:
        """Return the quantization types that each owner of ready files always offers."""
        quants: Mapping[str, Sequence[str]] = self.merged.get("quants", {})
        return quants

    def licences(self) -> Mapping[str, Any]:
        """Return the tables under ``licences``, each with a name and a link."""
        licences: Mapping[str, Any] = self.merged.get("licences", {})
        for key, licence in licences.items():
            self._require(licence, ("name", "link"), ("licences", key))
        return licences

    def tag(self, family: str, tag: str) -> Mapping[str, Any]:
        """Return the complete table of a tag: its own keys, its family's, those it is like."""
        table = self._inherited(family, tag, ())
        at = ("families", family, "tags", tag)
        self._require(table, _REQUIRED, at)
        self._require(table["shape"], _SHAPE_KEYS, (*at, "shape"))
        return table

    def fail(self, at: tuple[str, ...], problem: str, hint: str = "") -> NoReturn:
        """Raise InvalidConfig for the table ``at`` in the last file that has most of it."""
        depths = range(len(at), -1, -1)
        file = next(f for n in depths for f, data in reversed(self.files) if _has(data, at[:n]))
        raise InvalidConfig(f"{file}: {_dotted(at)}: {problem}", hint)

    def _inherited(self, family: str, tag: str, seen: tuple[str, ...]) -> dict[str, Any]:
        shared = {k: v for k, v in self.families()[family].items() if k not in ("default", "tags")}
        own = _merge(shared, self.families()[family]["tags"][tag])
        if "like" not in own:
            return own
        at = ("families", family, "tags", tag)
        other_family, colon, other_tag = own["like"].rpartition(":")
        if not colon:
            other_family = family
        if other_tag not in self.families().get(other_family, {}).get("tags", {}):
            self.fail(at, f"like: there is no tag {own['like']!r}")
        if (other := f"{other_family}:{other_tag}") in seen:
            self.fail(at, f"like: {own['like']!r} leads back to itself")
        model = self._inherited(other_family, other_tag, (*seen, other))
        return _merge({key: model[key] for key in _REQUIRED if key in model}, own)

    def _require(self, table: Mapping[str, Any], keys: Sequence[str], at: tuple[str, ...]) -> None:
        if missing := [key for key in keys if key not in table]:
            self.fail(at, f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")


def read(files: Sequence[Path]) -> Tables:
    """Return the checked tables of ``files``, later ones merged into earlier ones.

    Raises InvalidConfig for a file that cannot be read, is not TOML or has a wrong key or value.
    """
    texts = [(file, _parsed(file)) for file in files]
    merged: dict[str, Any] = {}
    for file, data in texts:
        _check(data, _FILE_LAYOUT, file, ())
        merged = _merge(merged, data)
    return Tables(texts, merged)


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:  # of TOML, with its line, or of UTF-8
        raise InvalidConfig(f"{file}: {error}", "docs/catalog.md shows the format") from error


def _check(value: Any, layout: Any, file: Path, at: tuple[str, ...]) -> None:
    """Raise InvalidConfig unless ``value`` is what ``layout`` says."""
    where = f"{file}: {_dotted(at[:-1])}: " if len(at) > 1 else f"{file}: "
    if isinstance(layout, _Rule):
        if not layout.holds(value):
            raise InvalidConfig(f"{where}{at[-1]} must be {layout.words}", f"it is {value!r}")
        return
    if not isinstance(value, dict):
        raise InvalidConfig(f"{where}{at[-1]} must be a table", f"it is {value!r}")
    for key, item in value.items():
        if key not in layout and "*" not in layout:
            inside = f"{file}: {_dotted(at)}: " if at else f"{file}: "
            raise InvalidConfig(f"{inside}unknown key {key!r}", f"known: {', '.join(layout)}")
        if layout == {"*": _FILE} and not _is_quant(key):
            raise InvalidConfig(f"{file}: {_dotted(at)}: {key!r} is not {_QUANT.words}")
        _check(item, layout.get(key, layout.get("*")), file, (*at, key))


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the keys of ``over``; tables merge, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merge(result[key], value) if both else value
    return result


def _has(data: Mapping[str, Any], at: Sequence[str]) -> bool:
    for key in at:
        if not isinstance(data, Mapping) or key not in data:
            return False
        data = data[key]
    return True


def _dotted(at: Sequence[str]) -> str:
    return ".".join(key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"' for key in at)

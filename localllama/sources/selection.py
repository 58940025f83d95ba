"""Which model of a folder or repository is meant, judged by names and sizes alone. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import PurePosixPath

from localllama.errors import RemoteNotFound, UnsupportedFile, UsageProblem
from localllama.names import Ref, split_parts

Parts = tuple[str, ...]  # all files of one model, in order

# What people run when they do not say: the best quality for about 4.5 bits a weight first.
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_0", "Q8_0", "Q4_1", "Q5_K_S", "Q6_K", "F16", "BF16")
_TYPE = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:I?Q|TQ)\d(?:_(?:\d|K|XXS|XS|S|M|L|XL|NL))*|MXFP4|BF16|FP?(?:16|32))"
    r"(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
_ORIGINAL_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
# Weights that can be converted, the best kind first, and what belongs to them.
_CONVERTIBLE = ("model*.safetensors", "pytorch_model*.bin", "consolidated.*.pth")
_DESCRIBES = re.compile(
    r"[^/]+\.(json|model|jinja)|merges\.txt|additional_chat_templates/[^/]+\.jinja"
)
_CARDS = {"card": re.compile(r"README\.md"), "license": re.compile(r"(?i)licen[cs]e(\.(txt|md))?")}
_MOST_CHOICES = 12


def models_in(names: Iterable[str]) -> tuple[Parts, ...]:
    """Group the GGUF files among ``names`` by model: all parts that a split one should have.

    Projectors (mmproj) and importance matrices are no language models and are left out.
    """
    return tuple(dict.fromkeys(split_parts(name) for name in sorted(names) if _is_model(name)))


def require_parts(parts: Parts, present: Iterable[str], where: str) -> None:
    """Raise RemoteNotFound unless every part of one model is among ``present``."""
    missing = sorted(set(parts) - set(present))
    if missing:
        raise RemoteNotFound(
            f"{where} lacks {len(missing)} of the {len(parts)} parts of this model: {missing[0]}",
            "a split model needs all its parts; choose another file or ask the owner",
        )


def choose(ref: Ref, sizes: Mapping[str, int]) -> Parts:
    """Return the files that ``ref`` asks for, of a repository with ``sizes`` (name -> bytes).

    ``ref.files`` decides, else ``ref.quant``, else the usual preference. Raises UsageProblem
    (several fit), RemoteNotFound (none fits) or UnsupportedFile (the file is no GGUF).
    """
    if ref.files:
        chosen = [part for wanted in ref.files for part in _named(ref, wanted, sizes)]
        return tuple(dict.fromkeys(chosen))
    models = models_in(sizes)
    if not models:
        raise RemoteNotFound(f"{ref.repo} holds no model", _find_ready(ref.repo))
    fitting = _fitting(models, ref.quant)
    if len(fitting) != 1:
        problem = UsageProblem if fitting else RemoteNotFound
        count = f"{len(fitting)} models" if fitting else "no model"
        of_type = f" of type {ref.quant}" if ref.quant else ""
        hint = _choices(ref.repo, fitting or models, sizes)
        raise problem(f"{ref.repo} has {count}{of_type}", hint)
    require_parts(fitting[0], sizes, ref.repo)
    return fitting[0]


def checkpoint(names: Iterable[str]) -> dict[str, str]:
    """Return the files of a checkpoint among ``names`` with their roles, its weights last.

    Empty where there are no weights that can be converted.
    """
    present = sorted(names)
    for pattern in _CONVERTIBLE:
        weights = [name for name in present if fnmatch(name, pattern) and "/" not in name]
        if weights:
            described = {name: "checkpoint" for name in present if _DESCRIBES.fullmatch(name)}
            for role, card in _CARDS.items():
                described |= {name: role for name in present if card.fullmatch(name)}
            return described | dict.fromkeys(weights, "checkpoint")
    return {}


def is_weights(name: str) -> bool:
    """Whether a checkpoint's file is a large one."""
    return name.lower().endswith(_ORIGINAL_WEIGHTS)


def require_checkpoint(repo: str, names: Iterable[str]) -> dict[str, str]:
    """Return what ``checkpoint`` does; raises UnsupportedFile or RemoteNotFound for none."""
    names = tuple(names)
    if found := checkpoint(names):
        return found
    if any(map(is_weights, names)):
        raise UnsupportedFile(
            f"{repo} holds weights in a layout that cannot be converted", _find_ready(repo)
        )
    raise RemoteNotFound(f"{repo} holds no original weights", _find_ready(repo))


def _is_model(name: str) -> bool:
    base = PurePosixPath(name).name.lower()
    return base.endswith(".gguf") and "mmproj" not in base and "imatrix" not in base


def _named(ref: Ref, wanted: str, sizes: Mapping[str, int]) -> Parts:
    """Return all parts of the file called ``wanted``, whatever its case."""
    if not wanted.lower().endswith(".gguf"):
        raise UnsupportedFile(f"{wanted} is not a GGUF file", _find_ready(ref.repo))
    name = next((name for name in sizes if name.casefold() == wanted.casefold()), None)
    if name is None:
        hint = _choices(ref.repo, models_in(sizes), sizes)
        raise RemoteNotFound(f"{ref.repo} has no file {wanted}", hint)
    parts = split_parts(name)
    require_parts(parts, sizes, ref.repo)
    return parts


def _fitting(models: tuple[Parts, ...], quant: str) -> tuple[Parts, ...]:
    """Return the models of type ``quant``; without one, those of the best preferred type."""
    if quant:
        return _of_type(models, quant)
    if len(models) == 1:
        return models
    preferred = (_of_type(models, candidate) for candidate in _PREFERRED)
    return next((found for found in preferred if found), models)


def _of_type(models: tuple[Parts, ...], quant: str) -> tuple[Parts, ...]:
    # Q4_K must not find Q4_K_M, nor Q4_0 IQ4_0; before it, '_' separates as '-' and '.' do.
    mark = re.compile(rf"(?<![A-Za-z0-9]){re.escape(quant)}(?![A-Za-z0-9_])", re.IGNORECASE)
    return tuple(parts for parts in models if mark.search(parts[0]))


def _choices(repo: str, models: tuple[Parts, ...], sizes: Mapping[str, int]) -> str:
    """Return a sentence with what can be asked for instead, by type where that is enough."""
    if not models:
        return _find_ready(repo)
    listed = []
    for parts in models[:_MOST_CHOICES]:
        types = _TYPE.findall(parts[0])
        enough = bool(types) and len(_of_type(models, types[-1])) == 1
        total = sum(sizes.get(part, 0) for part in parts)
        listed.append(f"{types[-1] if enough else parts[0]} ({_readable(total)})")
    more = len(models) - _MOST_CHOICES
    rest = f" and {more} more" if more > 0 else ""
    return f"ask for hf.co/{repo}:CHOICE, one of {', '.join(listed)}{rest}"


def _find_ready(repo: str) -> str:
    words = repo.rpartition("/")[2].removesuffix("-hf").removesuffix("-GGUF")
    return f"find a ready GGUF with `localllama search {words}`"


def _readable(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

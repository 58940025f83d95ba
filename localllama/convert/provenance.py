"""Where a converted model came from and under which terms, as it stands in the GGUF itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localllama import __version__
from localllama.convert.model import Field, Model

_UNKNOWN_DIGEST = "0" * 64

# The notices that Meta's terms want in every copy, by general.license.
_NOTICES = {
    "llama2": "Llama 2 is licensed under the LLAMA 2 Community License, "
    "Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
    "llama3": "Meta Llama 3 is licensed under the Meta Llama 3 Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.",
    **{
        f"llama{version}": f"Llama {version} is licensed under the Llama {version} Community "
        "License, Copyright © Meta Platforms, Inc. All Rights Reserved."
        for version in ("3.1", "3.2", "3.3")
    },
}
# What the licences' own texts call themselves.
_TITLES = {
    "llama 2 community license": "llama2",
    "meta llama 3 community license": "llama3",
    **{f"llama {v} community license": f"llama{v}" for v in ("3.1", "3.2", "3.3")},
}


@dataclass(frozen=True, slots=True)
class Input:
    """A file that the result is made of; with ``sha256`` known it is not hashed again."""

    name: str
    path: Path
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a result is made of: ``repo`` and ``revision`` where it came from a repository.

    ``licence`` is the text of the licence that came along.
    """

    inputs: tuple[Input, ...] = ()
    repo: str = ""
    revision: str = ""
    licence: str = ""


def keys(model: Model, origin: Origin, recipe: str, digests: Mapping[str, str]) -> dict[str, Field]:
    """Return the keys that tell it; as long for digests that are still unknown."""
    names = [file.name for file in origin.inputs]
    found = {
        "localllama.version": Field("string", __version__),
        "localllama.recipe": Field("string", recipe),
        "localllama.source.repository": Field("string", origin.repo),
        "localllama.source.revision": Field("string", origin.revision),
        "localllama.source.files": Field("[string]", names),
        "localllama.source.sha256": Field(
            "[string]", [digests.get(name, _UNKNOWN_DIGEST) for name in names]
        ),
        "localllama.license.text": Field("string", origin.licence),
        "localllama.license.notice": Field("string", notice(model, origin.licence)),
    }
    return {key: field for key, field in found.items() if field.value}


def notice(model: Model, licence: str) -> str:
    """Return the notice that the model's terms ask for, '' for none."""
    declared = model.metadata.get("general.license")
    return notice_of(str(declared.value) if declared else "", licence)


def notice_of(name: str, licence: str) -> str:
    """Return the notice for a licence by its short name or its text, '' for none."""
    if known := _NOTICES.get(name.lower()):
        return known
    title = " ".join(licence[:500].lower().split())
    return next((_NOTICES[name] for text, name in _TITLES.items() if text in title), "")

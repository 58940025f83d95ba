"""The chat templates that come with a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from localllama.convert.model import Field
from localllama.convert.source import Source, bad, read_json, read_optional_json, read_text
from localllama.convert.tokenizer_files import TOKENIZER_CONFIG, NamedTemplate, TokenizerConfig

_JINJA, _JSON = "chat_template.jinja", "chat_template.json"
_MORE = re.compile(r"additional_chat_templates/([^/]+)\.jinja")


class _Json(msgspec.Struct, frozen=True):
    chat_template: str | list[NamedTemplate] | None = None


def fields(source: Source) -> dict[str, Field]:
    """Return the keys for the templates: the default one, and others by their names."""
    config = read_optional_json(source, TOKENIZER_CONFIG, TokenizerConfig)
    found = config.chat_template if config else None
    if found is None and _JINJA in source.sizes:
        found = _of_files(source)
    elif found is None and _JSON in source.sizes:
        found = read_json(source, _JSON, _Json).chat_template
    if isinstance(found, str):
        return {"tokenizer.chat_template": Field("string", found)}
    return _named(found or [])


def _of_files(source: Source) -> str | list[NamedTemplate]:
    default = _text(source, _JINJA)
    others = [
        NamedTemplate(match[1], _text(source, name))
        for name in sorted(source.sizes)
        if (match := _MORE.fullmatch(name))
    ]
    return [NamedTemplate("default", default), *others] if others else default


def _text(source: Source, name: str) -> str:
    try:
        return read_text(source, name).decode()
    except UnicodeDecodeError as error:
        raise bad(source, name, "is no UTF-8 text") from error


def _named(templates: Sequence[NamedTemplate]) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    names: list[str] = []
    for template in templates:
        name = re.sub(r"[^A-Za-z0-9]", "_", template.name)
        if name == "default":
            fields["tokenizer.chat_template"] = Field("string", template.template)
        elif name:
            fields[f"tokenizer.chat_template.{name}"] = Field("string", template.template)
            names.append(name)
    if names:
        fields["tokenizer.chat_templates"] = Field("[string]", names)
    return fields

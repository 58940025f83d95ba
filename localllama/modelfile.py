"""Ollama's Modelfile: its text as instructions. Pure; knows not what a model or parameter is.

Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field

from localllama.errors import UsageProblem

_ROLES = ("system", "user", "assistant")
_TEXTS = ("from", "adapter", "template", "system", "license", "requires")
_INSTRUCTIONS = (*_TEXTS, "parameter", "message")


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What a Modelfile says; a parameter that may stand several times has all its values."""

    base: str
    template: str = ""
    system: str = ""
    adapter: str = ""
    licences: tuple[str, ...] = ()
    parameters: dict[str, list[str]] = field(default_factory=dict)
    messages: tuple[dict[str, str], ...] = ()


def decode(data: bytes) -> str:
    """Return the text of a file: UTF-8, or UTF-16 as Windows' editors write it."""
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageProblem("the Modelfile is no text", "write it in UTF-8") from error


def parse(text: str) -> Modelfile:
    """Return what ``text`` says; raises UsageProblem naming the line.

    >>> parse('from llama2:7b\\nPARAMETER stop "###"\\n# a comment').parameters
    {'stop': ['###']}
    """
    texts: dict[str, str] = {}
    licences: list[str] = []
    parameters: dict[str, list[str]] = {}
    messages: list[dict[str, str]] = []
    for line, instruction, rest in _instructions(text):
        if instruction in ("parameter", "message"):
            name, _, rest = rest.partition(" ")
            name, value = name.strip().lower(), _unquoted(rest.strip(), line) if rest else ""
            if not name or not rest.strip():
                raise _wrong(line, f"{instruction.upper()} needs a name and a value")
            if instruction == "parameter":
                parameters.setdefault(name, []).append(value)
            elif name in _ROLES:
                messages.append({"role": name, "content": value})
            else:
                raise _wrong(line, f"{name!r} is no role: {', '.join(_ROLES)}")
            continue
        value = _unquoted(rest, line)
        if instruction == "license":
            licences.append(value)
        else:
            texts[instruction] = value
    if "from" not in texts:
        raise UsageProblem("the Modelfile has no FROM line", "add: FROM model, file or folder")
    return Modelfile(
        base=texts["from"],
        template=texts.get("template", ""),
        system=texts.get("system", ""),
        adapter=texts.get("adapter", ""),
        licences=tuple(licences),
        parameters=parameters,
        messages=tuple(messages),
    )


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, instruction and what follows it, quotes and all, of every instruction."""
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        word, *rest = stripped.split(maxsplit=1)
        instruction = word.lower()
        if instruction not in _INSTRUCTIONS:
            names = ", ".join(name.upper() for name in _INSTRUCTIONS)
            raise _wrong(number, f"{word!r} is no instruction: {names}")
        value = (
            " ".join(rest).replace("\t", " ", 1) if instruction == "parameter" else "".join(rest)
        )
        if not value:
            raise _wrong(number, f"{word.upper()} has no value")
        quoted = (
            value.partition(" ")[2].strip() if instruction in ("parameter", "message") else value
        )
        while _is_open(quoted):
            following = next(lines, None)
            if following is None:
                raise _wrong(number, "the quotes that begin here do not end")
            value, quoted = f"{value}\n{following[1]}", f"{quoted}\n{following[1]}"
        yield number, instruction, value


def _is_open(value: str) -> bool:
    """Whether a quoted text goes on in the next line."""
    stripped = value.rstrip()
    if stripped.startswith('"""'):
        return len(stripped) < 6 or not stripped.endswith('"""')
    return stripped.startswith('"') and (len(stripped) < 2 or not stripped.endswith('"'))


def _unquoted(value: str, line: int) -> str:
    value = value.strip()
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            return value[len(quotes) : -len(quotes)]
    return value


def _wrong(line: int, problem: str) -> UsageProblem:
    return UsageProblem(f"line {line} of the Modelfile: {problem}", "see docs/convert.md")

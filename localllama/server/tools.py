"""Tool calls: found in a reply while it streams, asked for in prompts, forced through a schema.

What models write (their own documentation and chat templates):

    <tool_call>{"name": …, "arguments": {…}}</tool_call>      Hermes, Qwen and others with ChatML
    [TOOL_CALLS][{"name": …, "arguments": {…}}]               Mistral
    <|python_tag|>{"name": …, "parameters": {…}}              Llama 3.1
    <function=NAME>{…}</function>                             Llama 3.1, user-defined functions
    {"name": …, "arguments": {…}}                             any of them without its marker

Markers that are control tokens never show in a reply's text, so the last form stands for them.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Any

import msgspec

from localllama.engine.api import ToolCall
from localllama.errors import InvalidParameter

Tool = dict[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}

_MARKERS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<function=", "```json")
_LONGEST_MARKER = max(map(len, _MARKERS))
_AFTER = re.compile(r"(?:\s|;|,|</tool_call>|</function>|```)+")
_CLOSERS = ("</tool_call>", "</function>", "```")
_FUNCTION = re.compile(r"([\w.-]{1,64})>")
_INSTRUCTIONS = """\
You can call these functions:
{tools}

To call one, answer with nothing but a JSON object: {{"name": the function's name, "arguments": an \
object with its arguments}}."""


def names_of(tools: Sequence[Tool]) -> list[str]:
    """Return the functions' names; raises InvalidParameter for what describes no function."""
    names = []
    for tool in tools:
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidParameter("invalid request: a tool must be a function with a name")
        names.append(function["name"])
    return names


def instructions(tools: Sequence[Tool]) -> str:
    """Return what tells a model of them whose chat template has no place for tools."""
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return _INSTRUCTIONS.format(tools=described)


def schema(tools: Sequence[Tool], only: str = "") -> str:
    """Return the JSON Schema of a call of one of the tools, or of the one called ``only``.

    Raises InvalidParameter when there is no such tool.
    """
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": tool["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
        if only in ("", tool["function"]["name"])
    ]
    if not calls:
        raise InvalidParameter(f"tool_choice: there is no tool {only!r}")
    return json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls})


class Parser:
    """Tells text from calls in a reply that comes in pieces; ``offered`` are the tools' names.

    Text comes out as soon as it cannot be the beginning of a call. JSON without a marker counts
    only as a whole reply, and only when it calls an offered tool.
    """

    def __init__(self, offered: Collection[str]) -> None:
        self._offered = offered
        self._held = ""  # not yet given out
        self._call: _Json | None = None  # the call that is being read
        self._spoke = False  # some text came before
        self._called = False

    def feed(self, text: str) -> Iterator[str | ToolCall]:
        """Take a piece; yield what is certain now."""
        self._held += text
        while True:
            if self._call is None and not (yield from self._text()):
                return
            assert self._call is not None
            length = self._call.read(self._held)
            if length is None:
                return
            raw, self._held = self._held[:length], self._held[length:]
            yield from self._end_call(raw)

    def finish(self) -> Iterator[str | ToolCall]:
        """The reply is over; yield the rest. A call that was cut is text."""
        call = self._call
        rest = call.blanks + call.marker + self._held if call else self._held
        self._held, self._call = "", None
        if self._called:
            rest = _AFTER.sub("", rest)
        if rest:
            yield rest

    def _text(self) -> Generator[str | ToolCall, None, bool]:
        """Yield text up to where a call begins; return whether one does."""
        if self._called:
            rest = _AFTER.match(self._held)
            self._held = self._held[rest.end() :] if rest else self._held
        found = [(at, m) for m in _MARKERS if (at := self._held.find(m)) >= 0]
        at, marker = min(found, default=(-1, ""))
        if at < 0:
            begins = self._held.lstrip()
            if (
                begins[:1] in ("{", "[")
                and not self._spoke
                and not "[TOOL_CALLS]".startswith(begins)
            ):
                at, marker = len(self._held) - len(begins), ""
        if at < 0:
            keep = _tail(self._held, (*_MARKERS, *_CLOSERS))
            said = self._held[: len(self._held) - keep].rstrip()  # blanks may be before a call
            self._held = self._held[len(said) :]
            if said:
                self._spoke = True
                yield said
            return False
        before, self._held = self._held[:at], self._held[at + len(marker) :]
        said = before.rstrip()
        if said:
            self._spoke = True
            yield said
        self._call = _Json(marker, before[len(said) :])
        return True

    def _end_call(self, raw: str) -> Iterator[str | ToolCall]:
        call, self._call = self._call, None
        assert call is not None
        calls = list(_calls(raw, call))
        if calls and (call.marker in _MARKERS[:4] or all(c.name in self._offered for c in calls)):
            self._called = True
            yield from calls
        else:
            self._spoke = True
            yield call.blanks + call.marker + raw


class _Json:
    """Finds the end of the JSON value, and of the name before it, that follow a marker."""

    def __init__(self, marker: str, blanks: str) -> None:
        self.marker = marker
        self.blanks = blanks  # before the marker: nobody misses them when it is a call
        self._at = 0
        self._depth = 0
        self._in_string = self._escaped = False

    def read(self, text: str) -> int | None:
        """Return the length of what belongs to the call, None while more must come."""
        for at in range(self._at, len(text)):
            char = text[at]
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"' and self._depth:
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0 and not self._names(text, at):
                    return at + 1
        self._at = len(text)
        return None

    def _names(self, text: str, at: int) -> bool:
        """Whether a bracket that closes belongs to Mistral's [ARGS]."""
        return text[: at + 1].endswith("[ARGS]")


def _calls(raw: str, call: _Json) -> Iterator[ToolCall]:
    """Yield the calls that a text describes; none for any other text."""
    name = ""
    if call.marker == "<function=" and (match := _FUNCTION.match(raw)):
        name, raw = match[1], raw[match.end() :]
    elif "[ARGS]" in raw:
        name, _, raw = raw.partition("[ARGS]")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return
    for item in value if isinstance(value, list) else [value]:
        found = {"name": name.strip(), "arguments": item} if name else item
        if (one := _call(found)) is None:
            return
        yield one


def _call(value: object) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    value = value["function"] if isinstance(value.get("function"), dict) else value
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments, new_id())


def new_id() -> str:
    """Return an id for a call."""
    return f"call_{secrets.token_hex(12)}"


def arguments_of(text: str) -> dict[str, Any]:
    """Return a call's arguments as OpenAI's clients send them back; raises InvalidParameter."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidParameter(
            "invalid request: a tool call's arguments are no JSON object"
        ) from error


def _tail(text: str, markers: Sequence[str]) -> int:
    """Return how many of the last characters may be the beginning of a marker."""
    for length in range(min(_LONGEST_MARKER - 1, len(text)), 0, -1):
        tail = text[-length:]
        if any(marker.startswith(tail) for marker in markers):
            return length
    return 0

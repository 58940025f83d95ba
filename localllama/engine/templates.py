"""Chat templates: which one a model gets, and how it turns a conversation into a prompt's text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from types import CodeType, TracebackType

import msgspec
from jinja2 import TemplateSyntaxError

from localllama.engine.api import Message, ToolCall
from localllama.engine.sandbox import (
    TEMPLATE_ERRORS,
    TEMPLATE_FILE,
    Refusal,
    Sandbox,
    Stopped,
    deadline,
)
from localllama.errors import InvalidTemplate

BUILTIN_NAMES = ("alpaca", "chatml", "llama2", "llama3", "mistral", "plain")

_TIME_LIMIT_SECONDS = 2.0
_SOURCE_CHARS = 128 * 1024  # four times the longest in llama.cpp's collection
_HINT = f"give the model another one: run --template FILE, or {', '.join(BUILTIN_NAMES)}"
# Go's actions start where Jinja's grammar has no expression: a dot, a dollar or a keyword.
_GO_ACTION = re.compile(r"\{\{-?\s*(?:[.$]|(?:if|range|with|end|else|template|define)\b)")
_GO_PROMPT_ONLY = re.compile(r"\s*\{\{-?\s*\.Prompt\s*-?\}\}\s*")


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled chat template; ``origin`` says where it is from: ``model file``, ``override``,
    ``built-in llama2``."""

    origin: str
    source: str = field(repr=False)
    _code: CodeType = field(repr=False, compare=False)

    @classmethod
    def compile(cls, source: str, *, origin: str) -> Template:
        """Return the template of a Jinja source; raises InvalidTemplate naming the line."""
        if len(source) > _SOURCE_CHARS:
            raise InvalidTemplate(_unparsable(origin, "it is too long"), _HINT)
        try:
            with deadline(_TIME_LIMIT_SECONDS):
                code = Sandbox().compile(source)
        except TemplateSyntaxError as error:
            reason = f"line {error.lineno}: {error.message}"
            raise InvalidTemplate(_unparsable(origin, reason), _HINT) from error
        except Stopped as stop:
            raise InvalidTemplate(
                f"the chat template ({origin}) was stopped: {stop}", _HINT
            ) from stop
        except TEMPLATE_ERRORS as error:
            raise InvalidTemplate(_unparsable(origin, str(error)), _HINT) from error
        return cls(origin, source, code)

    def render(
        self,
        messages: Sequence[Message],
        *,
        bos_token: str,
        eos_token: str,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> str:
        """Return the prompt's text; raises InvalidTemplate.

        A leading system message that the template refuses or leaves out goes before the first
        user message. ``extra`` are further variables, such as ``enable_thinking``.
        """
        variables = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "add_generation_prompt": add_generation_prompt,
            "tools": tools,
            **(extra or {}),
        }
        merged = _merge_system(messages)
        if merged is None:
            return self._run(messages, variables)
        try:
            text = self._run(messages, variables)
        except _Refused as refusal:
            try:
                return self._run(merged, variables)
            except _Refused:
                raise refusal from None
        return text if messages[0].content.strip() in text else self._run(merged, variables)

    def _run(self, messages: Sequence[Message], variables: Mapping[str, object]) -> str:
        try:
            return self._run_on([_seen(message) for message in messages], variables)
        except _Refused:
            raise
        except InvalidTemplate:
            if not any(message.tool_calls for message in messages):
                raise
            # Some templates join the arguments of a call to a text instead of writing them as JSON.
            as_text = [_seen(message, json_arguments=True) for message in messages]
            return self._run_on(as_text, variables)

    def _run_on(
        self, conversation: Sequence[Mapping[str, object]], variables: Mapping[str, object]
    ) -> str:
        try:
            with deadline(_TIME_LIMIT_SECONDS):
                return Sandbox().run(self._code, {**variables, "messages": conversation})
        except Refusal as error:
            raise _Refused(
                f"the model's chat template refuses this conversation: {error}",
                "change the messages, or " + _HINT,
            ) from error
        except Stopped as stop:
            raise InvalidTemplate(f"the model's chat template was stopped: {stop}", _HINT) from stop
        except TEMPLATE_ERRORS as error:
            where = f"line {_line(error.__traceback__)}: {error or type(error).__name__}"
            raise InvalidTemplate(f"the model's chat template fails: {where}", _HINT) from error


class _Refused(InvalidTemplate):
    """The template works and says no to these messages."""


def builtin(name: str) -> Template:
    """Return the built-in template ``name``; raises InvalidTemplate for an unknown one."""
    if name not in BUILTIN_NAMES:
        raise InvalidTemplate(
            f"there is no built-in chat template {name!r}", f"there are {', '.join(BUILTIN_NAMES)}"
        )
    folder = resources.files("localllama.engine") / "builtin"
    source = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    return Template.compile(source, origin=f"built-in {name}")


def recognise(text: str) -> str | None:
    """Return the built-in template whose markers ``text`` shows: a Go template or any other."""
    if "<|im_start|>" in text:
        return "chatml"
    if "<|start_header_id|>" in text:
        return "llama3"
    if "[INST]" in text:
        return "llama2" if "<<SYS>>" in text else "mistral"
    if "### Instruction" in text:
        return "alpaca"
    return "plain" if _GO_PROMPT_ONLY.fullmatch(text) else None


def is_go(text: str) -> bool:
    """Whether a template is written in Go's language, as Ollama's are."""
    return _GO_ACTION.search(text) is not None


def choose(own: str, override: str = "", fallback: str = "") -> Template:
    """Return the template to use: ``override``, else the model file's ``own``, else ``fallback``.

    ``override`` and ``own`` are Jinja sources, Go templates or names of built-in ones,
    ``fallback`` is such a name; with nothing usable it is ``plain``. A Go template only tells the
    family, so Jinja in the other place counts more. Raises InvalidTemplate for a source that does
    not parse.
    """
    candidates = ((override, "override"), (own, "model file"))
    for text, origin in candidates:
        if text.strip() in BUILTIN_NAMES:
            return builtin(text.strip())
        if text.strip() and not is_go(text):
            return Template.compile(text, origin=origin)
    names = (recognise(text) for text, _ in candidates)
    return builtin(next(filter(None, names), None) or fallback or "plain")


def _seen(message: Message, *, json_arguments: bool = False) -> dict[str, object]:
    """The message as templates know it: by OpenAI's names, and both that thinking goes by."""

    def function(call: ToolCall) -> dict[str, object]:
        arguments = call.arguments
        return {
            "name": call.name,
            "arguments": json.dumps(arguments, ensure_ascii=False) if json_arguments else arguments,
        }

    seen: dict[str, object] = {"role": message.role, "content": message.content}
    if message.thinking:
        seen |= {"reasoning_content": message.thinking, "thinking": message.thinking}
    if message.tool_calls:
        seen["tool_calls"] = [
            {"id": call.id, "type": "function", "function": function(call)}
            for call in message.tool_calls
        ]
    if message.name:
        seen["name"] = message.name
    if message.tool_call_id:
        seen["tool_call_id"] = message.tool_call_id
    return seen


def _merge_system(messages: Sequence[Message]) -> list[Message] | None:
    """Return the messages with a leading system text put before the first user's, if there is."""
    if not messages or messages[0].role != "system" or not messages[0].content.strip():
        return None
    system, *rest = messages
    for index, message in enumerate(rest):
        if message.role == "user":
            content = f"{system.content}\n\n{message.content}"
            rest[index] = msgspec.structs.replace(message, content=content)
            return rest
    return [msgspec.structs.replace(system, role="user"), *rest]


def _unparsable(origin: str, reason: str) -> str:
    return f"the chat template ({origin}) does not parse: {reason}"


def _line(traceback: TracebackType | None) -> int:
    """Return the template's line where the error arose; Jinja rewrites tracebacks to say it."""
    line = 0
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == TEMPLATE_FILE:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line

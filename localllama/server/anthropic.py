"""Anthropic's API: messages, streamed and whole, and counting their tokens."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import msgspec

from localllama.engine.api import Done, Generate, Message, ToolCall, Truncated
from localllama.errors import InvalidParameter
from localllama.server import anthropic_types as wire
from localllama.server import options, reply
from localllama.server.asking import DROP, STOP, Ask, Asker
from localllama.server.bridge import Models
from localllama.server.http import ServerSentEvents, left_out, require_shallow
from localllama.server.operations import Operation
from localllama.server.reply import Said, Thought
from localllama.store import Installed


def operations(asker: Asker, models: Models) -> list[Operation]:
    """Return what this API does."""
    api = Anthropic(asker, models)
    return [
        Operation(
            "POST",
            "/v1/messages",
            api.messages,
            wire.MessageOut,
            wire.MessagesRequest,
            wire.Event,
            ServerSentEvents(named=True),
        ),
        Operation("POST", "/v1/messages/count_tokens", api.count, wire.Counted, wire.CountRequest),
    ]


class Anthropic:
    """Answers Anthropic's clients."""

    def __init__(self, asker: Asker, models: Models) -> None:
        self._asker = asker
        self._models = models

    async def messages(
        self, request: wire.MessagesRequest
    ) -> wire.MessageOut | AsyncGenerator[wire.Event | wire.Stopped | Truncated, None]:
        """Reply to a conversation."""
        model = self._asker.find(request.model, "chat")
        given = {name: getattr(request, name) for name in ("temperature", "top_k", "top_p")}
        given |= {"stop": request.stop_sequences, "num_ctx": request.num_ctx}
        if request.max_tokens < 1:
            raise InvalidParameter("max_tokens must be at least 1")
        chosen, loading = options.options(given | {"max_tokens": request.max_tokens})
        ask = self._ask(
            model, request, chosen, loading, request.keep_alive, DROP if request.truncate else STOP
        )
        id = f"msg_{secrets.token_hex(12)}"
        if request.stream:
            return self._events(id, request.model, ask)
        found = await reply.whole(self._models, ask)
        blocks: list[wire.BlockOut] = []
        if found.thought:
            blocks.append(wire.ThinkingBlock(thinking=found.thought, signature=""))
        if found.text:
            blocks.append(wire.TextBlock(text=found.text))
        blocks += [
            wire.ToolUseBlock(id=call.id, name=call.name, input=call.arguments)
            for call in found.calls
        ]
        return wire.MessageOut(
            id=id,
            type="message",
            role="assistant",
            model=request.model,
            content=blocks,
            stop_reason=_reason(found.done, calls=bool(found.calls)),
            stop_sequence=found.done.stop or None,
            usage=_usage(found.done),
            truncated=left_out(found.truncated),
        )

    async def count(self, request: wire.CountRequest) -> wire.Counted:
        """Count the tokens that a conversation has for the model."""
        model = self._asker.find(request.model, "chat")
        ask = self._ask(model, request, {}, {}, None, STOP)
        tokens = await self._models.call(
            model, ask.want, lambda lane: lane.engine.tokenize(ask.request)
        )
        return wire.Counted(input_tokens=len(tokens))

    def _ask(
        self,
        model: Installed,
        request: wire.CountRequest,
        chosen: dict[str, object],
        loading: dict[str, int],
        keep_alive: str | float | None,
        policy: str,
    ) -> Ask:
        messages = [one for message in request.messages for one in _messages(message)]
        if not messages:
            raise InvalidParameter("messages: at least one message is required")
        if request.system:
            messages.insert(0, Message("system", _text(request.system)))
        tools, forced = _choose(request)
        asked = Generate(
            self._asker.sampling(model, chosen),
            messages=tuple(messages),
            think=request.thinking.type == "enabled" if request.thinking else None,
            tools=tools,
        )
        want = self._asker.want(loading, keep_alive)
        return self._asker.conversation(model, want, asked, policy=policy, forced=forced)

    async def _events(
        self, id: str, model: str, ask: Ask
    ) -> AsyncGenerator[wire.Event | wire.Stopped | Truncated, None]:
        blocks = _Blocks()
        begun = False
        async with aclosing(reply.parts(self._models, ask)) as parts:
            async for part in parts:
                if isinstance(part, Truncated):
                    yield part
                    continue
                if not begun:
                    begun = True
                    yield _start(id, model)
                if isinstance(part, Done):
                    for event in blocks.close():
                        yield event
                    delta = wire.StopDelta(
                        stop_reason=_reason(part, calls=blocks.has_calls),
                        stop_sequence=part.stop or None,
                    )
                    yield wire.Stopped(type="message_delta", delta=delta, usage=_usage(part))
                else:
                    for event in blocks.add(part):
                        yield event
        yield wire.Event(type="message_stop")


class _Blocks:
    """The blocks of a streamed message, one open at a time."""

    def __init__(self) -> None:
        self.has_calls = False
        self._index = -1
        self._open: type[Said | Thought | ToolCall] | None = None

    def add(self, part: Said | Thought | ToolCall) -> Iterator[wire.Event]:
        """Yield what a part adds."""
        if self._open is not type(part) or isinstance(part, ToolCall):
            yield from self.close()
            self._index += 1
            self._open = type(part)
            yield wire.Event(
                type="content_block_start", index=self._index, content_block=_new(part)
            )
        delta: wire.TextDelta | wire.ThinkingDelta | wire.InputDelta
        if isinstance(part, Said):
            delta = wire.TextDelta(text=part.text)
        elif isinstance(part, Thought):
            delta = wire.ThinkingDelta(thinking=part.text)
        else:
            self.has_calls = True
            delta = wire.InputDelta(partial_json=msgspec.json.encode(part.arguments).decode())
        yield wire.Event(type="content_block_delta", index=self._index, delta=delta)

    def close(self) -> Iterator[wire.Event]:
        """End the open block, if there is one."""
        if self._open is not None:
            self._open = None
            yield wire.Event(type="content_block_stop", index=self._index)


def _new(part: Said | Thought | ToolCall) -> wire.BlockOut:
    if isinstance(part, Said):
        return wire.TextBlock(text="")
    if isinstance(part, Thought):
        return wire.ThinkingBlock(thinking="", signature="")
    return wire.ToolUseBlock(id=part.id, name=part.name, input={})


def _start(id: str, model: str) -> wire.Event:
    message = wire.MessageOut(
        id=id,
        type="message",
        role="assistant",
        model=model,
        content=[],
        stop_reason=None,
        stop_sequence=None,
        usage=wire.Usage(input_tokens=0, output_tokens=0),
    )
    return wire.Event(type="message_start", message=message)


def _choose(request: wire.CountRequest) -> tuple[tuple[dict[str, Any], ...], str | None]:
    """Return the tools on offer, and which call is forced: "" = any, None = none."""
    choice = request.tool_choice
    if choice is not None and choice.type == "none":
        return (), None
    tools = tuple(_tool(tool) for tool in request.tools or ())
    if choice is None or choice.type == "auto":
        return tools, None
    if choice.type == "any":
        return tools, ""
    if choice.type == "tool" and choice.name:
        return tools, choice.name
    raise InvalidParameter("tool_choice: type must be auto, any, none, or tool with a name")


def _tool(tool: wire.ToolIn) -> dict[str, Any]:
    """Return a tool as templates know it."""
    function = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.input_schema or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


def _messages(message: wire.MessageIn) -> Iterator[Message]:
    """Yield what a message is for templates: results of tools are messages of their own."""
    blocks = message.content
    if isinstance(blocks, str):
        yield Message(message.role, blocks)
        return
    for block in blocks:
        if block.type == "tool_result":
            text = _text(block.content or "")
            yield Message("tool", text, tool_call_id=block.tool_use_id or "")
    calls = tuple(
        ToolCall(block.name or "", block.input or {}, block.id or "")
        for block in blocks
        if block.type == "tool_use"
    )
    for call in calls:
        require_shallow(call.arguments, "a tool_use")
    others = [
        block for block in blocks if block.type not in ("tool_result", "tool_use", "thinking")
    ]
    text = _text(others)
    thought = "".join(block.thinking or "" for block in blocks if block.type == "thinking")
    if text or calls or thought:
        yield Message(message.role, text, thinking=thought, tool_calls=calls)


def _text(content: str | list[wire.Block]) -> str:
    """Return the text of blocks; raises InvalidParameter for others."""
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text":
            raise InvalidParameter(
                f"a content block of the type {block.type[:40]!r}", "only text is supported here"
            )
    return "\n".join(block.text or "" for block in content)


def _reason(done: Done, *, calls: bool) -> str:
    if calls:
        return "tool_use"
    if done.reason in ("length", "context"):
        return "max_tokens"
    return "stop_sequence" if done.stop else "end_turn"


def _usage(done: Done) -> wire.Usage:
    return wire.Usage(
        input_tokens=done.usage.prompt_tokens, output_tokens=done.usage.completion_tokens
    )

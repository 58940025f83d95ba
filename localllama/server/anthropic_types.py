"""Anthropic's wire types: the Messages API."""

from __future__ import annotations

from typing import Any

import msgspec

from localllama.server.http import LeftOut


class In(msgspec.Struct):
    """Base of requests; null is as good as absent."""


class Block(In, kw_only=True):
    """A content block; which fields count depends on ``type``."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None


class MessageIn(In, kw_only=True):
    role: str
    content: str | list[Block]


class ToolIn(In, kw_only=True):
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class Choose(In, kw_only=True):
    type: str
    name: str | None = None


class Thinking(In, kw_only=True):
    type: str


class CountRequest(In, kw_only=True):
    model: str
    messages: list[MessageIn]
    system: str | list[Block] | None = None
    tools: list[ToolIn] | None = None
    tool_choice: Choose | None = None
    thinking: Thinking | None = None


class MessagesRequest(CountRequest, kw_only=True):
    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    keep_alive: str | float | None = None
    num_ctx: int | None = None
    truncate: bool | None = None


# replies


class Usage(msgspec.Struct, kw_only=True):
    input_tokens: int
    output_tokens: int


class Counted(msgspec.Struct, kw_only=True):
    input_tokens: int


class TextBlock(msgspec.Struct, kw_only=True, tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, kw_only=True, tag="thinking"):
    thinking: str
    signature: str


class ToolUseBlock(msgspec.Struct, kw_only=True, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


BlockOut = TextBlock | ThinkingBlock | ToolUseBlock


class MessageOut(msgspec.Struct, kw_only=True):
    id: str
    type: str
    role: str
    model: str
    content: list[BlockOut]
    stop_reason: str | None
    stop_sequence: str | None
    usage: Usage
    truncated: LeftOut | None = None


class TextDelta(msgspec.Struct, kw_only=True, tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, kw_only=True, tag="thinking_delta"):
    thinking: str


class InputDelta(msgspec.Struct, kw_only=True, tag="input_json_delta"):
    partial_json: str


class StopDelta(msgspec.Struct, kw_only=True):
    stop_reason: str
    stop_sequence: str | None


class Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An event of a stream; which fields it has depends on ``type``."""

    type: str
    index: int | None = None
    message: MessageOut | None = None
    content_block: BlockOut | None = None
    delta: TextDelta | ThinkingDelta | InputDelta | None = None


class Stopped(msgspec.Struct, kw_only=True):
    """The event before the last."""

    type: str
    delta: StopDelta
    usage: Usage

"""The wire types of OpenAI's Responses API."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType

from localllama.server.http import LeftOut
from localllama.server.openai_types import In, Out, TokenLogprob, Tuned


class Item(In, kw_only=True):
    """What was said or done before; which fields it has depends on ``type``."""

    type: str = "message"
    role: str | None = None
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    arguments: str | None = None
    call_id: str | None = None
    output: str | list[dict[str, Any]] | None = None
    summary: list[dict[str, Any]] | None = None


class Format(In, kw_only=True, omit_defaults=True):
    type: str
    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


class TextConfig(In, kw_only=True):
    format: Format | None = None


class Reasoning(In, kw_only=True):
    effort: str | None = None


class Tool(In, kw_only=True, omit_defaults=True):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Choose(In, kw_only=True, omit_defaults=True):
    type: str
    name: str | None = None


class ResponsesRequest(Tuned, kw_only=True):
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | Choose | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    # What needs a server that remembers.
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None


# replies


class OutputText(Out, kw_only=True, tag="output_text"):
    text: str
    annotations: list[str]
    logprobs: list[TokenLogprob]


class ReasoningText(Out, kw_only=True, tag="reasoning_text"):
    text: str


class MessageItem(Out, kw_only=True, tag="message"):
    id: str
    status: str
    role: str
    content: list[OutputText]


class ReasoningItem(Out, kw_only=True, tag="reasoning"):
    id: str
    status: str
    summary: list[str]
    content: list[ReasoningText]


class CallItem(Out, kw_only=True, tag="function_call"):
    id: str
    status: str
    call_id: str
    name: str
    arguments: str


ItemOut = MessageItem | ReasoningItem | CallItem


class InputDetails(Out, kw_only=True):
    cached_tokens: int


class OutputDetails(Out, kw_only=True):
    reasoning_tokens: int


class Usage(Out, kw_only=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(Out, kw_only=True):
    reason: str


class Response(Out, kw_only=True):
    """A reply; in a stream also what there is of it so far."""

    id: str
    object: str
    created_at: int
    model: str
    status: str
    output: list[ItemOut]
    usage: Usage | None
    error: None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    store: bool
    temperature: float
    text: TextConfig
    tool_choice: str | Choose
    tools: list[Tool]
    top_p: float
    truncation: str
    truncated: LeftOut | None = None


class Event(Out, kw_only=True):
    """An event of a stream; which fields it has depends on ``type``."""

    type: str
    sequence_number: int
    response: Response | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    item: ItemOut | UnsetType = UNSET
    part: OutputText | ReasoningText | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET

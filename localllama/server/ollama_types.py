"""Ollama's wire types: what its clients send and expect. Unknown fields are ignored, as there."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType, field

from localllama.server.http import LeftOut

Format = str | dict[str, Any] | None


class In(msgspec.Struct):
    """Base of requests; null is as good as absent."""


class Out(msgspec.Struct, omit_defaults=True):
    """Base of replies; what is unset does not appear."""


class Function(In, kw_only=True):
    name: str
    arguments: dict[str, Any] = {}
    index: int | None = None


class Call(In, kw_only=True):
    function: Function
    id: str | None = None


class Message(In, kw_only=True):
    role: str
    content: str | None = ""
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Asked(In, kw_only=True):
    """What generate and chat share."""

    model: str
    stream: bool | None = None
    format: Format = None
    keep_alive: str | float | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class GenerateRequest(Asked, kw_only=True):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class ChatRequest(Asked, kw_only=True):
    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None


class EmbedRequest(In, kw_only=True):
    model: str
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: int | None = None
    keep_alive: str | float | None = None
    options: dict[str, Any] | None = None


class EmbeddingsRequest(In, kw_only=True):
    model: str
    prompt: str | None = None
    keep_alive: str | float | None = None
    options: dict[str, Any] | None = None


class Named(In, kw_only=True):
    """A request about one model; ``name`` is how it was called once."""

    model: str | None = None
    name: str | None = None

    @property
    def which(self) -> str:
        """The name given in either way."""
        return self.model or self.name or ""


class ShowRequest(Named, kw_only=True):
    verbose: bool | None = None
    system: str | None = None
    options: dict[str, Any] | None = None


class DeleteRequest(Named, kw_only=True):
    pass


class PullRequest(Named, kw_only=True):
    stream: bool | None = None
    insecure: bool | None = None


class PushRequest(PullRequest, kw_only=True):
    pass


class CopyRequest(In, kw_only=True):
    source: str
    destination: str


class CreateRequest(Named, kw_only=True):
    from_: str | None = field(default=None, name="from")
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    template: str | None = None
    license: str | list[str] | None = None
    system: str | None = None
    parameters: dict[str, Any] | None = None
    messages: list[Message] | None = None
    quantize: str | None = None
    stream: bool | None = None


# replies


class Logprob(Out, kw_only=True):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[Logprob] | None = None


class FunctionCall(Out, kw_only=True):
    index: int
    name: str
    arguments: dict[str, Any]


class ToolCallReply(Out, kw_only=True):
    id: str
    function: FunctionCall


class Counts(Out, kw_only=True):
    """What the last object of a reply tells; durations in nanoseconds."""

    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class Generated(Counts, kw_only=True):
    model: str
    created_at: str
    response: str
    done: bool
    thinking: str | UnsetType = UNSET
    done_reason: str | UnsetType = UNSET
    context: list[int] | UnsetType = UNSET
    logprobs: list[Logprob] | UnsetType = UNSET
    truncated: LeftOut | None = None


class MessageReply(Out, kw_only=True):
    role: str
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[ToolCallReply] | UnsetType = UNSET


class Chatted(Counts, kw_only=True):
    model: str
    created_at: str
    message: MessageReply
    done: bool
    done_reason: str | UnsetType = UNSET
    logprobs: list[Logprob] | UnsetType = UNSET
    truncated: LeftOut | None = None


class Embedded(Out, kw_only=True):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    truncated: LeftOut | None = None


class EmbeddedOne(Out, kw_only=True):
    embedding: list[float]


class Details(Out, kw_only=True):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(Out, kw_only=True):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    capabilities: list[str]


class Tags(Out, kw_only=True):
    models: list[Tag]


class Process(Out, kw_only=True):
    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int
    parallel: int
    explanation: str


class Processes(Out, kw_only=True):
    models: list[Process]


class TensorReply(Out, kw_only=True):
    name: str
    type: str
    shape: list[int]


class Shown(Out, kw_only=True):
    license: str
    modelfile: str
    parameters: str
    template: str
    system: str
    details: Details
    messages: list[dict[str, str]]
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
    tensors: list[TensorReply] | UnsetType = UNSET


class Version(Out, kw_only=True):
    version: str
    localllama: str


class Status(Out, kw_only=True):
    """A line of a pull or a create."""

    status: str
    digest: str | UnsetType = UNSET
    total: int | UnsetType = UNSET
    completed: int | UnsetType = UNSET


class Failure(Out, kw_only=True):
    error: str

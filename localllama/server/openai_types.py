"""OpenAI's wire types, with the few fields beside them that local models want."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from localllama.server.http import LeftOut


class In(msgspec.Struct):
    """Base of requests; null is as good as absent."""


class Out(msgspec.Struct, omit_defaults=True):
    """Base of replies; what is unset does not appear."""


class FunctionIn(In, kw_only=True):
    name: str
    arguments: str = "{}"


class CallIn(In, kw_only=True):
    function: FunctionIn
    id: str = ""


class Message(In, kw_only=True):
    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[CallIn] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class StreamOptions(In, kw_only=True):
    include_usage: bool | None = None


class JsonSchema(In, kw_only=True):
    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


class ResponseFormat(In, kw_only=True):
    type: str
    json_schema: JsonSchema | None = None


class FunctionName(In, kw_only=True):
    name: str


class Choose(In, kw_only=True):
    """Of a tool_choice that names one."""

    function: FunctionName | None = None
    type: str = "function"


class Tuned(In, kw_only=True):
    """What all that generates shares; from ``keep_alive`` on not OpenAI's own."""

    model: str
    stream: bool | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    keep_alive: str | float | None = None
    num_ctx: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    truncate: bool | None = None
    options: dict[str, Any] | None = None


class Asked(Tuned, kw_only=True):
    """What chats and completions share."""

    stream_options: StreamOptions | None = None
    n: int | None = None
    response_format: ResponseFormat | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether the last piece of a stream tells the counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Asked, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | Choose | None = None
    reasoning_effort: str | None = None


class CompletionRequest(Asked, kw_only=True):
    prompt: str | list[Any] | None = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None


class EmbeddingsRequest(In, kw_only=True):
    model: str
    input: str | list[Any]
    encoding_format: str | None = None
    dimensions: int | None = None
    truncate: bool | None = None
    keep_alive: str | float | None = None


# replies


class CachedTokens(Out, kw_only=True):
    cached_tokens: int


class Usage(Out, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens | UnsetType = UNSET


class FunctionOut(Out, kw_only=True):
    name: str
    arguments: str


class CallOut(Out, kw_only=True):
    id: str
    type: str
    function: FunctionOut
    index: int | UnsetType = UNSET


class TopLogprob(Out, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Out, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(Out, kw_only=True):
    content: list[TokenLogprob]


class MessageOut(Out, kw_only=True):
    role: str
    content: str | None
    reasoning: str | UnsetType = UNSET
    tool_calls: list[CallOut] | UnsetType = UNSET


class Choice(Out, kw_only=True):
    index: int
    message: MessageOut
    finish_reason: str
    logprobs: Logprobs | None


class Completion(Out, kw_only=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    truncated: LeftOut | None = None


class Delta(Out, kw_only=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[CallOut] | UnsetType = UNSET


class ChunkChoice(Out, kw_only=True):
    index: int
    delta: Delta
    finish_reason: str | None
    logprobs: Logprobs | UnsetType = UNSET


class Chunk(Out, kw_only=True):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: Usage | UnsetType = UNSET
    truncated: LeftOut | None = None


class TextLogprobs(Out, kw_only=True):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Out, kw_only=True):
    index: int
    text: str
    finish_reason: str | None
    logprobs: TextLogprobs | None


class TextCompletion(Out, kw_only=True):
    """A whole one, or a piece of a stream."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    system_fingerprint: str
    usage: Usage | UnsetType = UNSET
    truncated: LeftOut | None = None


class Embedding(Out, kw_only=True):
    object: str
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Out, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Out, kw_only=True):
    object: str
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    truncated: LeftOut | None = None


class Meta(Out, kw_only=True):
    """What llama-server tells of a loaded model, and clients look for."""

    n_ctx: int


class ModelCard(Out, kw_only=True):
    id: str
    object: str
    created: int
    owned_by: str
    meta: Meta | UnsetType = UNSET


class ModelList(Out, kw_only=True):
    object: str
    data: list[ModelCard]

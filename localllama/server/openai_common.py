"""What OpenAI's APIs share: parameters, texts, tools, choices, counts, heads of replies."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from time import time
from typing import Any

import msgspec

from localllama import __version__
from localllama.engine.api import Done, Sampling, TokenLogprob
from localllama.errors import InvalidParameter
from localllama.server import openai_types as wire
from localllama.server import options
from localllama.server.asking import Ask, Asker
from localllama.server.tools import Tool
from localllama.wants import Want

MOST_CHOICES = 16
_FINGERPRINT = f"localllama-{__version__}"
_PARAMETERS = (
    *("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty"),
    *("frequency_penalty", "logit_bias", "seed", "stop", "max_tokens", "num_ctx"),
)


@dataclass(frozen=True, slots=True)
class Head:
    """What all pieces of one reply begin with."""

    id: str
    created: int
    model: str

    @classmethod
    def of(cls, prefix: str, model: str) -> Head:
        """Return the head of a new reply."""
        return cls(f"{prefix}-{secrets.token_hex(12)}", int(time()), model)

    def chunk(self, choices: list[wire.ChunkChoice], **more: Any) -> wire.Chunk:
        """A piece of a streamed chat."""
        return wire.Chunk(object="chat.completion.chunk", choices=choices, **self._fields(), **more)

    def whole(self, choices: list[wire.Choice], **more: Any) -> wire.Completion:
        """A whole chat."""
        return wire.Completion(object="chat.completion", choices=choices, **self._fields(), **more)

    def text(self, choices: list[wire.TextChoice], **more: Any) -> wire.TextCompletion:
        """A completion, or a piece of one."""
        return wire.TextCompletion(
            object="text_completion", choices=choices, **self._fields(), **more
        )

    def _fields(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": _FINGERPRINT,
        }


def chosen(asker: Asker, request: wire.Tuned) -> tuple[dict[str, object], Want]:
    """Return the sampling parameters of a request and how to load; raises InvalidParameter."""
    own = {name: getattr(request, name) for name in _PARAMETERS}
    given = (request.options or {}) | {k: value for k, value in own.items() if value is not None}
    parameters, loading = options.options(given)
    return parameters, asker.want(loading, request.keep_alive)


def repeated(ask: Ask, n: int | None) -> list[Ask]:
    """Return ``n`` of the same, whose seeds differ."""
    count = 1 if n is None else n
    if not 1 <= count <= MOST_CHOICES:
        raise InvalidParameter(f"n must be from 1 to {MOST_CHOICES}")
    return [_reseeded(ask, index) for index in range(count)]


def _reseeded(ask: Ask, index: int) -> Ask:
    sampling = ask.request.sampling
    if not index or sampling.seed is None:
        return ask
    other: Sampling = msgspec.structs.replace(sampling, seed=options.seed(sampling.seed + index))
    return ask.with_request(msgspec.structs.replace(ask.request, sampling=other))


def bound(form: wire.ResponseFormat | None) -> dict[str, str]:
    """Return the fields of Sampling that hold a reply to a format; raises InvalidParameter."""
    if form is None:
        return {}
    return bound_to(form.type, form.json_schema.schema if form.json_schema else None)


def bound_to(kind: str, schema: dict[str, Any] | None) -> dict[str, str]:
    """Return the same for a kind of format, and its schema."""
    if kind == "text":
        return {}
    if kind == "json_object":
        return options.bound("json")
    if kind == "json_schema" and schema is not None:
        return options.bound(schema)
    raise InvalidParameter("the format must be text, json_object, or json_schema with a schema")


def choose(
    offered: tuple[Tool, ...], choice: str | None, named: str | None
) -> tuple[tuple[Tool, ...], str | None]:
    """Return the tools on offer, and which call is forced: "" = any, None = none.

    ``named`` is the function that a ``choice`` is about. Raises InvalidParameter.
    """
    if choice == "none":
        return (), None
    if choice in (None, "auto"):
        return offered, None
    if choice == "required":
        return offered, ""
    if choice == "function" and named is not None:
        return offered, named
    raise InvalidParameter("tool_choice must be none, auto, required or name a function")


def thinks(effort: str | None) -> bool | None:
    """Return what the template is told of a reasoning effort."""
    return None if effort is None else effort != "none"


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """Return a message's text; raises InvalidParameter for parts that are something else."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        text = part.get("text", part.get("refusal"))
        if part.get("type") not in (
            "text",
            "input_text",
            "output_text",
            "refusal",
        ) or not isinstance(text, str):
            raise InvalidParameter(
                f"invalid request: a message part of the type {str(part.get('type'))[:40]!r}",
                "only text is supported",
            )
        texts.append(text)
    return "\n".join(texts)


def reason(done: Done, calls: int) -> str:
    """Return why a reply with so many tool calls is over."""
    if calls:
        return "tool_calls"
    return "length" if done.reason in ("length", "context") else "stop"


def usage(over: Sequence[Done]) -> wire.Usage:
    """Return the counts of replies to one prompt."""
    prompt = max((done.usage.prompt_tokens for done in over), default=0)
    cached = max((done.usage.cached_tokens for done in over), default=0)
    completion = sum(done.usage.completion_tokens for done in over)
    return wire.Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=wire.CachedTokens(cached_tokens=cached),
    )


def spelt(one: TokenLogprob) -> str:
    """Return a token's text."""
    return one.piece.decode(errors="replace")


def logprobs_of(found: Sequence[TokenLogprob]) -> list[wire.TokenLogprob]:
    """Return log probabilities in OpenAI's form."""
    return [
        wire.TokenLogprob(
            token=spelt(one),
            logprob=one.logprob,
            bytes=list(one.piece),
            top_logprobs=[
                wire.TopLogprob(token=spelt(other), logprob=other.logprob, bytes=list(other.piece))
                for other in one.top
            ],
        )
        for one in found
    ]

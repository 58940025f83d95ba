"""What OpenAI's chats and completions share: parameters, choices, counts, the head of replies."""

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
from localllama.runner import Want
from localllama.server import openai_types as wire
from localllama.server import options
from localllama.server.asking import Ask, Asker

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


def chosen(asker: Asker, request: wire.Asked) -> tuple[dict[str, object], Want]:
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
    if form is None or form.type == "text":
        return {}
    if form.type == "json_object":
        return options.bound("json")
    if form.type == "json_schema" and form.json_schema and form.json_schema.schema is not None:
        return options.bound(form.json_schema.schema)
    raise InvalidParameter(
        "response_format must be text, json_object, or json_schema with a schema"
    )


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

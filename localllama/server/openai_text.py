"""OpenAI's completions of prompts, and its embeddings."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from localllama.engine.api import Done, Generate, TokenLogprob, Truncated
from localllama.errors import InvalidParameter
from localllama.server import embedding, options, reply
from localllama.server import openai_types as wire
from localllama.server.asking import Ask, Asker
from localllama.server.bridge import Models
from localllama.server.http import left_out
from localllama.server.openai_common import (
    MOST_CHOICES,
    Head,
    bound,
    chosen,
    reason,
    repeated,
    spelt,
    usage,
)
from localllama.server.reply import Said
from localllama.store import Installed
from localllama.wants import Want

_SHORT = 16  # tokens of a completion for which nobody said how long


class Texts:
    """Answers requests about plain texts."""

    def __init__(self, asker: Asker, models: Models) -> None:
        self._asker = asker
        self._models = models

    async def complete(
        self, request: wire.CompletionRequest
    ) -> wire.TextCompletion | AsyncGenerator[wire.TextCompletion | Truncated, None]:
        """Continue prompts."""
        model = self._asker.find(request.model, "generate")
        prompts = _inputs(request.prompt, "prompt")
        asks = self._completions(model, prompts, request)
        echoes = [await self._echo(model, asks[0].want, p, request) for p in prompts]
        repeats = len(asks) // len(prompts)
        begins = [echo for echo in echoes for _ in range(repeats)]
        head = Head.of("cmpl", request.model)
        if request.stream:
            return self._texts(head, asks, begins, with_usage=request.wants_usage)
        found = await reply.all_of(self._models, asks)
        choices = [
            wire.TextChoice(
                index=index,
                text=begins[index] + one.text,
                finish_reason=reason(one.done, 0),
                logprobs=_text_logprobs(one.logprobs, len(begins[index])),
            )
            for index, one in enumerate(found)
        ]
        truncated = left_out(found[0].truncated)
        return head.text(choices, usage=usage([one.done for one in found]), truncated=truncated)

    def _completions(
        self,
        model: Installed,
        prompts: Sequence[str | tuple[int, ...]],
        request: wire.CompletionRequest,
    ) -> list[Ask]:
        parameters, want = chosen(self._asker, request)
        parameters.setdefault("max_tokens", _SHORT)
        sampling = self._asker.sampling(
            model,
            parameters,
            logprobs=options.logprobs(request.logprobs is not None, request.logprobs),
            **bound(request.response_format),
        )
        if request.suffix and "insert" not in self._asker.library.capabilities(model):
            raise InvalidParameter(f'"{request.model}" does not support insert')
        asks = []
        for prompt in prompts:
            asked = Generate(
                sampling,
                prompt=prompt if isinstance(prompt, str) else "",
                tokens=() if isinstance(prompt, str) else prompt,
                suffix=request.suffix or None,
                truncate=bool(request.truncate),
            )
            asks += repeated(Ask(model, want, asked), request.n)
        if len(asks) > MOST_CHOICES:
            raise InvalidParameter(f"at most {MOST_CHOICES} completions at once, not {len(asks)}")
        return asks

    async def _echo(
        self,
        model: Installed,
        want: Want,
        prompt: str | tuple[int, ...],
        request: wire.CompletionRequest,
    ) -> str:
        if not request.echo:
            return ""
        if isinstance(prompt, str):
            return prompt
        data = await self._models.call(model, want, lambda lane: lane.engine.detokenize(prompt))
        return data.decode(errors="replace")

    async def _texts(
        self, head: Head, asks: list[Ask], begins: list[str], *, with_usage: bool
    ) -> AsyncGenerator[wire.TextCompletion | Truncated, None]:
        over: list[Done] = []
        offsets = [len(text) for text in begins]
        for index, text in enumerate(begins):
            if text:
                yield head.text([_text_choice(index, text)])
        async with aclosing(reply.together(self._models, asks)) as parts:
            async for index, part in parts:
                if isinstance(part, Said):
                    logprobs = _text_logprobs(part.logprobs, offsets[index])
                    offsets[index] += len(part.text)
                    yield head.text([_text_choice(index, part.text, logprobs=logprobs)])
                elif isinstance(part, Done):
                    over.append(part)
                    yield head.text([_text_choice(index, "", why=reason(part, 0))])
                elif isinstance(part, Truncated):
                    yield part
        if with_usage:
            yield head.text([], usage=usage(over))

    async def embed(self, request: wire.EmbeddingsRequest) -> wire.Embeddings:
        """Turn texts into vectors of length 1."""
        model = self._asker.find(request.model, "embeddings")
        if request.encoding_format not in (None, "float", "base64"):
            raise InvalidParameter("encoding_format must be float or base64")
        found = await embedding.vectors(
            self._models,
            model,
            self._asker.want({}, request.keep_alive),
            _inputs(request.input, "input"),
            truncate=bool(request.truncate),
            dimensions=request.dimensions or 0,
        )
        as_text = request.encoding_format == "base64"
        count = sum(vector.prompt_tokens for vector in found)
        data = [
            wire.Embedding(
                object="embedding",
                index=index,
                embedding=base64.b64encode(vector.data).decode()
                if as_text
                else list(vector.numbers),
            )
            for index, vector in enumerate(found)
        ]
        return wire.Embeddings(
            object="list",
            data=data,
            model=request.model,
            usage=wire.EmbeddingUsage(prompt_tokens=count, total_tokens=count),
            truncated=left_out(embedding.truncated(found)),
        )


def _inputs(given: str | list[Any] | None, what: str) -> list[str | tuple[int, ...]]:
    """Return texts or token lists, of which one may come alone; raises InvalidParameter."""
    if isinstance(given, str):
        return [given]
    try:
        if given and isinstance(given[0], int):
            return [tuple(msgspec.convert(given, list[int]))]
        if given and isinstance(given[0], list):
            return [tuple(one) for one in msgspec.convert(given, list[list[int]])]
        found: list[str | tuple[int, ...]] = [*msgspec.convert(given, list[str])]
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"{what} must be a text, texts or token ids") from error
    if not found:
        raise InvalidParameter(f"{what} must not be empty")
    return found


def _text_logprobs(found: Sequence[TokenLogprob], offset: int) -> wire.TextLogprobs | None:
    if not found:
        return None
    texts = [spelt(one) for one in found]
    offsets = [offset + sum(map(len, texts[:index])) for index in range(len(texts))]
    return wire.TextLogprobs(
        tokens=texts,
        token_logprobs=[one.logprob for one in found],
        top_logprobs=[{spelt(other): other.logprob for other in one.top} for one in found],
        text_offset=offsets,
    )


def _text_choice(
    index: int,
    text: str,
    *,
    why: str | None = None,
    logprobs: wire.TextLogprobs | None = None,
) -> wire.TextChoice:
    return wire.TextChoice(index=index, text=text, finish_reason=why, logprobs=logprobs)

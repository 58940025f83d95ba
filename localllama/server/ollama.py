"""Ollama's generate, chat and embeddings: requests become Asks, parts of replies objects."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter_ns
from typing import Any, TypeVar

from msgspec import UNSET

from localllama.engine.api import (
    Done,
    Generate,
    Message,
    Sampling,
    TokenLogprob,
    ToolCall,
    Truncated,
    Vector,
)
from localllama.errors import InvalidParameter
from localllama.server import embedding, options, reply, thinking
from localllama.server import ollama_types as wire
from localllama.server.asking import DROP, SHIFT, STOP, Ask, Asker, own_messages
from localllama.server.bridge import Models
from localllama.server.http import left_out, require_shallow
from localllama.server.library import thinks
from localllama.server.reply import Said, Thought
from localllama.store import Installed
from localllama.wants import Want

T = TypeVar("T", wire.Chatted, wire.Generated)

_BILLION = 1_000_000_000


@dataclass(slots=True)
class _Clock:
    """When a request came."""

    begun_ns: int

    def counts(self, done: Done) -> dict[str, Any]:
        """The counts and durations of its last object."""
        timings, usage = done.timings, done.usage
        return {
            "total_duration": perf_counter_ns() - self.begun_ns,
            "load_duration": int(timings.load_seconds * _BILLION),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": int(timings.prefill_seconds * _BILLION),
            "eval_count": usage.completion_tokens,
            "eval_duration": int(timings.decode_seconds * _BILLION),
        }


class Ollama:
    """Answers requests that need a loaded model."""

    def __init__(self, asker: Asker, models: Models) -> None:
        self._asker = asker
        self._library = asker.library
        self._models = models

    # chat

    async def chat(
        self, request: wire.ChatRequest
    ) -> wire.Chatted | AsyncGenerator[wire.Chatted | Truncated, None]:
        """Reply to a conversation; without messages, load or unload."""
        clock = _Clock(perf_counter_ns())
        model = self._asker.find(request.model, "chat")
        want, sampling = self._chosen(model, request)
        if not request.messages:
            reason = await self._load(model, want)
            return _chatted(request.model, "", done_reason=reason)
        ask = self._chat(model, want, sampling, request)
        return await self._answer(request, ask, clock, _chatted)

    def _chat(
        self, model: Installed, want: Want, sampling: Sampling, request: wire.ChatRequest
    ) -> Ask:
        asked = Generate(
            sampling,
            messages=tuple(_message(message, request.model) for message in request.messages or ()),
            think=self._asker.think(model, request.think),
            tools=tuple(request.tools or ()),
            keep_tokens=_kept(model, request),
        )
        return self._asker.conversation(model, want, asked, policy=_policy(request))

    # generate

    async def generate(
        self, request: wire.GenerateRequest
    ) -> wire.Generated | AsyncGenerator[wire.Generated | Truncated, None]:
        """Continue a prompt, or reply to it; without one, load or unload."""
        clock = _Clock(perf_counter_ns())
        model = self._asker.find(request.model, "generate")
        want, sampling = self._chosen(model, request)
        if not request.prompt and not request.suffix:
            reason = await self._load(model, want)
            return _generated(request.model, "", done_reason=reason)
        ask = self._generate(model, want, sampling, request)
        return await self._answer(request, ask, clock, _generated)

    def _generate(
        self, model: Installed, want: Want, sampling: Sampling, request: wire.GenerateRequest
    ) -> Ask:
        if request.images:
            raise InvalidParameter(f'"{model.name}" does not support images')
        prompt, context = request.prompt or "", tuple(request.context or ())
        if request.raw or request.suffix is not None:
            if request.raw and (request.template or request.system or context):
                raise InvalidParameter("raw mode does not support template, system, or context")
            if request.suffix and "insert" not in self._library.capabilities(model):
                raise InvalidParameter(f'"{model.name}" does not support insert')
            asked = Generate(
                sampling,
                prompt=prompt,
                suffix=request.suffix,
                parse_special=bool(request.raw),
                truncate=request.truncate is not False,
                shift=request.shift is True,
                keep_tokens=_kept(model, request),
            )
            return Ask(model, want, asked)
        system = model.system if request.system is None else request.system
        messages = [Message("system", system)] if system else []
        if not context:  # else they are in it
            messages += own_messages(model)
        asked = Generate(
            sampling,
            messages=(*messages, Message("user", prompt)),
            think=self._asker.think(model, request.think),
            template=request.template or "",
            tokens=context,
            return_tokens=True,
            keep_tokens=_kept(model, request),
        )
        template = self._library.template(model)
        return Ask(
            model,
            want,
            asked,
            policy=_policy(request),
            thinks=thinks(template),
            thinking=thinking.opens(template),
        )

    # embeddings

    async def embed(self, request: wire.EmbedRequest) -> wire.Embedded:
        """Turn texts into vectors of length 1."""
        clock = _Clock(perf_counter_ns())
        texts = [request.input] if isinstance(request.input, str) else request.input or []
        found = await self._vectors(
            request, texts, request.truncate is not False, request.dimensions or 0
        )
        return wire.Embedded(
            model=request.model,
            embeddings=[list(vector.numbers) for vector in found],
            total_duration=perf_counter_ns() - clock.begun_ns,
            load_duration=0,
            prompt_eval_count=sum(vector.prompt_tokens for vector in found),
            truncated=left_out(embedding.truncated(found)),
        )

    async def embeddings(self, request: wire.EmbeddingsRequest) -> wire.EmbeddedOne:
        """Turn a text into a vector, as Ollama's older clients ask."""
        texts = [request.prompt] if request.prompt else []
        found = await self._vectors(request, texts, True, 0)
        return wire.EmbeddedOne(embedding=[x for vector in found for x in vector.numbers])

    async def _vectors(
        self,
        request: wire.EmbedRequest | wire.EmbeddingsRequest,
        texts: list[str],
        truncates: bool,
        dimensions: int,
    ) -> list[Vector]:
        model = self._asker.find(request.model, "embeddings")
        _, loading = options.options(request.options)
        want = self._asker.want(loading, request.keep_alive)
        if not texts:
            await self._load(model, want)
            return []
        return await embedding.vectors(
            self._models, model, want, texts, truncate=truncates, dimensions=dimensions
        )

    # what they share

    async def _answer(
        self, request: wire.Asked, ask: Ask, clock: _Clock, make: Callable[..., T]
    ) -> T | AsyncGenerator[T | Truncated, None]:
        """Return the reply, or what yields its pieces; ``make`` makes an object of each."""
        if request.stream is not False:
            return self._pieces(request.model, ask, clock, make)
        found = await reply.whole(self._models, ask)
        return make(
            request.model,
            found.text,
            thought=found.thought,
            calls=[_call(index, call) for index, call in enumerate(found.calls)],
            logprobs=_logprobs(found.logprobs),
            **_end(found.done, found.truncated, clock),
        )

    async def _pieces(
        self, name: str, ask: Ask, clock: _Clock, make: Callable[..., T]
    ) -> AsyncGenerator[T | Truncated, None]:
        truncated: Truncated | None = None
        calls = 0
        async with aclosing(reply.parts(self._models, ask)) as parts:
            async for part in parts:
                match part:
                    case Said():
                        yield make(name, part.text, logprobs=_logprobs(part.logprobs))
                    case Thought():
                        yield make(name, "", thought=part.text)
                    case ToolCall():
                        yield make(name, "", calls=[_call(calls, part)])
                        calls += 1
                    case Truncated():
                        truncated = reply.more(truncated, part)
                        yield part
                    case Done():
                        yield make(name, "", **_end(part, truncated, clock))

    def _chosen(self, model: Installed, request: wire.Asked) -> tuple[Want, Sampling]:
        """Return how to load and how to choose tokens; raises InvalidParameter."""
        chosen, loading = options.options(request.options)
        want = self._asker.want(loading, request.keep_alive)
        logprobs = options.logprobs(request.logprobs, request.top_logprobs)
        bound = options.bound(request.format)
        return want, self._asker.sampling(model, chosen, logprobs=logprobs, **bound)

    async def _load(self, model: Installed, want: Want) -> str:
        if want.keep_alive_seconds == 0:
            await self._models.unload(model)
            return "unload"
        await self._models.load(model, want)
        return "load"


def now() -> str:
    """This moment, as Go prints it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _policy(request: wire.Asked) -> str:
    """What happens when the context is full; Ollama shifts unasked, here a reply ends instead."""
    if request.truncate is False:
        return STOP
    return SHIFT if request.shift else DROP


def _kept(model: Installed, request: wire.Asked) -> int:
    return options.keep_tokens({**model.parameters, **(request.options or {})})


def _message(message: wire.Message, model: str) -> Message:
    if message.images:
        raise InvalidParameter(f'"{model}" does not support images')
    calls = [
        ToolCall(call.function.name, call.function.arguments, call.id or "")
        for call in message.tool_calls or ()
    ]
    for call in calls:
        require_shallow(call.arguments, "a tool call")
    return Message(
        message.role,
        message.content or "",
        thinking=message.thinking or "",
        tool_calls=tuple(calls),
        name=message.tool_name or "",
        tool_call_id=message.tool_call_id or "",
    )


def _reason(done: Done) -> str:
    return "length" if done.reason in ("length", "context") else "stop"


def _call(index: int, call: ToolCall) -> wire.ToolCallReply:
    function = wire.FunctionCall(index=index, name=call.name, arguments=call.arguments)
    return wire.ToolCallReply(id=call.id, function=function)


def _logprobs(found: tuple[TokenLogprob, ...] | list[TokenLogprob]) -> Any:
    return [_logprob(one) for one in found] if found else UNSET


def _logprob(one: TokenLogprob) -> wire.Logprob:
    return wire.Logprob(
        token=one.piece.decode(errors="replace"),
        logprob=one.logprob,
        bytes=list(one.piece),
        top_logprobs=[_logprob(other) for other in one.top] or None,
    )


def _end(done: Done, truncated: Truncated | None, clock: _Clock) -> dict[str, Any]:
    """What the last object of a reply tells."""
    return {
        "done_reason": _reason(done),
        "tokens": done.tokens,
        "truncated": left_out(truncated),
        **clock.counts(done),
    }


def _chatted(
    name: str,
    text: str,
    *,
    thought: str = "",
    calls: Sequence[wire.ToolCallReply] = (),
    tokens: Sequence[int] = (),
    done_reason: str = "",
    **more: Any,
) -> wire.Chatted:
    """An object of a chat, in which tokens have no place."""
    message = wire.MessageReply(
        role="assistant", content=text, thinking=thought or UNSET, tool_calls=list(calls) or UNSET
    )
    return wire.Chatted(
        model=name,
        created_at=now(),
        message=message,
        done=bool(done_reason),
        done_reason=done_reason or UNSET,
        **more,
    )


def _generated(
    name: str,
    text: str,
    *,
    thought: str = "",
    calls: Sequence[wire.ToolCallReply] = (),
    tokens: Sequence[int] = (),
    done_reason: str = "",
    **more: Any,
) -> wire.Generated:
    """An object of a continued prompt, which has no tools to call."""
    return wire.Generated(
        model=name,
        created_at=now(),
        response=text,
        thinking=thought or UNSET,
        done=bool(done_reason),
        done_reason=done_reason or UNSET,
        context=list(tokens) or UNSET,
        **more,
    )

"""OpenAI's API: chat completions and models.

Completions and embeddings are in openai_text, responses in responses.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType

from localllama.engine.api import (
    Done,
    Generate,
    Message,
    TokenLogprob,
    ToolCall,
    Truncated,
)
from localllama.errors import InvalidParameter
from localllama.server import openai_types as wire
from localllama.server import options, reply, responses, tools
from localllama.server.asking import DROP, STOP, Ask, Asker
from localllama.server.bridge import Models
from localllama.server.http import ServerSentEvents, left_out, require_shallow
from localllama.server.openai_common import (
    Head,
    bound,
    choose,
    chosen,
    logprobs_of,
    reason,
    repeated,
    text_of,
    thinks,
    usage,
)
from localllama.server.openai_text import Texts
from localllama.server.operations import Operation
from localllama.server.reply import Said, Thought
from localllama.store import Installed


def operations(asker: Asker, models: Models) -> list[Operation]:
    """Return what this API does."""
    api, texts, events = OpenAI(asker, models), Texts(asker, models), ServerSentEvents()
    return [
        Operation(
            "POST",
            "/v1/chat/completions",
            api.chat,
            wire.Completion,
            wire.ChatRequest,
            wire.Chunk,
            events,
        ),
        Operation(
            "POST",
            "/v1/completions",
            texts.complete,
            wire.TextCompletion,
            wire.CompletionRequest,
            wire.TextCompletion,
            events,
        ),
        responses.operation(asker, models),
        Operation("POST", "/v1/embeddings", texts.embed, wire.Embeddings, wire.EmbeddingsRequest),
        Operation("GET", "/v1/models", api.models, wire.ModelList),
        Operation("GET", "/v1/models/{model:path}", api.model, wire.ModelCard),
    ]


class OpenAI:
    """Answers OpenAI's clients."""

    def __init__(self, asker: Asker, models: Models) -> None:
        self._asker = asker
        self._models = models

    # chat

    async def chat(
        self, request: wire.ChatRequest
    ) -> wire.Completion | AsyncGenerator[wire.Chunk | Truncated, None]:
        """Reply to a conversation."""
        model = self._asker.find(request.model, "chat")
        if not request.messages:
            raise InvalidParameter("messages must not be empty")
        asks = self._chats(model, request)
        head = Head.of("chatcmpl", request.model)
        if request.stream:
            return self._chunks(head, asks, with_usage=request.wants_usage)
        found = await reply.all_of(self._models, asks)
        return head.whole(
            [_choice(index, one) for index, one in enumerate(found)],
            usage=usage([one.done for one in found]),
            truncated=left_out(found[0].truncated),
        )

    def _chats(self, model: Installed, request: wire.ChatRequest) -> list[Ask]:
        parameters, want = chosen(self._asker, request)
        if request.max_completion_tokens is not None:
            parameters["max_tokens"] = request.max_completion_tokens
        sampling = self._asker.sampling(
            model,
            parameters,
            logprobs=options.logprobs(request.logprobs, request.top_logprobs),
            **bound(request.response_format),
        )
        choice = request.tool_choice
        named = (
            choice.function.name if isinstance(choice, wire.Choose) and choice.function else None
        )
        choice = choice if isinstance(choice, str) or choice is None else "function"
        offered, forced = choose(tuple(request.tools or ()), choice, named)
        asked = Generate(
            sampling,
            messages=tuple(map(_message, request.messages)),
            think=thinks(request.reasoning_effort),
            tools=offered,
        )
        policy = DROP if request.truncate else STOP
        ask = self._asker.conversation(model, want, asked, policy=policy, forced=forced)
        return repeated(ask, request.n)

    async def _chunks(
        self, head: Head, asks: list[Ask], *, with_usage: bool
    ) -> AsyncGenerator[wire.Chunk | Truncated, None]:
        over: list[Done] = []
        calls = [0] * len(asks)
        begun: set[int] = set()
        async with aclosing(reply.together(self._models, asks)) as parts:
            async for index, part in parts:
                if isinstance(part, Truncated):
                    if not begun:
                        yield part
                    continue
                role = UNSET if index in begun else "assistant"
                begun.add(index)
                delta, why = wire.Delta(role=role), None
                logprobs: wire.Logprobs | UnsetType = UNSET
                match part:
                    case Said():
                        delta.content = part.text
                        logprobs = _logprobs(part.logprobs) or UNSET
                    case Thought():
                        delta.reasoning = part.text
                    case ToolCall():
                        delta.tool_calls = [_call(part, calls[index])]
                        calls[index] += 1
                    case Done():
                        over.append(part)
                        why = reason(part, calls[index])
                choice = wire.ChunkChoice(
                    index=index, delta=delta, finish_reason=why, logprobs=logprobs
                )
                yield head.chunk([choice])
        if with_usage:
            yield head.chunk([], usage=usage(over))

    # models

    async def models(self) -> wire.ModelList:
        """List the installed models."""
        found = await self._models.run(self._asker.library.store.models)
        records = await self._models.run(self._models.runner.registry.records)
        contexts = {record.label.digest: record.context_length for record in records}
        cards = [_card(model, model.name, contexts.get(model.digest, 0)) for model in found]
        return wire.ModelList(object="list", data=cards)

    async def model(self, name: str) -> wire.ModelCard:
        """Tell of one model."""
        return _card(self._asker.library.find(name), name)


def _message(message: wire.Message) -> Message:
    role = "system" if message.role == "developer" else message.role
    calls = tuple(
        ToolCall(call.function.name, tools.arguments_of(call.function.arguments), call.id)
        for call in message.tool_calls or ()
    )
    for call in calls:
        require_shallow(call.arguments, "a tool call")
    return Message(
        role,
        text_of(message.content),
        thinking=message.reasoning or message.reasoning_content or "",
        tool_calls=calls,
        name=(message.name or "") if role == "tool" else "",
        tool_call_id=message.tool_call_id or "",
    )


def _call(call: ToolCall, index: int | None = None) -> wire.CallOut:
    arguments = msgspec.json.encode(call.arguments).decode()
    return wire.CallOut(
        id=call.id,
        type="function",
        function=wire.FunctionOut(name=call.name, arguments=arguments),
        index=UNSET if index is None else index,
    )


def _choice(index: int, found: reply.Whole) -> wire.Choice:
    calls = [_call(call) for call in found.calls]
    message = wire.MessageOut(
        role="assistant",
        content=found.text if found.text or not calls else None,
        reasoning=found.thought or UNSET,
        tool_calls=calls or UNSET,
    )
    return wire.Choice(
        index=index,
        message=message,
        finish_reason=reason(found.done, len(calls)),
        logprobs=_logprobs(found.logprobs),
    )


def _logprobs(found: Sequence[TokenLogprob]) -> wire.Logprobs | None:
    return wire.Logprobs(content=logprobs_of(found)) if found else None


def _card(model: Installed, name: str, context_length: int = 0) -> wire.ModelCard:
    created = int(datetime.fromisoformat(model.modified_at).timestamp())
    meta = wire.Meta(n_ctx=context_length) if context_length else UNSET
    return wire.ModelCard(id=name, object="model", created=created, owned_by="library", meta=meta)

"""OpenAI's Responses API, without a memory: every request brings its whole conversation."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from time import time

import msgspec

from localllama.engine.api import Done, Generate, Message, ToolCall, Truncated
from localllama.errors import InvalidParameter
from localllama.server import options, reply, tools
from localllama.server import responses_types as wire
from localllama.server.asking import DROP, STOP, Ask, Asker
from localllama.server.bridge import Models
from localllama.server.errors import Unsupported
from localllama.server.http import ServerSentEvents, left_out, require_shallow
from localllama.server.openai_common import bound_to, choose, chosen, logprobs_of, text_of, thinks
from localllama.server.operations import Operation
from localllama.server.reply import Said, Thought
from localllama.store import Installed

_LOGPROBS = "message.output_text.logprobs"  # of ``include``


def operation(asker: Asker, models: Models) -> Operation:
    """Return what this API does."""
    return Operation(
        "POST",
        "/v1/responses",
        Responses(asker, models).create,
        wire.Response,
        wire.ResponsesRequest,
        wire.Event,
        ServerSentEvents(named=True),
    )


class Responses:
    """Answers OpenAI's newer clients."""

    def __init__(self, asker: Asker, models: Models) -> None:
        self._asker = asker
        self._models = models

    async def create(
        self, request: wire.ResponsesRequest
    ) -> wire.Response | AsyncGenerator[wire.Event | Truncated, None]:
        """Reply to a conversation, as a list of items."""
        _refuse_memory(request)
        ask = self._ask(self._asker.find(request.model, "chat"), request)
        events = self._events(_Reply(_begun(request, ask)), ask)
        if request.stream:
            return events
        async with aclosing(events):
            async for event in events:
                last = event
        assert isinstance(last, wire.Event)
        assert isinstance(last.response, wire.Response)
        return last.response

    def _ask(self, model: Installed, request: wire.ResponsesRequest) -> Ask:
        parameters, want = chosen(self._asker, request)
        if request.max_output_tokens is not None:
            parameters["max_tokens"] = request.max_output_tokens
        form = request.text.format if request.text else None
        sampling = self._asker.sampling(
            model,
            parameters,
            logprobs=options.logprobs(
                _LOGPROBS in (request.include or ()) or bool(request.top_logprobs),
                request.top_logprobs,
            ),
            **(bound_to(form.type, form.schema) if form else {}),
        )
        choice = request.tool_choice
        kind, named = (
            (choice.type, choice.name) if isinstance(choice, wire.Choose) else (choice, None)
        )
        offered, forced = choose(tuple(map(_tool, request.tools or ())), kind, named)
        messages = _conversation(request)
        if not messages:
            raise InvalidParameter("input must not be empty")
        asked = Generate(
            sampling,
            messages=tuple(messages),
            think=thinks(request.reasoning.effort if request.reasoning else None),
            tools=offered,
        )
        drops = request.truncate or request.truncation == "auto"
        return self._asker.conversation(
            model, want, asked, policy=DROP if drops else STOP, forced=forced
        )

    async def _events(self, made: _Reply, ask: Ask) -> AsyncGenerator[wire.Event | Truncated, None]:
        begun = False
        truncated: Truncated | None = None
        async with aclosing(reply.parts(self._models, ask)) as parts:
            async for part in parts:
                if isinstance(part, Truncated):
                    truncated = reply.more(truncated, part)
                    yield part
                    continue
                if not begun:
                    begun = True
                    yield made.event("response.created", response=made.response)
                    yield made.event("response.in_progress", response=made.response)
                if isinstance(part, Done):
                    made.response.truncated = left_out(truncated)
                    for event in made.finish(part):
                        yield event
                else:
                    for event in made.add(part):
                        yield event


class _Reply:
    """A reply that grows, one item open at a time, and the events that tell of it."""

    def __init__(self, response: wire.Response) -> None:
        self.response = response
        self._events = 0
        self._item: wire.MessageItem | wire.ReasoningItem | None = None  # the one that is open

    def event(self, kind: str, **fields: object) -> wire.Event:
        """Return the next event."""
        self._events += 1
        known = {"type": kind, "sequence_number": self._events - 1, **fields}
        return wire.Event(**known)  # type: ignore[arg-type]  # one struct for all events

    def add(self, part: Said | Thought | ToolCall) -> Iterator[wire.Event]:
        """Yield what a part adds."""
        if isinstance(part, ToolCall):
            yield from self._close("completed")
            yield from self._call(part)
            return
        if isinstance(part, Said):
            if not isinstance(self._item, wire.MessageItem):
                yield from self._close("completed")
                yield from self._open(_message())
            yield from self._said(part)
        else:
            if not isinstance(self._item, wire.ReasoningItem):
                yield from self._close("completed")
                yield from self._open(_reasoning())
            yield from self._thought(part)

    def finish(self, done: Done) -> Iterator[wire.Event]:
        """Yield what ends the reply; the last event has all of it."""
        response, cut = self.response, done.reason in ("length", "context")
        response.status = "incomplete" if cut else "completed"
        yield from self._close(response.status)
        if cut:
            response.incomplete_details = wire.Incomplete(reason="max_output_tokens")
        response.usage = _usage(done)
        yield self.event(f"response.{response.status}", response=response)

    @property
    def _index(self) -> int:
        return len(self.response.output) - 1

    def _said(self, part: Said) -> Iterator[wire.Event]:
        assert isinstance(self._item, wire.MessageItem)
        content, logprobs = self._item.content[0], logprobs_of(part.logprobs)
        content.text += part.text
        content.logprobs += logprobs
        yield self._inside("response.output_text.delta", delta=part.text, logprobs=logprobs)

    def _thought(self, part: Thought) -> Iterator[wire.Event]:
        assert isinstance(self._item, wire.ReasoningItem)
        self._item.content[0].text += part.text
        yield self._inside("response.reasoning_text.delta", delta=part.text)

    def _call(self, call: ToolCall) -> Iterator[wire.Event]:
        arguments = msgspec.json.encode(call.arguments).decode()
        item = wire.CallItem(
            id=_id("fc"), status="in_progress", call_id=call.id, name=call.name, arguments=""
        )
        self.response.output.append(item)
        place = {"output_index": self._index, "item_id": item.id}
        kind = "response.function_call_arguments"
        yield self.event("response.output_item.added", output_index=self._index, item=item)
        yield self.event(f"{kind}.delta", delta=arguments, **place)
        yield self.event(f"{kind}.done", arguments=arguments, name=call.name, **place)
        item.arguments, item.status = arguments, "completed"
        yield self.event("response.output_item.done", output_index=self._index, item=item)

    def _open(self, item: wire.MessageItem | wire.ReasoningItem) -> Iterator[wire.Event]:
        self._item = item
        self.response.output.append(item)
        bare = msgspec.structs.replace(item, content=[])
        yield self.event("response.output_item.added", output_index=self._index, item=bare)
        yield self._inside("response.content_part.added", part=item.content[0])

    def _close(self, status: str) -> Iterator[wire.Event]:
        item, part = self._item, self._item.content[0] if self._item else None
        if item is None or part is None:
            return
        if isinstance(part, wire.OutputText):
            logprobs = part.logprobs
            yield self._inside("response.output_text.done", text=part.text, logprobs=logprobs)
        else:
            yield self._inside("response.reasoning_text.done", text=part.text)
        yield self._inside("response.content_part.done", part=part)
        item.status, self._item = status, None
        yield self.event("response.output_item.done", output_index=self._index, item=item)

    def _inside(self, kind: str, **fields: object) -> wire.Event:
        """Return an event about the only content of the open item."""
        assert self._item is not None
        place = {"item_id": self._item.id, "output_index": self._index, "content_index": 0}
        return self.event(kind, **place, **fields)


def _refuse_memory(request: wire.ResponsesRequest) -> None:
    """Raise Unsupported for what needs a server that keeps replies."""
    for name in ("store", "background", "previous_response_id", "conversation", "prompt"):
        if getattr(request, name):
            raise Unsupported(
                f"{name} is not supported",
                "nothing is kept here: send the whole input",
                parameter=name,
            )


def _begun(request: wire.ResponsesRequest, ask: Ask) -> wire.Response:
    sampling = ask.request.sampling
    form = request.text.format if request.text and request.text.format else None
    return wire.Response(
        id=_id("resp"),
        object="response",
        created_at=int(time()),
        model=request.model,
        status="in_progress",
        output=[],
        usage=None,
        error=None,
        incomplete_details=None,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        parallel_tool_calls=True,
        previous_response_id=None,
        store=False,
        temperature=sampling.temperature,
        text=wire.TextConfig(format=form or wire.Format(type="text")),
        tool_choice=request.tool_choice or "auto",
        tools=request.tools or [],
        top_p=sampling.top_p,
        truncation="auto" if ask.policy == DROP else "disabled",
    )


def _conversation(request: wire.ResponsesRequest) -> list[Message]:
    """Return the messages that a request's items are, its instructions first."""
    items = request.input
    messages = [Message("user", items)] if isinstance(items, str) else _messages(items)
    if request.instructions:
        first, rest = request.instructions, messages
        if messages and messages[0].role == "system":
            first, rest = f"{first}\n\n{messages[0].content}", messages[1:]
        messages = [Message("system", first), *rest]
    return messages


def _messages(items: Sequence[wire.Item]) -> list[Message]:
    """Return messages: what the assistant thought, said and called in a row is one."""
    messages: list[Message] = []
    for item in items:
        message = _message_of(item)
        if message.role == "assistant" and messages and messages[-1].role == "assistant":
            before = messages.pop()
            message = Message(
                "assistant",
                "\n".join(filter(None, (before.content, message.content))),
                thinking=before.thinking + message.thinking,
                tool_calls=before.tool_calls + message.tool_calls,
            )
        messages.append(message)
    return messages


def _message_of(item: wire.Item) -> Message:
    if item.type == "message" and item.role:
        role = "system" if item.role == "developer" else item.role
        return Message(role, text_of(item.content))
    if item.type == "reasoning":
        parts = [*(item.summary or ()), *(item.content or ())]
        texts = (str(part.get("text", "")) for part in parts if isinstance(part, dict))
        return Message("assistant", "", thinking="".join(texts))
    if item.type == "function_call" and item.name:
        arguments = tools.arguments_of(item.arguments or "")
        require_shallow(arguments, "a function_call")
        call = ToolCall(item.name, arguments, item.call_id or "")
        return Message("assistant", "", tool_calls=(call,))
    if item.type == "function_call_output" and item.call_id:
        return Message("tool", text_of(item.output), tool_call_id=item.call_id)
    raise InvalidParameter(
        f"invalid request: an input item of the type {item.type[:40]!r}, or a part of it missing",
        "known: message, reasoning, function_call and function_call_output",
    )


def _tool(tool: wire.Tool) -> tools.Tool:
    """Return a tool as templates know it."""
    if tool.type != "function" or not tool.name:
        raise InvalidParameter(
            f"invalid request: a tool of the type {tool.type[:40]!r}",
            "only functions with a name are supported",
        )
    function = {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


def _message() -> wire.MessageItem:
    content = wire.OutputText(text="", annotations=[], logprobs=[])
    return wire.MessageItem(
        id=_id("msg"), status="in_progress", role="assistant", content=[content]
    )


def _reasoning() -> wire.ReasoningItem:
    content = wire.ReasoningText(text="")
    return wire.ReasoningItem(id=_id("rs"), status="in_progress", summary=[], content=[content])


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def _usage(done: Done) -> wire.Usage:
    usage = done.usage
    return wire.Usage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=wire.InputDetails(cached_tokens=usage.cached_tokens),
        output_tokens=usage.completion_tokens,
        # Thoughts are not counted apart.
        output_tokens_details=wire.OutputDetails(reasoning_tokens=0),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )

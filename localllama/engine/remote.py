"""A model at an endpoint, as an engine: streams like a worker's, so that front ends need not know.

Knows what of a request OpenAI's API has words for; endpoint.py knows how it is sent.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import msgspec

from localllama import endpoints
from localllama.config import Config
from localllama.engine import grammar
from localllama.engine import sampling as parameters
from localllama.engine.api import (
    Cancel,
    Done,
    Event,
    Further,
    Message,
    Ready,
    Sampling,
    Text,
    Timings,
    Usage,
)
from localllama.engine.endpoint import Chunk, Counts, Delta, Served, Server
from localllama.engine.registry import Label
from localllama.errors import ContextFull, EngineError, InvalidParameter, LocalLlamaError
from localllama.names import ModelName
from localllama.store import Installed

if TYPE_CHECKING:
    from localllama.download.web import Web

_ALWAYS = ("temperature", "top_p")  # servers have other defaults than this program shows
_WHERE_SET = ("presence_penalty", "frequency_penalty", "seed", "stop")
_EXTRA = ("top_k", "min_p")  # not OpenAI's
# What the servers that take those call themselves; "library" is Ollama, which ignores them, and
# localllama.
_TAKE_EXTRA = ("llamacpp", "vllm", "library")
_LOAD_LATE = ("library",)  # and know their context length only then
SENT = (*_ALWAYS, *_WHERE_SET, *_EXTRA, "max_tokens", "logit_bias")
_CHARACTERS_A_TOKEN = 4  # of English; only to see that a prompt is too long for a known context

# Servers part thinking from replies, and do not expect it back; their templates leave it out too.
_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)

_News = Chunk | LocalLlamaError | Cancel | None  # None = the end


def listed(endpoint: str, config: Config) -> list[Installed]:
    """Ask an endpoint for its models, unless the configuration names them.

    Raises ModelNotFound for an unknown endpoint, Offline, NetworkError.
    """
    endpoints.require(endpoint, config)
    settings = config.endpoints[endpoint]
    if settings.models:
        return endpoints.of(endpoint, settings.models, config)
    served = Server(endpoint, settings, config.network).models()
    models = endpoints.of(endpoint, (one.id for one in served), config)
    told = ({"context_length": one.context} for one in served)
    return [replace(model, info=info) for model, info in zip(models, told, strict=True)]


def find(name: ModelName, config: Config) -> Installed:
    """Return the model of that name; @desktop alone is the only one that desktop has.

    Raises ModelNotFound, InvalidName, and what listed() raises.
    """
    if name.tag:
        return endpoints.find(name, config)
    found = listed(name.repo, config)
    if len(found) != 1:
        some = ", ".join(model.name for model in found[:10])
        raise InvalidParameter(
            f"{name} has {len(found)} models", f"choose one: {some}" if some else "name one"
        )
    return found[0]


def open(model: Installed, name: ModelName, config: Config) -> RemoteEngine:
    """Return the engine of an endpoint's model; asks whether the endpoint is there.

    Raises ModelNotFound, Offline, NetworkError.
    """
    endpoints.require(name.repo, config)
    server = Server(name.repo, config.endpoints[name.repo], config.network)
    return RemoteEngine(server, model, name.tag, server.models())


class RemoteEngine:
    """A model of ``server``, which knows it as ``id``; each reply has a connection of its own."""

    def __init__(self, server: Server, model: Installed, id: str, served: Sequence[Served]) -> None:
        self._server = server
        self._id = id
        context = server.settings.context_length or _context(id, served)
        self._extra = any(one.owned_by in _TAKE_EXTRA for one in served)
        self._asks_again = any(one.owned_by in _LOAD_LATE for one in served)
        self._inboxes: set[SimpleQueue[_News]] = set()
        self.ready = Ready(context, 0, "the endpoint's", 0.0)  # 0 = unknown
        self.alive = True  # each reply finds out by itself
        self.label = Label(
            name=model.name,
            endpoint=server.name,
            explanation=f"{model.name} is not local: what you write goes to {model.source}",
        )

    def stream(
        self,
        sampling: Sampling,
        *,
        messages: Sequence[Message] = (),
        reserve_tokens: int = 0,
        think: bool | None = None,
        continue_last: bool = False,
        **further: Unpack[Further],
    ) -> Generator[Event, None, None]:
        """Yield what comes of a reply to ``messages``: Text, at the end Done.

        Closing the stream ends the connection. What is said of KV states means nothing here.
        Raises InvalidParameter now; ContextFull, RemoteNotFound, NetworkError and EngineError
        while iterating.
        """
        parameters.validate(sampling)
        if continue_last:
            raise InvalidParameter(
                f"@{self._server.name} cannot go on with a reply that was cut",
                "let it reply again, or ask it to go on",
            )
        body = _request(self._id, sampling, messages, think, extra=self._extra)
        return self._answers(body, Reading(sampling), reserve_tokens)

    def cancel(self) -> None:
        """End the running replies with Done("cancelled"); from any thread or a signal handler."""
        for inbox in list(self._inboxes):
            inbox.put(Cancel())

    def close(self) -> None:
        """Nothing is held between replies."""
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _answers(
        self, body: dict[str, Any], reading: Reading, reserve_tokens: int
    ) -> Generator[Event, None, None]:
        needed = self._require_room(body, reserve_tokens)
        web = self._server.web()
        inbox: SimpleQueue[_News] = SimpleQueue()
        self._inboxes.add(inbox)
        # In a thread: nothing else ends a wait for a name or a connection at once.
        threading.Thread(target=self._follow, args=(web, body, inbox), daemon=True).start()
        try:
            while isinstance(news := inbox.get(), Chunk):
                yield from reading.take(news)
            if isinstance(news, ContextFull):
                news.needed_tokens = news.needed_tokens or needed
                self._learn(news.available_tokens)
            if isinstance(news, LocalLlamaError):
                raise news
            context = self.ready.context_length
            yield reading.done(context) if news is None else reading.done(context, "cancelled")
        finally:
            self._inboxes.discard(inbox)
            web.abort()

    def _follow(self, web: Web, body: dict[str, Any], inbox: SimpleQueue[_News]) -> None:
        with web:
            try:
                for chunk in self._server.chat(web, body):
                    inbox.put(chunk)
                self._ask_again()
                inbox.put(None)
            except LocalLlamaError as error:
                inbox.put(error)
            finally:  # read only if neither came: nobody shall wait for ever
                inbox.put(EngineError("the reply broke off", "please report it as a bug"))

    def _require_room(self, body: dict[str, Any], reserve_tokens: int) -> int:
        """Return about how many tokens prompt and reply need.

        Raises ContextFull where there are not so many: some servers would cut the prompt silently.
        """
        context = self.ready.context_length
        characters = sum(len(message["content"]) for message in body["messages"])
        needed = characters // _CHARACTERS_A_TOKEN + reserve_tokens
        if context and needed > context:
            raise ContextFull(
                f"the prompt needs about {needed} tokens, the context holds {context}",
                "shorten it, or begin a new chat",
                needed_tokens=needed,
                available_tokens=context,
            )
        return needed

    def _ask_again(self) -> None:
        """Learn the context length, once, of a server that has loaded the model by now."""
        if self._asks_again and not self.ready.context_length:
            self._asks_again = False
            with suppress(LocalLlamaError):
                self._learn(_context(self._id, self._server.models()))

    def _learn(self, context_length: int) -> None:
        if not self.ready.context_length:
            self.ready = msgspec.structs.replace(self.ready, context_length=context_length)


class Reading:
    """One reply: what came of it so far, and when."""

    def __init__(self, asked: Sampling) -> None:
        self._asked = asked
        self._counts = Counts()
        self._finish = ""
        self._begun_at = self._last_at = monotonic()
        self._first_at: float | None = None
        self._thinking = False

    def take(self, chunk: Chunk) -> Generator[Text, None, None]:
        """Yield what is new; thinking between the marks that local models put there.

        Raises EngineError for a reply that was filtered.
        """
        self._counts = chunk.usage or self._counts
        for choice in (chunk.choices or ())[:1]:
            for text in self._texts(choice.delta or Delta()):
                self._last_at = monotonic()
                self._first_at = self._first_at or self._last_at
                yield Text(text)
            self._finish = choice.finish_reason or self._finish
        if self._finish == "content_filter":
            raise EngineError(
                "the endpoint's filter ended the reply", "what came of it is kept; ask otherwise"
            )

    def done(self, context_length: int, reason: str = "") -> Done:
        """Return the end of the reply, as the endpoint gave it unless for another ``reason``."""
        counts, begun = self._counts, self._begun_at
        prompt, reply = counts.prompt_tokens or 0, counts.completion_tokens or 0
        cached = (counts.prompt_tokens_details or {}).get("cached_tokens") or 0
        first = (self._first_at or self._last_at) - begun
        timings = Timings(
            prefill_seconds=first,
            decode_seconds=self._last_at - begun - first,
            total_seconds=monotonic() - begun,
            first_token_seconds=first,
        )
        if not reason and self._finish == "length":
            full = self._asked.max_tokens <= 0 and 0 < context_length <= prompt + reply
            reason = "context" if full else "length"
        return Done(reason or "stop", Usage(prompt, cached, reply), timings, self._asked.seed)

    def _texts(self, delta: Delta) -> Generator[str, None, None]:
        if thought := delta.reasoning_content or delta.reasoning:
            opens = self._first_at is None
            self._thinking = self._thinking or opens
            yield f"<think>{thought}" if opens else thought
        if delta.content:
            closes, self._thinking = self._thinking, False
            yield f"</think>{delta.content}" if closes else delta.content


def _context(id: str, served: Sequence[Served]) -> int:
    """Return the context length that is told of a model, 0 = none."""
    names = (id, f"{id}:latest")  # as Ollama and localllama complete them
    return next((one.context for one in served if one.id in names), 0)


def _said(message: Message) -> str:
    if message.role != "assistant":
        return message.content
    thought = _THOUGHT.match(message.content)
    return message.content[thought.end() :] if thought else message.content


def _request(
    id: str, sampling: Sampling, messages: Sequence[Message], think: bool | None, *, extra: bool
) -> dict[str, Any]:
    """Return what to ask for: what OpenAI's API has words for, and ``extra`` parameters."""
    default = Sampling()
    given = [name for name in _WHERE_SET if getattr(sampling, name) != getattr(default, name)]
    body: dict[str, Any] = {
        "model": id,
        "messages": [{"role": m.role, "content": _said(m)} for m in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: getattr(sampling, name) for name in (*_ALWAYS, *given)},
    }
    if extra:
        body |= {name: getattr(sampling, name) for name in _EXTRA}
    if sampling.max_tokens > 0:
        body["max_tokens"] = sampling.max_tokens
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if think is not None:
        body["reasoning_effort"] = "medium" if think else "none"
    if sampling.schema:
        schema = {"name": "reply", "schema": msgspec.json.decode(sampling.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif sampling.grammar == grammar.JSON:
        body["response_format"] = {"type": "json_object"}
    elif sampling.grammar:
        raise InvalidParameter("an endpoint takes no grammar", "give it a JSON Schema instead")
    return body

"""What all APIs ask for in the end: a model, how to load it, and a request for its engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import msgspec

from localllama.chat.session import Session
from localllama.config import Config
from localllama.engine import sampling
from localllama.engine.api import Event, Further, Generate, Message, Ready, Sampling
from localllama.errors import InvalidParameter
from localllama.server import options, thinking, tools
from localllama.server.bridge import Lane
from localllama.server.http import require_shallow
from localllama.server.library import Library, thinks
from localllama.store import Installed
from localllama.wants import Want, parameter_layers

DROP, STOP, SHIFT = "drop-oldest", "stop", "shift"  # chat.session.POLICIES
_SHIFTED_CONTEXTS = 10  # a reply that could go on for ever ends after so many; as in Ollama


@dataclass(frozen=True, slots=True)
class Ask:
    """A request in the engine's terms.

    ``offered`` are the names of the tools whose calls count as such; ``thinks`` says that thoughts
    come apart from the answer, ``thinking`` that the reply begins inside one.
    """

    model: Installed
    want: Want
    request: Generate
    policy: str = DROP
    offered: tuple[str, ...] = ()
    thinks: bool = False
    thinking: bool = False

    def with_request(self, request: Generate) -> Ask:
        """Return it with another request for the engine."""
        return replace(self, request=request)

    def begin(self, lane: Lane) -> Iterator[Event]:
        """Return the events of the reply; nothing of it is kept on the disk."""
        request = msgspec.structs.replace(self.request, snapshot=False)
        if request.shift or self.policy == SHIFT:
            request = bounded(request, _SHIFTED_CONTEXTS * lane.engine.ready.context_length)
        if not request.messages:
            return lane.hold(lane.engine.generate(request))
        first, *rest = request.messages
        system, said = (first.content, rest) if first.role == "system" else ("", [first, *rest])
        session = Session(_Model(lane, request), system=system, messages=said, policy=self.policy)
        return session.reply(request.sampling, think=request.think)


class _Model:
    """What a session sees of a lane: a model that knows the rest of the request."""

    def __init__(self, lane: Lane, request: Generate) -> None:
        self._lane = lane
        self._request = request

    @property
    def ready(self) -> Ready:
        return self._lane.engine.ready

    def cancel(self) -> None:
        self._lane.cancel()

    def stream(
        self,
        sampling: Sampling,
        *,
        messages: tuple[Message, ...],
        reserve_tokens: int = 0,
        think: bool | None = None,
        continue_last: bool = False,
        **further: Unpack[Further],
    ) -> Iterator[Event]:
        request = msgspec.structs.replace(
            self._request,
            messages=messages,
            reserve_tokens=reserve_tokens,
            continue_last=continue_last,
            keep_messages=further.get("keep_messages", 0),
            shift=further.get("shift", False),
        )
        return self._lane.hold(self._lane.engine.generate(request))


class Asker:
    """Makes an Ask of what an API was given."""

    def __init__(self, library: Library, config: Config) -> None:
        self.library = library
        self._config = config

    def find(self, name: str, verb: str) -> Installed:
        """Return the model, which can do ``verb``.

        Raises InvalidName, ModelNotFound, InvalidParameter.
        """
        if not name:
            raise InvalidParameter("model is required")
        model = self.library.find(name)
        if verb != "embeddings" and "completion" not in self.library.capabilities(model):
            raise InvalidParameter(f'"{name}" does not support {verb}')
        return model

    def sampling(self, model: Installed, chosen: Mapping[str, object], **more: object) -> Sampling:
        """Return the parameters that count: the request's, then the model's layers.

        ``more`` are fields of Sampling that are no parameters. Raises InvalidParameter.
        """
        layers = parameter_layers(model, self._config)
        resolved = sampling.resolve([(sampling.REQUEST, chosen), *layers]).sampling
        return msgspec.structs.replace(resolved, **more)

    def want(self, loading: Mapping[str, int], keep_alive: str | float | None) -> Want:
        """Return how to load; raises InvalidParameter for a keep_alive that is no duration."""
        default = self._config.run.keep_alive_seconds
        seconds = default if keep_alive is None else options.duration(keep_alive)
        return Want(
            context_length=loading.get("num_ctx", 0),
            gpu_layers=loading.get("num_gpu", -1),
            threads=loading.get("num_thread", 0),
            keep_alive_seconds=seconds,
            serves_many=True,
        )

    def think(self, model: Installed, asked: bool | str | None) -> bool | None:
        """Return what the template is told; raises InvalidParameter where nothing can think."""
        if isinstance(asked, str) and asked not in ("low", "medium", "high"):
            raise InvalidParameter(
                f"invalid think value: {asked[:40]!r}", 'use "high", "medium", "low", true or false'
            )
        if asked and "thinking" not in self.library.capabilities(model):
            raise InvalidParameter(f'"{model.name}" does not support thinking')
        return None if asked is None else bool(asked)

    def conversation(
        self,
        model: Installed,
        want: Want,
        request: Generate,
        *,
        policy: str = DROP,
        forced: str | None = None,
    ) -> Ask:
        """Return the Ask of ``request.messages``; ``forced`` "" = call any tool, a name = that one.

        What the model brings along comes first: its messages, and its system prompt where the
        conversation has none. Raises InvalidParameter.
        """
        require_shallow(request.tools, "a tool")
        names = tuple(tools.names_of(request.tools))
        template = self.library.template(model)
        messages = [*own_messages(model), *request.messages]
        if model.system and messages[0].role != "system":
            messages.insert(0, Message("system", model.system))
        if names and "tools" not in template:
            messages = _instructed(messages, tools.instructions(request.tools))
        chosen = request.sampling
        if forced is not None:
            call = tools.schema(request.tools, forced)
            chosen = msgspec.structs.replace(chosen, schema=call, grammar="")
        continues = messages[-1].role == "assistant"
        thinking_apart = thinks(template) and forced is None
        return Ask(
            model,
            want,
            msgspec.structs.replace(
                request, sampling=chosen, messages=tuple(messages), continue_last=continues
            ),
            policy=policy,
            offered=names,
            thinks=thinking_apart,
            thinking=thinking_apart and thinking.opens(template) and not continues,
        )


def bounded(request: Generate, tokens: int) -> Generate:
    """Return a request whose reply has at most so many tokens."""
    limit = request.sampling.max_tokens
    limit = tokens if limit < 0 else min(limit, tokens)
    sampling = msgspec.structs.replace(request.sampling, max_tokens=limit)
    return msgspec.structs.replace(request, sampling=sampling)


def own_messages(model: Installed) -> list[Message]:
    """Return the messages that every conversation with a model begins with."""
    return [Message(message["role"], message["content"]) for message in model.messages]


def _instructed(messages: Sequence[Message], text: str) -> list[Message]:
    """Return the conversation with ``text`` at the end of its system prompt."""
    first, *rest = messages
    if first.role != "system":
        return [Message("system", text), *messages]
    return [Message("system", f"{first.content}\n\n{text}"), *rest]

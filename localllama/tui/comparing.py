"""One side of a comparison: a model with parameters of its own replies in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from localllama.config import Config
from localllama.engine import sampling
from localllama.engine.api import Done, Message, Text
from localllama.errors import DoesNotFit, LocalLlamaError
from localllama.store import Installed
from localllama.tui.models import Loaded, Opener
from localllama.wants import Want, parameter_layers


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model and what comes before its own parameters."""

    model: Installed
    parameters: Mapping[str, object] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Both in words."""
        own = ", ".join(f"{name} {value}" for name, value in self.parameters.items())
        name = self.model.name
        return " · ".join(part for part in (name, self.model.variant, own) if part)


class Side:
    """One reply to one prompt; ``changed`` is called in its thread at every event."""

    def __init__(
        self,
        contestant: Contestant,
        opener: Opener,
        config: Config,
        changed: Callable[[Side], None],
    ) -> None:
        self.state = "loading"
        self.told = False  # the app knows that there is more to draw
        self._contestant = contestant
        self._opener = opener
        self._config = config
        self._changed = changed
        self._parts: list[str] = []
        self._engine: Loaded | None = None
        self._stopped = False
        self._thread: threading.Thread | None = None

    @property
    def text(self) -> str:
        """The reply as far as it is there."""
        return "".join(self._parts)

    @property
    def busy(self) -> bool:
        """Whether there is more to come."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, prompt: str, other: Side | None) -> None:
        """Begin; where both do not fit into memory at once, ``other`` goes first."""
        self._thread = threading.Thread(target=self._run, args=(prompt, other), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the reply, and keep what came of it."""
        self._stopped = True
        if self._engine is not None:
            self._engine.cancel()

    def _run(self, prompt: str, other: Side | None) -> None:
        try:
            with closing(self._open(other)) as self._engine:
                self._reply(self._engine, prompt)
        except LocalLlamaError as error:
            self.state = f"{error.message}. {error.hint}".strip()
        self._changed(self)

    def _open(self, other: Side | None) -> Loaded:
        model = self._contestant.model
        try:
            return self._opener.reach(model, Want())
        except DoesNotFit:
            if other is None or other._thread is None:
                raise
            self.state = "waits for the other one: both do not fit into memory"
            self._changed(self)
            other._thread.join()
            return self._opener.reach(model, Want())

    def _reply(self, engine: Loaded, prompt: str) -> None:
        model, own = self._contestant.model, self._contestant.parameters
        parameters = sampling.resolve([("compare", own), *parameter_layers(model, self._config)])
        system = (Message("system", model.system),) if model.system else ()
        self.state = "reading"
        self._changed(self)
        request = (Message("user", prompt),)
        for event in engine.stream(parameters.sampling, messages=(*system, *request)):
            if self._stopped:
                engine.cancel()  # it was asked for before there was a stream
            if isinstance(event, Text):
                self._parts.append(event.text)
                self.state = "replying"
            elif isinstance(event, Done):
                self.state = _summary(event)
            self._changed(self)


def _summary(done: Done) -> str:
    tokens, timings = done.usage.completion_tokens, done.timings
    rate = f", {tokens / timings.decode_seconds:.1f} tok/s" if timings.decode_seconds else ""
    first = f", first token {timings.first_token_seconds:.2f} s" if tokens and rate else ""
    how = {"stop": "", "length": ", cut", "cancelled": ", stopped"}.get(done.reason, "")
    return f"{tokens} tokens{rate}{first}{how}"

"""The loaded model of the app: opened in a thread of its own, so that nobody waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from localllama.chat.conversation import LoadedModel
from localllama.chat.session import Model
from localllama.config import Config
from localllama.engine.registry import Label, Record
from localllama.errors import EngineError, LocalLlamaError
from localllama.gguf_file import ModelInfo
from localllama.hardware import Hardware
from localllama.plan import Plan
from localllama.runner import Running
from localllama.store import Installed
from localllama.wants import Want


class Loaded(Model, Protocol):
    """An engine that can be left, and says where its model is."""

    @property
    def label(self) -> Label:
        """What it holds, or stands for."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it can still answer."""
        ...

    def close(self) -> None:
        """Leave the worker, which stays warm for a while."""
        ...


class Opener(Protocol):
    """Opens models and knows the open ones, as the Runner does."""

    config: Config

    @property
    def probe(self) -> Callable[[], Hardware]:
        """Asks what the machine has at this moment."""
        ...

    def reach(
        self, model: Installed, want: Want, *, on_progress: Callable[[float], None] | None = None
    ) -> Loaded:
        """Return ``model`` loaded, or its endpoint; raises what that raises."""
        ...

    def forget(self, conversation: str) -> None:
        """Remove what is on disk of what was computed of a conversation."""
        ...

    def running(self) -> list[Running]:
        """Return the live workers."""
        ...

    def stop(self, record: Record) -> None:
        """End a worker."""
        ...

    def machine(self) -> Hardware:
        """Return what a model could have."""
        ...

    def preview(self, model: Installed, want: Want, machine: Hardware) -> tuple[ModelInfo, Plan]:
        """Return a model's header and how it would be loaded; raises DoesNotFit, BadFile."""
        ...


class _Leaving(Exception):
    """Nobody waits for the model any more."""


class Models:
    """At most one model at a time; ``changed`` is called in any thread when something happens."""

    def __init__(self, opener: Opener, changed: Callable[[], None]) -> None:
        self._opener = opener
        self._changed = changed
        self._lock = threading.Lock()
        self._turn = 0  # of the latest choice
        self.installed: Installed | None = None
        self.want = Want()
        self.outdated = False  # another context or KV type is wanted than what is loaded
        self.fraction = 0.0  # of the model that is loaded
        self.error: LocalLlamaError | None = None
        self._engine: Future[Loaded] = Future()

    @property
    def engine(self) -> Loaded | None:
        """The loaded model, if it is there by now."""
        engine = self._engine
        return engine.result() if engine.done() and engine.exception() is None else None

    @property
    def loading(self) -> bool:
        """Whether a model is on its way."""
        return self.installed is not None and not self._engine.done()

    def choose(self, installed: Installed, want: Want) -> None:
        """Begin to load a model, and leave the one before."""
        before = self.leave()
        with self._lock:
            self._turn += 1
            self.installed, self.want = installed, want
            self.fraction, self.error, self.outdated = 0.0, None, False
            self._engine = Future()
            arguments = (self._turn, self._engine, installed, want, before)
        # A daemon: to read a large file takes long, and leaving the app should not.
        threading.Thread(target=self._load, args=arguments, daemon=True).start()
        self._changed()

    def wait(self) -> LoadedModel:
        """Return the model when it is loaded; raises what loading raises."""
        engine, installed = self._engine, self.installed
        assert installed is not None
        try:
            return LoadedModel(engine.result(), installed.name, installed.digest)
        except _Leaving as error:
            message = "another model was chosen before this one was loaded"
            raise EngineError(message, "Ctrl+R tries again") from error

    @property
    def broken(self) -> bool:
        """Whether it could not be loaded, or its process has ended."""
        return self.error is not None or (self.engine is not None and not self.engine.alive)

    def again(self) -> None:
        """Load the same model once more."""
        if self.installed is not None:
            self.choose(self.installed, self.want)

    def forget(self, conversation: str) -> None:
        """Leave nothing on the disk of what was computed of a chat."""
        self._opener.forget(conversation)

    def leave(self) -> Loaded | None:
        """Give the model up; returns what is loaded, to be closed."""
        with self._lock:
            self._turn += 1  # what is being loaded stops at its next report
            engine = self.engine
            self._engine = Future()
            self.installed = None
        return engine

    def _load(
        self,
        turn: int,
        engine: Future[Loaded],
        installed: Installed,
        want: Want,
        before: Loaded | None,
    ) -> None:
        def progress(fraction: float) -> None:
            if turn != self._turn:
                raise _Leaving
            self.fraction = fraction
            self._changed()

        try:
            if before is not None:
                before.close()  # first: two models may not fit
            opened = self._opener.reach(installed, want, on_progress=progress)
        except (LocalLlamaError, _Leaving) as error:
            if isinstance(error, LocalLlamaError) and turn == self._turn:
                self.error = error
            engine.set_exception(error)
        else:
            engine.set_result(opened)
            if turn != self._turn:
                opened.close()
        self._changed()

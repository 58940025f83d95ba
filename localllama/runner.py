"""Opens installed models: joins a worker that holds the model already, or plans and starts one.

Workers are shared by all front ends of this user and stay warm for the keep-alive time; idle ones
make room for a model that does not fit beside them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from localllama import hardware, plan
from localllama.config import Config
from localllama.engine import sampling, snapshots
from localllama.engine.api import LoadOptions, SnapshotOptions
from localllama.engine.client import Engine
from localllama.engine.protocol import Status
from localllama.engine.registry import Label, Record, Registry
from localllama.errors import DoesNotFit, StoreError, WorkerDied
from localllama.files import storing
from localllama.paths import Paths
from localllama.store import Installed, Store

_SLOTS = 4  # replies at once from one worker: they share its cells, so that more cost nothing
_ATTEMPTS = 3  # a worker may end in the moment in which it is joined


@dataclass(frozen=True, slots=True)
class Want:
    """What a front end asks for beyond the model; 0, -1 and None leave it to the program."""

    context_length: int = 0
    gpu_layers: int = -1
    threads: int = 0
    template: str = ""  # Jinja source, or the name of a built-in one
    force: bool = False  # load although the estimate says that it does not fit
    keep_alive_seconds: float | None = None  # after the last client; negative = for ever


@dataclass(frozen=True, slots=True)
class Running:
    """A live worker and what it is doing; None when it does not answer."""

    record: Record
    status: Status | None


def parameter_layers(model: Installed, config: Config) -> list[tuple[str, dict[str, object]]]:
    """Return the sampling parameters below a chat's own, the most important layer first."""
    return [
        ("model", sampling.known(model.parameters)),
        ("config.toml", dict(config.parameters)),
        ("GGUF", sampling.known(model.info.get("sampling") or {})),
        ("catalog", sampling.known(model.catalog_parameters)),
    ]


class Runner:
    """The workers for the models of one store."""

    def __init__(
        self,
        store: Store,
        config: Config,
        paths: Paths,
        *,
        memory: Callable[[], hardware.Memory] = hardware.memory,
    ) -> None:
        self.store = store
        self.config = config
        self.paths = paths
        self._memory = memory
        self.registry = Registry(paths.runtime, paths.log)

    def open(
        self, model: Installed, want: Want, *, on_progress: Callable[[float], None] | None = None
    ) -> Engine:
        """Return ``model`` loaded; ``on_progress`` gets fractions from 0 to 1 while it is not.

        Raises DoesNotFit before anything is loaded, BadFile for a damaged model, EngineError when
        llama.cpp refuses it.
        """
        attempt = 0
        while True:
            attempt += 1
            with self.registry.lock():  # two that start at once end with one worker
                engine = self._join(model, want) or self._start(model, want)
            try:
                return engine.wait_ready(on_progress)
            except WorkerDied:
                if not engine.joined or attempt == _ATTEMPTS:
                    raise

    def running(self) -> list[Running]:
        """Return the live workers of this user, the latest started first."""
        found = []
        for record in self.registry.records():
            try:
                status = self.registry.status(record)
            except TimeoutError:
                found.append(Running(record, None))
            else:
                if status is not None:
                    found.append(Running(record, status))
        return sorted(found, key=lambda running: running.record.started_at, reverse=True)

    def forget(self, conversation: str) -> None:
        """Remove what is on disk of the KV states of a conversation; workers write no more of it.

        Raises StoreError.
        """
        for record in self.registry.records():
            with suppress(TimeoutError):
                self.registry.forget_conversation(record, conversation)
        with storing(self.paths.snapshots):
            snapshots.forget(self.paths.snapshots, conversation)

    def stop(self, record: Record) -> None:
        """End a worker at once, whoever uses it."""
        self.registry.stop(record, f"{record.label.name} was unloaded by localllama stop")

    # joining

    def _join(self, model: Installed, want: Want) -> Engine | None:
        key, asked = self._key(model, want), self._asked(model, want)
        for record in self.registry.records():
            if record.label.key != key:
                continue
            # Where nothing was asked for, what the program chose before is as good as now.
            if record.context_length >= asked if asked else not record.label.context_asked:
                engine = Engine.join(record, self.registry, self._keep_alive(want))
                if engine is not None:
                    return engine
        return None

    def _asked(self, model: Installed, want: Want) -> int:
        """The context length that somebody asked for, 0 = none."""
        own = model.parameters.get("num_ctx")
        return (
            want.context_length
            or (own if isinstance(own, int) and own > 0 else 0)
            or self.config.run.context_length
        )

    def _keep_alive(self, want: Want) -> float:
        chosen = want.keep_alive_seconds
        return self.config.run.keep_alive_seconds if chosen is None else chosen

    def _key(self, model: Installed, want: Want) -> str:
        """A digest of the files and of all options but those in which workers may differ."""
        options = self._options(model, want, context_length=0)
        options = msgspec.structs.replace(options, keep_alive_seconds=0)
        files = [_version(path) for path in options.paths]
        return hashlib.sha256(msgspec.json.encode((options, files))).hexdigest()

    # starting

    def _start(self, model: Installed, want: Want) -> Engine:
        key = self._key(model, want)
        self._stop_smaller(key)
        context_length = self._fit(model, want)
        weights_bytes = sum(file.size_bytes for file in model.weights)
        label = Label(
            key=key,
            name=model.name,
            digest=model.digest,
            size_bytes=plan.memory_bytes(weights_bytes, model.info, context_length),
            context_asked=bool(self._asked(model, want)),
        )
        options = self._options(model, want, context_length)
        return Engine.start(options, self.registry, label)

    def _options(self, model: Installed, want: Want, context_length: int) -> LoadOptions:
        in_store = bool(model.weights and model.weights[0].sha256)
        paths = (
            self.store.linked(model)
            if in_store
            else tuple(Path(file.name).absolute() for file in model.weights)
        )
        return LoadOptions(
            paths=tuple(map(str, paths)),
            context_length=context_length,
            template=want.template or model.template,
            fallback_template=model.fallback_template,
            gpu_layers=want.gpu_layers,
            # More threads than the machine runs at once wait for each other at every step.
            threads=min(want.threads or self.config.run.threads, os.cpu_count() or 1),
            slots=_SLOTS,
            keep_alive_seconds=self._keep_alive(want),
            snapshots=SnapshotOptions(
                str(self.paths.snapshots), self.config.run.snapshots_bytes, _identity(model)
            ),
        )

    def _stop_smaller(self, key: str) -> None:
        """End what a worker with a larger context replaces, unless somebody uses it."""
        for running in self.running():
            same = running.record.label.key == key
            if same and running.status is not None and not running.status.clients:
                self.registry.stop(running.record, "a larger context was opened", only_idle=True)

    def _fit(self, model: Installed, want: Want) -> int:
        """Return the context length that fits, ending idle workers where that makes it fit."""
        asked = self._asked(model, want)
        weights_bytes = sum(file.size_bytes for file in model.weights)
        while True:
            available_bytes = self._memory().available_bytes
            try:
                return plan.context_length(model.info, weights_bytes, available_bytes, asked)
            except DoesNotFit as error:
                if self._make_room(model.name, error.needed_bytes - error.available_bytes):
                    continue
                if not want.force:
                    raise
                return asked or plan.SMALLEST_USEFUL_CONTEXT

    def _make_room(self, name: str, missing_bytes: int) -> bool:
        """End the idle worker used least recently; False when all of them would not be enough."""
        idle = [
            (running.status.idle_seconds, running.record)
            for running in self.running()
            if running.status is not None and not running.status.running
        ]
        if sum(record.label.size_bytes for _, record in idle) < missing_bytes:
            return False
        why = f"the model was unloaded to make room for {name}"
        return any(
            self.registry.stop(record, why, only_idle=True)
            for _, record in sorted(idle, key=lambda item: item[0], reverse=True)
        )


def _identity(model: Installed) -> str:
    """A digest of the weights; of files outside the store what changes when they are replaced."""
    files = [
        file.sha256 or (str(Path(file.name).absolute()), *_version(file.name))
        for file in model.weights
    ]
    return hashlib.sha256(msgspec.json.encode(files)).hexdigest()


def _version(path: str) -> tuple[int, int]:
    """What changes when a file is replaced; raises StoreError."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise StoreError(f"cannot read the model file {path}: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns

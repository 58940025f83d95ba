"""Opens installed models: joins a worker that holds the model already, or plans and starts one.

Workers are shared by all front ends of this user and stay warm for the keep-alive time; idle ones
make room for a model that does not fit beside them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec

from localllama import gguf_file, hardware, names, plan, wants
from localllama.amounts import duration
from localllama.config import Config
from localllama.engine import remote, snapshots
from localllama.engine.api import DeviceBytes, LoadOptions, SnapshotOptions
from localllama.engine.client import Engine
from localllama.engine.protocol import Status
from localllama.engine.registry import Label, Record, Registry
from localllama.engine.remote import RemoteEngine
from localllama.errors import BadFile, DoesNotFit, StoreError, WorkerDied
from localllama.files import storing
from localllama.gguf_file import ModelInfo
from localllama.hardware import Hardware
from localllama.paths import Paths
from localllama.plan import HOST, Plan
from localllama.store import Installed, Store
from localllama.wants import Want

_ATTEMPTS = 3  # a worker may end in the moment in which it is joined


@dataclass(frozen=True, slots=True)
class Running:
    """A live worker and what it is doing; None when it does not answer."""

    record: Record
    status: Status | None

    @property
    def processor(self) -> str:
        """Where the model is, as Ollama says it: ``100% GPU``, ``48%/52% CPU/GPU``."""
        label = self.record.label
        if not label.gpu_layers:
            return "100% CPU"
        if label.gpu_layers == label.layers:  # what is left on the host is no layer
            return "100% GPU"
        gpu = round(100 * label.gpu_bytes / label.size_bytes)
        return f"{100 - gpu}%/{gpu}% CPU/GPU"

    @property
    def until(self) -> str:
        """How long it stays loaded, in words."""
        status = self.status
        if status is None:
            return "does not answer"
        if not status.loaded:
            return "loading"
        if status.clients:
            return "in use"
        if status.seconds_left is None:
            return "forever"
        return f"{duration(round(status.seconds_left))} from now"


class Runner:
    """The workers for the models of one store."""

    def __init__(
        self,
        store: Store,
        config: Config,
        paths: Paths,
        *,
        probe: Callable[[], Hardware] | None = None,
    ) -> None:
        self.store = store
        self.config = config
        self.paths = paths
        self.probe = probe or partial(hardware.probe, remembered=paths.devices_file)
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
                engine.wait_ready(on_progress)
                if not engine.joined:
                    self._learn(engine)
                return engine
            except WorkerDied:
                if not engine.joined or attempt == _ATTEMPTS:
                    raise

    def reach(
        self, model: Installed, want: Want, *, on_progress: Callable[[float], None] | None = None
    ) -> Engine | RemoteEngine:
        """Return what chats as ``model``: a worker as from open(), or its endpoint.

        For an endpoint, ``want`` means nothing. Raises also Offline, NetworkError, ModelNotFound.
        """
        if model.remote:
            return remote.open(model, names.parse(model.name), self.config)
        return self.open(model, want, on_progress=on_progress)

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

    def release(self, model: Installed) -> None:
        """Let the workers that hold a model end as soon as nobody uses them.

        One that was started for another name of the same weights holds it, too.
        """
        key = ""
        with suppress(BadFile, StoreError):  # a damaged model must be removable
            key = self._key(model, Want())
        for record in self.registry.records():
            if record.label.digest == model.digest or record.label.key == key:
                engine = Engine.join(record, self.registry, 0)
                if engine is not None:
                    engine.close()

    def machine(self) -> Hardware:
        """Return what a model could have: with what idle workers hold, which make room for it."""
        live = self.running()
        idle = [r for r in live if r.status is not None and not r.status.running]
        return _with(
            self.probe(),
            {HOST: -sum(r.record.label.mapped_bytes for r in live)},
            *(r.record.label.device_bytes for r in idle),
        )

    def preview(self, model: Installed, want: Want, machine: Hardware) -> tuple[ModelInfo, Plan]:
        """Return a model's header, and how it would be loaded on ``machine``; loads nothing.

        Raises DoesNotFit, BadFile.
        """
        info = gguf_file.read_split_info(self._options(model, want).paths)
        wish = wants.planned_for(model, want, info, self.config)
        return info, plan.fit(info, machine, wish, self._learned(info.architecture))

    # joining

    def _join(self, model: Installed, want: Want) -> Engine | None:
        key, asked = self._key(model, want), wants.context_asked(model, want, self.config)
        for record in self.registry.records():
            if record.label.key != key:
                continue
            if want.require_gpu and not record.label.gpu_bytes:
                continue
            if self.config.run.slots not in (0, record.label.slots):
                continue
            if _has_context(record, asked, exact=want.exact_context):
                engine = Engine.join(record, self.registry, self._keep_alive(want))
                if engine is not None:
                    return engine
        return None

    def _learned(self, architecture: str) -> dict[str, float]:
        """What earlier loads by this build taught of compute buffers, by kind of device."""
        build = _build()
        return plan.ratios(plan.loads(self.paths.loads_file), architecture, build)

    def _keep_alive(self, want: Want) -> float:
        chosen = want.keep_alive_seconds
        return self.config.run.keep_alive_seconds if chosen is None else chosen

    def _key(self, model: Installed, want: Want) -> str:
        """A digest of the files and of all that was asked for but what workers may differ in."""
        options = msgspec.structs.replace(self._options(model, want), keep_alive_seconds=0)
        kv_type = wants.kv_type_asked(model, want, self.config)
        placement = (want.gpu_layers, want.gpu_memory_bytes, want.no_gpu)
        nothing = (-1, (), False)
        # Whatever was asked for, without GPUs it goes to the CPU; who asked nothing need not look.
        if placement != nothing and hardware.without_gpus(self.paths.devices_file):
            placement = nothing
        files = [_version(path) for path in options.paths]
        servers = hardware.rpc_servers_of(os.environ)
        asked = msgspec.json.encode((options, placement, kv_type, files, servers))
        return hashlib.sha256(asked).hexdigest()

    # starting

    def _start(self, model: Installed, want: Want) -> Engine:
        self._stop_replaced(self._key(model, want))
        options = self._options(model, want)
        info = gguf_file.read_split_info(options.paths)
        wish = wants.planned_for(model, want, info, self.config)
        machine, chosen = self._fit(model.name, info, wish)
        label = Label(
            key=self._key(model, want),  # now that the machine is known
            name=model.name,
            digest=model.digest,
            architecture=info.architecture,
            devices=tuple(map(_held, chosen.uses)),
            mapped_bytes=chosen.uses[-1].weights_bytes if chosen.mmap else 0,
            asked_context=wish.context_length,
            layers=chosen.layers,
            gpu_layers=chosen.gpu_layers,
            explanation=plan.sentence(chosen),
            slots=chosen.slots,
            parallel=plan.parallel(chosen, wish),
            idle_gpu=plan.idle_gpu(chosen, machine, wish),
        )
        return Engine.start(_placed(options, chosen), self.registry, label)

    def _options(self, model: Installed, want: Want) -> LoadOptions:
        in_store = bool(model.weights and model.weights[0].sha256)
        paths = (
            self.store.linked(model)
            if in_store
            else tuple(Path(file.name).absolute() for file in model.weights)
        )
        return LoadOptions(
            paths=tuple(map(str, paths)),
            context_length=0,  # the plan's, as the slots and all about devices
            template=want.template or model.template,
            fallback_template=model.fallback_template,
            # More threads than the machine runs at once wait for each other at every step.
            threads=min(want.threads or self.config.run.threads, os.cpu_count() or 1),
            keep_alive_seconds=self._keep_alive(want),
            snapshots=SnapshotOptions(
                str(self.paths.snapshots), self.config.run.snapshots_bytes, _identity(model)
            ),
        )

    def _stop_replaced(self, key: str) -> None:
        """End what a worker with another context or other slots replaces, unless it is used."""
        for running in self.running():
            same = running.record.label.key == key
            if same and running.status is not None and not running.status.clients:
                self.registry.stop(
                    running.record, "it was opened with other limits", only_idle=True
                )

    def _learn(self, engine: Engine) -> None:
        """Keep what the load really took, for later plans."""
        label, build = engine.record.label, _build()
        known = self._learned(label.architecture)
        took = {held.device: held for held in engine.ready.devices}
        # Of a mapped file, llama.cpp tells the pages from the first to the last tensor.
        mapped = HOST if label.mapped_bytes else ""
        loads = (
            plan.Load(
                build=build,
                architecture=label.architecture,
                device=plan.kind_of(held.device),
                weights_bytes=took[held.device].weights_bytes if held.device != mapped else 0,
                planned_weights_bytes=held.weights_bytes if held.device != mapped else 0,
                kv_bytes=took[held.device].kv_bytes,
                planned_kv_bytes=held.kv_bytes,
                compute_bytes=took[held.device].compute_bytes,
                planned_compute_bytes=round(
                    held.compute_bytes / known.get(plan.kind_of(held.device), 1)
                ),
            )
            for held in label.devices
            if held.device in took and held.total_bytes
        )
        plan.record(self.paths.loads_file, loads)

    def _fit(self, name: str, info: ModelInfo, wish: plan.Want) -> tuple[Hardware, Plan]:
        """Return what is there and the plan.

        Idle workers are ended where that makes it fit, or puts more layers on GPUs.
        """
        known = self._learned(info.architecture)
        attempt = partial(_attempt, info, wish, known)
        while True:
            machine = self.probe()
            live = self.running()
            idle = [r for r in live if r.status is not None and not r.status.running]
            left = _with(machine, {HOST: -sum(r.record.label.mapped_bytes for r in live)})
            chosen = attempt(left)
            best = attempt(_with(left, *(r.record.label.device_bytes for r in idle)))
            if not _better(best, chosen):
                return left, chosen or plan.fit(info, left, wish, known)
            enough = [
                r
                for r in idle
                if not _better(best, attempt(_with(left, r.record.label.device_bytes)))
            ]
            self._make_room(name, enough or idle)

    def _make_room(self, name: str, idle: Iterable[Running]) -> None:
        """End the worker used least recently, unless all have become busy."""
        why = f"the model was unloaded to make room for {name}"
        longest_first = sorted(idle, key=lambda r: r.status.idle_seconds if r.status else 0)[::-1]
        any(self.registry.stop(r.record, why, only_idle=True) for r in longest_first)


def _has_context(record: Record, asked: int, *, exact: bool) -> bool:
    if asked > 0:
        return record.context_length == asked or (not exact and record.context_length > asked)
    # Where no length was asked for, what the program chose before is as good as now.
    return record.label.asked_context == asked


def _attempt(
    info: ModelInfo, wish: plan.Want, corrections: dict[str, float], machine: Hardware
) -> Plan | None:
    with suppress(DoesNotFit):
        return plan.fit(info, machine, replace(wish, force=False), corrections)
    return None


def _held(use: plan.Use) -> DeviceBytes:
    return DeviceBytes(
        device=use.device,
        weights_bytes=use.weights_bytes + use.repacked_bytes,
        kv_bytes=use.kv_bytes,
        compute_bytes=use.compute_bytes,
        other_bytes=use.process_bytes,
    )


def _better(other: Plan | None, chosen: Plan | None) -> bool:
    """Whether ending idle workers is worth it."""
    return other is not None and (chosen is None or other.gpu_layers > chosen.gpu_layers)


def _with(machine: Hardware, *more: dict[str, int]) -> Hardware:
    """Return the machine with so many bytes more on its devices, none with less than none."""

    def extra(device: str) -> int:
        return sum(bytes_by_device.get(device, 0) for bytes_by_device in more)

    available = max(0, machine.memory.available_bytes + extra(HOST))
    return replace(
        machine,
        memory=replace(machine.memory, available_bytes=available),
        devices=tuple(
            replace(device, free_bytes=device.free_bytes + extra(device.name))
            for device in machine.devices
        ),
    )


def _placed(options: LoadOptions, chosen: Plan) -> LoadOptions:
    """Return ``options`` as planned."""
    return msgspec.structs.replace(
        options,
        context_length=chosen.context_length,
        cells=chosen.cells,
        slots=chosen.slots,
        gpu_layers=chosen.gpu_layers,
        tensor_split=chosen.tensor_split,
        main_gpu=chosen.main_gpu,
        kv_type=chosen.kv_type,
        batch_tokens=chosen.batch_tokens,
        mmap=chosen.mmap,
        mlock=chosen.mlock,
        repack=chosen.repack,
        flash_attention=chosen.flash_attention,
    )


def _identity(model: Installed) -> str:
    """A digest of the weights; of files outside the store what changes when they are replaced."""
    files = [
        file.sha256 or (str(Path(file.name).absolute()), *_version(file.name))
        for file in model.weights
    ]
    return hashlib.sha256(msgspec.json.encode(files)).hexdigest()


def _build() -> str:
    from importlib.metadata import version  # it imports a mail parser; the app is to start at once

    return version("llama-cpp-python")


def _version(path: str) -> tuple[int, int]:
    """What changes when a file is replaced; raises StoreError."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise StoreError(f"cannot read the model file {path}: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns

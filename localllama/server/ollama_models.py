"""Ollama's API about models: what there is, what is loaded, and how models come and go."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import msgspec
from msgspec import UNSET

from localllama import __version__, model_card, pull
from localllama.config import Network
from localllama.errors import (
    InvalidParameter,
    NotEnoughDisk,
)
from localllama.names import Source
from localllama.progress import Progress
from localllama.runner import Runner, Running
from localllama.server import ollama_types as wire
from localllama.server.bridge import Models
from localllama.server.errors import Refused
from localllama.server.library import Library
from localllama.server.ollama_create import Creator, last
from localllama.store import Installed

# Whose contract is served: clients ask for a least version.
OLLAMA_VERSION = "0.12.6"

PULLS = ("any", "catalog", "none")
_FOR_EVER = "2318-01-01T00:00:00Z"  # about where Ollama's own "for ever" ends


class Shelf:
    """Answers requests about models; ``pulls`` says what may be fetched and changed here."""

    def __init__(self, library: Library, models: Models, creator: Creator, *, pulls: str) -> None:
        self._library = library
        self._models = models
        self._creator = creator
        self._runner: Runner = models.runner
        self._pulls = pulls

    # looking

    async def tags(self) -> wire.Tags:
        """List the installed models, the newest first."""
        store = self._library.store
        return wire.Tags(models=await self._models.run(lambda: [*map(self._tag, store.models())]))

    async def ps(self) -> wire.Processes:
        """List the loaded models, whoever loaded them."""
        return wire.Processes(models=await self._models.run(self._processes))

    async def show(self, request: wire.ShowRequest) -> wire.Shown:
        """Tell all about a model."""
        model = self._library.find(request.which)
        return await self._models.run(lambda: self._shown(model, verbose=bool(request.verbose)))

    async def version(self) -> wire.Version:
        """Tell whose contract this is, and which program."""
        return wire.Version(version=OLLAMA_VERSION, localllama=__version__)

    def _tag(self, model: Installed) -> wire.Tag:
        return wire.Tag(
            name=model.name,
            model=model.name,
            modified_at=model.modified_at.replace("+00:00", "Z"),
            size=model.size_bytes,
            digest=model.digest,
            details=_details(model),
            capabilities=self._library.capabilities(model),
        )

    def _processes(self) -> list[wire.Process]:
        models = {model.digest: model for model in self._library.store.models()}
        return [
            self._process(one, models.get(one.record.label.digest))
            for one in self._runner.running()
        ]

    def _process(self, running: Running, model: Installed | None) -> wire.Process:
        label, status = running.record.label, running.status
        left = status.seconds_left if status else None
        if left is None and status and status.clients:
            left = self._runner.config.run.keep_alive_seconds  # what it gets when they have left
        expires = _FOR_EVER
        if left is not None and left >= 0:
            expires = (datetime.now(UTC) + timedelta(seconds=left)).isoformat()
        return wire.Process(
            name=label.name,
            model=label.name,
            size=label.size_bytes,
            digest=label.digest,
            details=_details(model) if model else _NO_DETAILS,
            expires_at=expires.replace("+00:00", "Z"),
            size_vram=label.gpu_bytes,
            context_length=running.record.context_length,
            parallel=label.slots,
            explanation=f"{label.explanation} {label.parallel}",
        )

    def _shown(self, model: Installed, *, verbose: bool) -> wire.Shown:
        store, config = self._library.store, self._runner.config
        header = self._library.header(model)
        parameters = model_card.parameters(config, model)
        texts = {"general.chat_template", "tokenizer.chat_template"}
        known = {k: v for k, v in header.metadata.items() if k not in texts}
        known |= {"general.parameter_count": header.parameters}
        tensors = [
            wire.TensorReply(name=one.name, type=one.type, shape=list(one.shape))
            for one in header.tensors
        ]
        return wire.Shown(
            license=model_card.licence(store, model),
            modelfile=model_card.modelfile(store, config, model),
            parameters="\n".join(f"{name:<30} {_spelt(value)}" for name, value in parameters),
            template=self._library.template(model),
            system=model.system,
            details=_details(model),
            messages=list(model.messages),
            model_info=known,
            capabilities=self._library.capabilities(model),
            modified_at=model.modified_at.replace("+00:00", "Z"),
            tensors=tensors if verbose else UNSET,
        )

    # changing

    async def copy(self, request: wire.CopyRequest) -> None:
        """Give a model a second name."""
        self._creator.require_changes()
        source = self._library.find(request.source)
        target = self._library.own_name(request.destination)
        name = self._library.name(source.name)
        await self._models.run(lambda: self._library.store.copy(name, target))

    async def delete(self, request: wire.DeleteRequest) -> None:
        """Remove a name, and its data unless another name uses it."""
        self._creator.require_changes()
        model = self._library.find(request.which)
        await self._models.unload(model)
        name = self._library.name(model.name)
        await self._models.run(lambda: self._library.store.remove(name))

    async def pull(
        self, request: wire.PullRequest
    ) -> wire.Status | AsyncGenerator[wire.Status, None]:
        """Fetch a model, verified."""
        name = self._library.name(request.which)
        if self._pulls == "none" or (self._pulls == "catalog" and name.source != Source.CATALOG):
            raise Refused(
                f"this server does not pull {name}",
                "localllama serve --pull any lets it, or pull it on that machine",
            )
        lines = self._pulling(request.which)
        return lines if request.stream is not False else await last(lines)

    async def push(self, request: wire.PushRequest) -> wire.Status:
        """Refuse: there is no registry of our own."""
        self._library.find(request.which)
        raise InvalidParameter("pushing models is not supported", "localllama only fetches them")

    async def _pulling(self, text: str) -> AsyncGenerator[wire.Status, None]:
        network: Network = self._runner.config.network
        store, library = self._library.store, self._library
        offer = await self._models.run(
            lambda: pull.look(
                library.name(text), known=library.catalog, store=store, network=network
            )
        )
        if isinstance(trouble := pull.judge(offer, store.paths), NotEnoughDisk):
            raise trouble
        yield wire.Status(status="pulling manifest")
        told = _Told({file.name: (file.sha256, file.size) for file in offer.files})
        work = pull.pull(offer, store=store, network=network)
        async with aclosing(self._models.progress(work)) as moments:
            async for moment in moments:
                if (line := told.line(moment)) is not None:
                    yield line
        yield wire.Status(status="success")


class _Told:
    """Says what a pull is doing in Ollama's words; ``files`` are digest and size by name."""

    def __init__(self, files: dict[str, tuple[str, int]]) -> None:
        self._files = files
        self._last = ""

    def line(self, moment: Progress) -> wire.Status | None:
        """Return the next line, None where it would say nothing new."""
        if moment.phase in ("download", "convert"):
            digest, size = self._files.get(moment.item, ("", 0))
            digest = digest or sha256(moment.item.encode()).hexdigest()
            return wire.Status(
                status=f"pulling {digest[:12]}",
                digest=f"sha256:{digest}",
                total=moment.total_bytes or max(0, size),
                completed=moment.done_bytes,
            )
        words = {"verify": "verifying sha256 digest", "install": "writing manifest"}
        word = words.get(moment.phase, "")
        if not word or word == self._last:
            return None
        self._last = word
        return wire.Status(status=word)


_NO_DETAILS = wire.Details(
    parent_model="",
    format="gguf",
    family="",
    families=[],
    parameter_size="",
    quantization_level="",
)


def _details(model: Installed) -> wire.Details:
    info = model.info
    family = str(info.get("architecture") or "")
    return wire.Details(
        parent_model="",
        format="gguf",
        family=family,
        families=[family] if family else [],
        parameter_size=str(info.get("parameters_label") or ""),
        quantization_level=str(info.get("quantization") or ""),
    )


def _spelt(value: object) -> str:
    return msgspec.json.encode(value).decode() if isinstance(value, str) else str(value)

"""Ollama's API about models: what there is, what is loaded, and how models come and go."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import UNSET

from localllama import __version__, contents, gguf_file, hardware, model_card, pull
from localllama.config import Network
from localllama.errors import (
    InvalidParameter,
    ModelNotFound,
    NotEnoughDisk,
    UnsupportedFile,
)
from localllama.files import storing
from localllama.names import Source, is_digest
from localllama.progress import Progress
from localllama.runner import Runner, Running
from localllama.server import ollama_types as wire
from localllama.server import options
from localllama.server.bridge import Models
from localllama.server.errors import Refused
from localllama.server.library import Library
from localllama.store import Installed, StoredFile

# Whose contract is served: clients ask for a least version.
OLLAMA_VERSION = "0.12.6"

PULLS = ("any", "catalog", "none")
_FOR_EVER = "2318-01-01T00:00:00Z"  # about where Ollama's own "for ever" ends
_DISK_RESERVE_BYTES = 200_000_000
_TEMPLATE_CHARS = 128 * 1024


class Shelf:
    """Answers requests about models; ``pulls`` says what may be fetched and changed here."""

    def __init__(self, library: Library, models: Models, *, pulls: str) -> None:
        self._library = library
        self._models = models
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
        self._require_changes()
        source = self._library.find(request.source)
        target = self._library.own_name(request.destination)
        name = self._library.name(source.name)
        await self._models.run(lambda: self._library.store.copy(name, target))

    async def delete(self, request: wire.DeleteRequest) -> None:
        """Remove a name, and its data unless another name uses it."""
        self._require_changes()
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
        return lines if request.stream is not False else await _last(lines)

    async def push(self, request: wire.PushRequest) -> wire.Status:
        """Refuse: there is no registry of our own."""
        self._library.find(request.which)
        raise InvalidParameter("pushing models is not supported", "localllama only fetches them")

    async def create(
        self, request: wire.CreateRequest
    ) -> wire.Status | AsyncGenerator[wire.Status, None]:
        """Make a model of an installed one or an uploaded GGUF file, with settings of its own."""
        self._require_changes()
        self._library.own_name(request.which)
        lines = self._creating(request)
        return lines if request.stream is not False else await _last(lines)

    def _require_changes(self) -> None:
        if self._pulls != "any":
            raise Refused(
                "this server does not change its models", "localllama serve --pull any lets it"
            )

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

    async def _creating(self, request: wire.CreateRequest) -> AsyncGenerator[wire.Status, None]:
        if request.quantize or request.adapters:
            what = "quantize" if request.quantize else "adapters"
            raise InvalidParameter(f"{what} is not supported when creating a model here")
        base, arrived = await self._base(request)
        if arrived:
            yield wire.Status(status="parsing GGUF")
        model = _changed(base, request, self._library.own_name(request.which))
        for file in model.files:
            word = "creating new" if file.sha256 in arrived else "using existing"
            yield wire.Status(status=f"{word} layer sha256:{file.sha256}")
        yield wire.Status(status="writing manifest")
        await self._models.run(lambda: self._library.store.install(model, arrived))
        yield wire.Status(status="success")

    async def _base(self, request: wire.CreateRequest) -> tuple[Installed, dict[str, Path]]:
        """Return what the new model is made of, and its files that are not in the store yet."""
        if request.files:
            return await self._models.run(lambda: self._uploaded(request.files or {}))
        if not request.from_:
            raise InvalidParameter("neither 'from' or 'files' was specified")
        return self._library.find(request.from_), {}

    def _uploaded(self, files: dict[str, str]) -> tuple[Installed, dict[str, Path]]:
        if len(files) != 1:
            raise UnsupportedFile("a model is made of one GGUF file here")
        ((name, digest),) = files.items()
        hex_digest = _hex(digest)
        store = self._library.store
        here, there = store.blob(hex_digest), _upload(store.paths.partials, hex_digest)
        path = here if here.is_file() else there
        if not path.is_file():
            raise ModelNotFound(f"blob sha256:{hex_digest} not found", "upload it first")
        info = contents.scalars(gguf_file.read_info(path))
        stored = StoredFile(Path(name).name[:200], hex_digest, path.stat().st_size, promised=True)
        arrived = {} if path == here else {hex_digest: path}
        return Installed("", (stored,), source="upload", info=info), arrived

    # blobs

    async def has_blob(self, digest: str) -> bool:
        """Whether these bytes are here."""
        hex_digest = _hex(digest)
        store = self._library.store
        return store.has(hex_digest) or _upload(store.paths.partials, hex_digest).is_file()

    async def take_blob(self, digest: str, pieces: AsyncIterator[bytes], length: int) -> bool:
        """Take an upload in; False when it is here already.

        Raises InvalidParameter for other bytes, NotEnoughDisk, StoreError.
        """
        self._require_changes()
        if await self.has_blob(digest):
            return False
        hex_digest, partials = _hex(digest), self._library.store.paths.partials
        temporary = partials / f"{hex_digest}.{secrets.token_hex(4)}.upload.tmp"
        digester = sha256()
        with storing(partials):
            partials.mkdir(parents=True, exist_ok=True)
            _require_disk(partials, length)
            try:
                with temporary.open("wb") as file:
                    async for piece in pieces:
                        digester.update(piece)
                        await asyncio.to_thread(file.write, piece)
                    file.flush()
                    await asyncio.to_thread(os.fsync, file.fileno())
                if digester.hexdigest() != hex_digest:
                    raise InvalidParameter(
                        f"digest mismatch, expected sha256:{hex_digest}, "
                        f"got sha256:{digester.hexdigest()}"
                    )
                temporary.replace(_upload(partials, hex_digest))
            finally:
                temporary.unlink(missing_ok=True)
        return True


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


def _hex(digest: str) -> str:
    """Return the hex digits of ``sha256:…``; raises InvalidParameter."""
    match = re.fullmatch(r"sha256[:-]([0-9a-f]{64})", digest)
    if match is None or not is_digest(match[1]):
        raise InvalidParameter("invalid digest format")
    return match[1]


def _upload(partials: Path, hex_digest: str) -> Path:
    """Where an upload waits for the model that it becomes part of."""
    return partials / f"{hex_digest}.adopted"


def _require_disk(folder: Path, length: int) -> None:
    free = hardware.free_disk_bytes(folder)
    if length + _DISK_RESERVE_BYTES > free:
        raise NotEnoughDisk(
            f"the upload has {length >> 20} MiB, and {free >> 20} MiB are free",
            needed_bytes=length,
            available_bytes=free,
        )


def _changed(base: Installed, request: wire.CreateRequest, name: object) -> Installed:
    """Return the model under its new name, with the settings of the request over its own."""
    if request.template and len(request.template) > _TEMPLATE_CHARS:
        raise InvalidParameter("the template is too long")
    chosen, loading = options.options(request.parameters)
    texts = request.license if isinstance(request.license, list) else [request.license or ""]
    licence = {"text": "\n\n".join(texts)} if any(texts) else base.licence
    messages = tuple(
        {"role": message.role, "content": message.content or ""}
        for message in request.messages or ()
    )
    return replace(
        base,
        name=str(name),
        licence=licence,
        template=base.template if request.template is None else request.template,
        system=base.system if request.system is None else request.system,
        parameters={**base.parameters, **chosen, **loading},
        messages=messages or base.messages,
        saved=True,
    )


async def _last(lines: AsyncGenerator[wire.Status, None]) -> wire.Status:
    async with aclosing(lines) as found:
        async for line in found:
            last = line
    return last

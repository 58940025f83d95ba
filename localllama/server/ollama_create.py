"""Ollama's create: models made of installed ones or of uploads, and the uploads themselves."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from localllama import create, hardware
from localllama.convert import types
from localllama.convert.layout import Recipe
from localllama.create import Wishes
from localllama.errors import (
    InvalidParameter,
    ModelNotFound,
    NotEnoughDisk,
    UnsupportedFile,
)
from localllama.files import storing
from localllama.modelfile import Modelfile
from localllama.names import ModelName, is_digest
from localllama.progress import Progress
from localllama.server import ollama_types as wire
from localllama.server.bridge import Models
from localllama.server.errors import Refused
from localllama.server.library import Library
from localllama.store import Installed

_DISK_RESERVE_BYTES = 200_000_000
_TEMPLATE_CHARS = 128 * 1024
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")
_MOST_FILES = 1000


class Creator:
    """Answers requests that make models; ``allowed`` says whether this server changes its own."""

    def __init__(self, library: Library, models: Models, *, allowed: bool) -> None:
        self._library = library
        self._store = library.store
        self._models = models
        self._config = models.runner.config
        self._allowed = allowed

    def require_changes(self) -> None:
        """Raise Refused where models are not changed from outside."""
        if not self._allowed:
            raise Refused(
                "this server does not change its models", "localllama serve --pull any lets it"
            )

    async def create(
        self, request: wire.CreateRequest
    ) -> wire.Status | AsyncGenerator[wire.Status, None]:
        """Make a model of an installed one or of uploaded files, with settings of its own."""
        self.require_changes()
        name = self._library.own_name(request.which)
        lines = self._models.progress(self._lines(request, name))
        return lines if request.stream is not False else await last(lines)

    def _lines(
        self, request: wire.CreateRequest, name: ModelName
    ) -> Generator[wire.Status, None, None]:
        """Make the model; runs in a thread."""
        if request.adapters:
            raise UnsupportedFile(
                "this version applies no adapters", "merge them into the model first"
            )
        wanted = create.check(_modelfile(request))
        recipe = Recipe(types.parse(request.quantize)) if request.quantize else None
        threads = self._config.run.threads or os.cpu_count() or 1
        wishes = Wishes(recipe, threads)
        here = {file.sha256 for one in self._store.models() for file in one.files}
        model = yield from (
            self._of_files(request.files, name, wishes)
            if request.files
            else self._of_model(request.from_ or "", name, wishes)
        )
        for file in model.files:
            word = "using existing" if file.sha256 in here else "creating new"
            yield wire.Status(status=f"{word} layer sha256:{file.sha256}")
        yield wire.Status(status="writing manifest")
        create.with_settings(model, wanted, self._store)
        yield wire.Status(status="success")

    def _of_model(
        self, base: str, name: ModelName, wishes: Wishes
    ) -> Generator[wire.Status, None, Installed]:
        if not base:
            raise InvalidParameter("neither 'from' or 'files' was specified")
        model = self._library.find(base)
        kind = str(model.info.get("quantization") or "")
        work = create.from_installed(model, name, wishes, store=self._store)
        return (yield from _told(work, kind, wishes))

    def _of_files(
        self, files: Mapping[str, str], name: ModelName, wishes: Wishes
    ) -> Generator[wire.Status, None, Installed]:
        with self._laid_out(files) as path:
            is_checkpoint = path.is_dir()
            yield wire.Status(status="converting model" if is_checkpoint else "parsing GGUF")
            work = create.from_path(
                path,
                name,
                wishes,
                known=self._library.catalog,
                store=self._store,
                network=self._config.network,
            )
            model = yield from _told(work, "", wishes)
        return replace(model, source="upload", requested="")

    @contextmanager
    def _laid_out(self, files: Mapping[str, str]) -> Iterator[Path]:
        """Give uploads the names that they have for the client: a folder of links, or one of them.

        Raises InvalidParameter, ModelNotFound.
        """
        names = [PurePosixPath(name.replace("\\", "/")).name for name in files]
        if len(names) > _MOST_FILES or len(set(names)) < len(names):
            raise InvalidParameter("the files of a model need names of their own")
        if not all(map(_FILE_NAME.fullmatch, names)):
            raise InvalidParameter("invalid file name")
        blobs = [self._blob(_hex(digest)) for digest in files.values()]
        partials = self._store.paths.partials
        with storing(partials), TemporaryDirectory(dir=partials, prefix="create-") as folder:
            for name, blob in zip(names, blobs, strict=True):
                Path(folder, name).symlink_to(blob)
            yield Path(folder, *names) if len(names) == 1 else Path(folder)

    def _blob(self, hex_digest: str) -> Path:
        """Return where an upload is; raises ModelNotFound."""
        for path in (self._store.blob(hex_digest), self._upload(hex_digest)):
            if path.is_file():
                return path.absolute()
        raise ModelNotFound(f"blob sha256:{hex_digest} not found", "upload it first")

    # uploads

    async def has_blob(self, digest: str) -> bool:
        """Whether these bytes are here."""
        hex_digest = _hex(digest)
        return self._store.has(hex_digest) or self._upload(hex_digest).is_file()

    async def take_blob(self, digest: str, pieces: AsyncIterator[bytes], length: int) -> bool:
        """Take an upload in; False when it is here already.

        Raises InvalidParameter for other bytes, NotEnoughDisk, StoreError.
        """
        self.require_changes()
        if await self.has_blob(digest):
            return False
        hex_digest, partials = _hex(digest), self._store.paths.partials
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
                temporary.replace(self._upload(hex_digest))
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def _upload(self, hex_digest: str) -> Path:
        """Where an upload waits for the model that it becomes part of."""
        return self._store.paths.partials / f"{hex_digest}.adopted"


async def last(lines: AsyncGenerator[wire.Status, None]) -> wire.Status:
    """Return the last line, for who does not want to hear of the others."""
    async with aclosing(lines) as found:
        async for line in found:
            latest = line
    return latest


def _told(
    work: Generator[Progress, None, Installed], kind: str, wishes: Wishes
) -> Generator[wire.Status, None, Installed]:
    """Do the work and tell of it in Ollama's words."""
    quantizes = wishes.recipe is not None
    words = f"quantizing {kind or 'F16'} model to {wishes.recipe}" if quantizes else ""
    while True:
        try:
            moment = next(work)
        except StopIteration as end:
            model: Installed = end.value
            return model
        if moment.phase == "convert":
            yield wire.Status(
                status=words or "converting model",
                total=moment.total_bytes,
                completed=moment.done_bytes,
            )


def _modelfile(request: wire.CreateRequest) -> Modelfile:
    """Return what the request sets, as a Modelfile would say it; raises InvalidParameter."""
    if request.template and len(request.template) > _TEMPLATE_CHARS:
        raise InvalidParameter("the template is too long")
    licences = request.license if isinstance(request.license, list) else [request.license or ""]
    return Modelfile(
        base=request.from_ or "",
        template=request.template or "",
        system=request.system or "",
        licences=tuple(filter(None, licences)),
        parameters={name: _texts(value) for name, value in (request.parameters or {}).items()},
        messages=tuple(
            {"role": message.role, "content": message.content or ""}
            for message in request.messages or ()
        ),
    )


def _texts(value: object) -> list[str]:
    """A parameter's value as a Modelfile has it; raises InvalidParameter."""
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str | int | float) for one in values):
        raise InvalidParameter("a parameter is a text, a number, true, false or a list of texts")
    return [str(one).lower() if isinstance(one, bool) else str(one) for one in values]


def _hex(digest: str) -> str:
    """Return the hex digits of ``sha256:…``; raises InvalidParameter."""
    match = re.fullmatch(r"sha256[:-]([0-9a-f]{64})", digest)
    if match is None or not is_digest(match[1]):
        raise InvalidParameter("invalid digest format")
    return match[1]


def _require_disk(folder: Path, length: int) -> None:
    free = hardware.free_disk_bytes(folder)
    if length + _DISK_RESERVE_BYTES > free:
        raise NotEnoughDisk(
            f"the upload has {length >> 20} MiB, and {free >> 20} MiB are free",
            needed_bytes=length,
            available_bytes=free,
        )

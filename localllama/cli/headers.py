"""Models by their GGUF headers alone: installed, on this disk, or far away and not downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from localllama import catalog, gguf_file, names, pull, sources
from localllama.catalog import Entry
from localllama.cli import output
from localllama.cli.app import App
from localllama.errors import UsageProblem
from localllama.gguf_file import ModelInfo
from localllama.gguf_header import read_header
from localllama.names import ModelName, Ref, RemoteFile, Source

_READS_AT_ONCE = 4

# The parts of one model, in order, and what their headers say together.
Header = tuple[tuple[Path, ...], ModelInfo]


@contextmanager
def opened(app: App, text: str, quant: str) -> Iterator[list[Header]]:
    """Give the header of the model called ``text``, or of each of its quantization types.

    What is not on this machine is read by ranged requests into sparse files that are gone after
    the block. Raises what the source raises, and UsageProblem where nothing can be read ahead.
    """
    name = app.name(text)
    if name.source is Source.LOCAL or (not quant and app.store.find(name) is not None):
        model = pull.describe(name) if name.source is Source.LOCAL else app.store.get(name)
        in_store = bool(model.weights[0].sha256)
        paths = app.store.weights(model) if in_store else [Path(f.name) for f in model.weights]
        yield [_header(paths)]
        return
    with TemporaryDirectory(prefix="localllama-") as folder:
        yield _fetched(app, _listed(app, name, quant), Path(folder))


def _header(paths: Iterable[Path]) -> Header:
    parts = tuple(paths)
    info = gguf_file.read_split_info(parts) if len(parts) > 1 else gguf_file.read_info(parts[0])
    return parts, info


def _listed(app: App, name: ModelName, quant: str) -> list[RemoteFile]:
    """Return the model files to look into, all parts of all types that ``name`` may mean."""
    listings = [
        sources.files(ref, app.network(), app.paths) for ref in _references(app, name, quant)
    ]
    files = [file for listing in listings for file in listing.files if file.role == "model"]
    if not files:
        raise UsageProblem(
            f"{name} holds original weights: what they become is known when they are converted",
            f"localllama pull {name}, then ask again",
        )
    outside = [file for file in files if not file.member]
    if not outside:
        raise UsageProblem(
            f"{name} comes inside a package, which cannot be read in part",
            f"localllama pull {name}, then ask again; or ask for another type with --quant",
        )
    if len(outside) < len(files):
        output.say("the type that comes inside a package is left out: it cannot be read in part")
    return outside


def _references(app: App, name: ModelName, quant: str) -> list[Ref]:
    """Return what to ask the sources: one Ref a repository, for all its types at once."""
    if name.source is Source.CATALOG:
        family = app.catalog.families.get(name.repo.casefold())
        entry = family.find(name.tag) if family else None
        if quant or entry is None:
            return [catalog.resolve(name, app.catalog, quant)]
        return _of_entry(entry)
    ref = sources.direct(name)
    if quant:
        return [replace(ref, quant=quant)]
    if name.source is Source.HUGGINGFACE and not ref.files and not ref.quant:
        from localllama.sources import huggingface

        models = huggingface.models(ref, app.network(), app.paths)
        return [replace(ref, files=tuple(parts[0] for parts in models))]
    return [ref]


def _of_entry(entry: Entry) -> list[Ref]:
    by_repo: dict[tuple[Source, str], list[str]] = {}
    for file in entry.files.values():
        by_repo.setdefault((file.source, file.repo), []).extend(file.names)
    name = names.parse(entry.name)
    return [
        Ref(name, source, repo, files=tuple(files)) for (source, repo), files in by_repo.items()
    ]


def _fetched(app: App, files: list[RemoteFile], folder: Path) -> list[Header]:
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        paths = list(pool.map(lambda file: _sparse(app, file, folder), files))
    models: dict[str, list[Path]] = {}
    for path in paths:
        models.setdefault(names.split_parts(path.name)[0], []).append(path)
    return [_header(parts) for parts in models.values()]


def _sparse(app: App, remote: RemoteFile, folder: Path) -> Path:
    """Return a file of full length that holds nothing but the header of ``remote``."""
    from localllama import download

    if remote.path:
        return Path(remote.path)
    network = app.network()
    size = remote.size
    if size < 0:
        size = download.probe(remote.url, network, remote.token).size
    path = folder / remote.name
    with path.open("wb") as file:
        file.truncate(max(0, size))

        def read(offset: int, length: int) -> bytes:
            data = download.read_range(remote.url, offset, length, network, remote.token)
            file.seek(offset)
            file.write(data)
            return data

        read_header(read, size, remote.name)
    return path

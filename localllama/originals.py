"""From original weights at any place to a GGUF file: what it takes, and the making of it.

look(ref, listing, ...) -> Work     reads headers and small files
make(work, ...) -> Made             fetches weights and converts them while others come
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import heapq
import json
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from localllama import __version__, gguf_file
from localllama.catalog_file import BITS_PER_WEIGHT
from localllama.config import Network
from localllama.convert import opening, provenance, streaming, types
from localllama.convert.layout import Layout, Recipe, check, lay_out
from localllama.convert.provenance import Origin
from localllama.convert.remote import Remote
from localllama.convert.shards import Shards
from localllama.convert.source import Folder
from localllama.download import partial
from localllama.errors import BadFile, ChecksumMismatch, InvalidParameter
from localllama.files import sha256_of, storing
from localllama.gguf_file import ModelInfo
from localllama.names import Ref, RemoteFile, Source
from localllama.paths import Paths
from localllama.progress import Progress
from localllama.sources import Listing, marks
from localllama.sources.selection import is_weights

DEFAULT_QUANT = "Q4_K_M"
_STORED_BITS = 16  # of a weight in most checkpoints; asked where headers come with the files


@dataclass(frozen=True, slots=True)
class Work:
    """A conversion that can begin.

    ``key`` names its files among the partials, ``kept`` the folder where the weights stay.
    ``layout`` is None where headers come with the files; ``result_bytes`` is an estimate then.
    ``explained`` puts a refusal of the source into words.
    """

    key: str
    recipe: Recipe
    origin: Origin
    source: Remote | Folder
    kept: Path | None
    layout: Layout | None
    result_bytes: int
    explained: Callable[[], AbstractContextManager[None]]

    @property
    def weights(self) -> dict[str, int]:
        """The sizes of the files that have to be read, by name; all that may be, if unknown."""
        if self.layout is None:
            names: Iterable[str] = filter(is_weights, self.source.sizes)
        else:
            names = {name for tensor in self.layout.model.tensors for name in tensor.files}
        return {name: self.source.sizes[name] for name in sorted(names)}


@dataclass(frozen=True, slots=True)
class Made:
    """A finished file among the partials: what it is, and of which inputs (name -> sha256)."""

    path: Path
    sha256: str
    info: ModelInfo
    inputs: dict[str, str]
    licence: str
    notice: str


def key_of(ref: Ref, listing: Listing) -> str:
    """Return what names a conversion: equal for equal inputs, recipe and program."""
    recipe = str(_recipe(ref))
    facts = [ref.source, ref.repo, listing.revision, marks(listing.files), recipe, __version__]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def look(
    ref: Ref, listing: Listing, address: str, paths: Paths, network: Network, *, keep: bool
) -> Work:
    """Return what converting these files takes; ``keep`` says that the weights are to stay.

    Raises InvalidParameter for a type that there is not, BadFile and UnsupportedFile for files
    that cannot be converted, and NetworkErrors.
    """
    recipe, key = _recipe(ref), key_of(ref, listing)
    kept = paths.originals / ref.repo if keep and ref.source is not Source.LOCAL else None
    source = _source(ref, listing, kept or paths.partials, "" if kept else f"{key}.", network)
    origin = Origin(repo=address, revision=listing.revision, licence=listing.licence.text)
    weights = [file for file in listing.files if is_weights(file.name)]
    # Only of a file whose digest is known can a tensor be used before all the others are there.
    streamed = all(file.sha256 and file.name.endswith(".safetensors") for file in weights)
    layout = None
    if streamed or isinstance(source, Folder):
        layout = _plan(source, recipe, origin)
    result = layout.file_bytes if layout else _estimate(weights, recipe)
    explained = _explanation(ref, network)
    return Work(key, recipe, origin, source, kept, layout, result, explained)


def disk_bytes(work: Work, partials: Path) -> int:
    """Return how much more of the disk the work takes at its height."""
    result = max(0, work.result_bytes - partial.peek(partials, work.key)[1])
    source = work.source
    if isinstance(source, Folder):
        return result
    missing = {
        name: 0 if source.path(name).exists() else size for name, size in work.weights.items()
    }
    if work.layout and not work.kept:
        return result + sum(heapq.nlargest(streaming.ROOM, missing.values()))
    files = (source.files[name] for name, size in missing.items() if size)
    here = sum(partial.peek(partials, partial.key_of(f.url, f.sha256))[1] for f in files)
    return result + sum(missing.values()) - here


def make(
    work: Work, name: str, paths: Paths, network: Network, *, threads: int
) -> Generator[Progress, None, Made]:
    """Make the file; yields Progress of ``name``. Whatever ends it, what was done is kept.

    The caller sees to it that nobody else works under the same key. Raises what fetching and
    converting raise.
    """
    try:
        if isinstance(work.source, Folder):
            return (yield from _of_folder(work, work.source, name, paths.partials, threads))
        return (yield from _of_remote(work, work.source, name, paths, network, threads))
    except ChecksumMismatch:
        raise  # what differs was removed: the rest may be right
    except BadFile as error:
        _clear(work, paths.partials)  # no resume can mend it
        raise _in_words(error, work.source, work.weights) from error


def finish(work: Work, paths: Paths) -> None:
    """Let go of what fetching has left, once the model is in the store."""
    if isinstance(work.source, Remote):
        if work.kept:
            work.source.keep_texts(work.kept)
        else:
            _remove(work.source.path(file) for file in work.weights)


def _recipe(ref: Ref) -> Recipe:
    return Recipe(types.parse(ref.quant or DEFAULT_QUANT))


def _source(
    ref: Ref, listing: Listing, folder: Path, prefix: str, network: Network
) -> Remote | Folder:
    if ref.source is Source.LOCAL:
        return Folder.of(Path(ref.repo))
    weights = (file.name for file in listing.files if is_weights(file.name))
    places = {name: folder / f"{prefix}{name}" for name in weights}
    return Remote(ref.repo, listing.files, places, network)


def _plan(source: Remote | Folder, recipe: Recipe, origin: Origin) -> Layout:
    try:
        model, found = opening.open_source(source)
    except BadFile as error:
        raise _in_words(error, source, filter(is_weights, source.sizes)) from error
    licence = origin.licence or found.licence
    layout = lay_out(model, recipe, replace(origin, inputs=found.inputs, licence=licence))
    try:
        check(layout)
    except InvalidParameter as error:
        error.hint = (
            "choose another type, or keep the weights (--keep-original) and make a file of them: "
            "localllama convert --imatrix FILE"
        )
        raise
    return layout


def _in_words(error: BadFile, source: Remote | Folder, names: Iterable[str]) -> BadFile:
    """The error with files called as they are at their source, not as they are here."""
    if isinstance(source, Remote):
        for name in names:
            error.message = error.message.replace(str(source.path(name)), name)
    return error


def _estimate(weights: Iterable[RemoteFile], recipe: Recipe) -> int:
    bits = BITS_PER_WEIGHT.get(recipe.quant.name, 2 * _STORED_BITS)
    return round(sum(max(0, file.size) for file in weights) * bits / _STORED_BITS)


def _explanation(ref: Ref, network: Network) -> Callable[[], AbstractContextManager[None]]:
    if ref.source is not Source.META:
        return contextlib.nullcontext
    from localllama.sources import meta

    return functools.partial(meta.explained, meta.parse_link(network.meta_url))


def _of_folder(
    work: Work, source: Folder, name: str, partials: Path, threads: int
) -> Generator[Progress, None, Made]:
    assert work.layout is not None
    inputs = work.layout.origin.inputs
    before = [file.path.stat().st_mtime_ns for file in inputs]
    digests = {}
    for file in inputs:
        digests[file.name] = yield from sha256_of(file.path, file.name)
    layout = _with_digests(work.layout, digests)
    path, sha256 = yield from streaming.write(
        layout, partials, work.key, name, threads=threads, shards=None
    )
    for file, stamp in zip(inputs, before, strict=True):
        if file.path.stat().st_mtime_ns != stamp:
            raise BadFile(
                f"{file.path} changed while it was converted",
                "pull again when nothing writes to it",
                str(file.path),
            )
    return _made(path, sha256, layout)


def _of_remote(
    work: Work, source: Remote, name: str, paths: Paths, network: Network, threads: int
) -> Generator[Progress, None, Made]:
    layout = work.layout
    shards = Shards(
        source,
        paths.partials,
        network,
        # Where the plan needs them all, going on after a kill does, too.
        stay=layout is None or work.kept is not None,
        touched=work.kept is not None,
        explained=work.explained,
    )
    if layout is None:
        yield from shards.fetch(list(work.weights), room=len(work.weights))
        layout = _plan(source, work.recipe, work.origin)
    digests = {file.name: source.digest(file.name) for file in layout.origin.inputs}
    layout = _with_digests(layout, digests)
    path, sha256 = yield from streaming.write(
        layout, paths.partials, work.key, name, threads=threads, shards=shards
    )
    return _made(path, sha256, layout)


def _with_digests(layout: Layout, digests: dict[str, str]) -> Layout:
    inputs = tuple(replace(file, sha256=digests[file.name]) for file in layout.origin.inputs)
    return replace(layout, origin=replace(layout.origin, inputs=inputs))


def _made(path: Path, sha256: str, layout: Layout) -> Made:
    origin = layout.origin
    return Made(
        path,
        sha256,
        gguf_file.read_info(path),
        {file.name: file.sha256 for file in origin.inputs},
        origin.licence,
        provenance.notice(layout.model, origin.licence),
    )


def _clear(work: Work, partials: Path) -> None:
    _remove(partials / f"{work.key}.{suffix}" for suffix in ("part", "map", "done"))
    if isinstance(work.source, Remote) and not work.kept:
        _remove(work.source.path(file) for file in work.weights)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with storing(path):
            path.unlink(missing_ok=True)

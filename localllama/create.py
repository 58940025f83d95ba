"""Makes a model of one's own: of an installed one, a GGUF file or a checkpoint, with settings."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localllama import contents, names, pull
from localllama.catalog import Catalog
from localllama.config import Network
from localllama.convert import ggml, gguf_source, opening, provenance, types, writer
from localllama.convert.layout import Recipe, lay_out
from localllama.convert.model import Model
from localllama.convert.provenance import Input, Origin
from localllama.convert.writer import Written
from localllama.download import partial, transfer
from localllama.engine import sampling, templates
from localllama.errors import InvalidParameter, InvalidTemplate, UnsupportedFile
from localllama.files import storing
from localllama.modelfile import Modelfile
from localllama.names import ModelName
from localllama.plan import KV_TYPES
from localllama.progress import Progress
from localllama.store import Installed, Store, StoredFile

# Ollama's parameters that say how a model is loaded, not how tokens are drawn.
_LOADING = {
    *("num_ctx", "num_gpu", "num_thread", "num_batch", "num_keep", "main_gpu", "use_mmap"),
    *("use_mlock", "low_vram", "numa", "f16_kv", "vocab_only", "logits_all", "num_gqa"),
}


@dataclass(frozen=True, slots=True)
class Wishes:
    """How weights are converted; without a recipe they stay as they are."""

    recipe: Recipe | None
    threads: int


def is_path(base: str, folder: Path) -> bool:
    """Whether a FROM means a file or folder; relative ones are meant from ``folder``."""
    return Path(base).is_absolute() or (folder / Path(base).expanduser()).exists()


def check(wanted: Modelfile) -> Modelfile:
    """Return it with the template as Jinja and parameters that exist.

    Raises InvalidTemplate, InvalidParameter, UnsupportedFile (ADAPTER).
    """
    if wanted.adapter:
        raise UnsupportedFile(
            "this version applies no adapters (ADAPTER)",
            "merge it into the model first, or wait for a later version",
        )
    _parameters(wanted.parameters)
    return replace(wanted, template=_template(wanted.template))


def from_path(
    path: Path,
    name: ModelName,
    wishes: Wishes,
    *,
    known: Catalog,
    store: Store,
    network: Network,
) -> Generator[Progress, None, Installed]:
    """Install the GGUF or checkpoint at ``path`` as ``name``, converted where that is wished."""
    if wishes.recipe is None and _holds_gguf(path):
        offer = pull.look(names.parse(_spelled(path)), known=known, store=store, network=network)
        return (yield from pull.pull(replace(offer, name=name), store=store, network=network))
    model, origin = opening.open_path(path)
    recipe = wishes.recipe or Recipe(types.COPY)
    base = Installed(name=str(name), files=(), source=str(path.resolve()))
    return (yield from _convert(model, origin, base, replace(wishes, recipe=recipe), store))


def from_installed(
    base: Installed, name: ModelName, wishes: Wishes, *, store: Store
) -> Generator[Progress, None, Installed]:
    """Install ``base`` as ``name``, quantized where that is wished."""
    own = replace(base, name=str(name), requested="")
    if wishes.recipe is None:
        return store.save(own)
    files = zip(base.weights, store.weights(base), strict=True)
    inputs = tuple(Input(file.name, path, file.sha256) for file, path in files)
    model = gguf_source.open_model([file.path for file in inputs])
    origin = Origin(inputs, base.source, base.revision, str(base.licence.get("text", "")))
    return (yield from _convert(model, origin, own, wishes, store))


def with_settings(model: Installed, wanted: Modelfile, store: Store) -> Installed:
    """Give an installed model what the Modelfile sets; the rest stays as it is."""
    licence, files = dict(model.licence), model.files
    if wanted.licences:
        licence = {"text": "\n\n".join(wanted.licences)}
        files = tuple(file for file in files if file.role != "license")
    if notice := provenance.notice_of(str(licence.get("name", "")), str(licence.get("text", ""))):
        licence["notice"] = notice
    return store.save(
        replace(
            model,
            files=files,
            licence=licence,
            template=wanted.template or model.template,
            system=wanted.system or model.system,
            parameters=model.parameters | _parameters(wanted.parameters),
            messages=wanted.messages or model.messages,
            saved=True,
        )
    )


def _convert(
    model: Model, origin: Origin, base: Installed, wishes: Wishes, store: Store
) -> Generator[Progress, None, Installed]:
    assert wishes.recipe is not None
    layout = lay_out(model, wishes.recipe, origin)
    partials = store.paths.partials
    stem = base.name.replace("/", "-").replace(":", "-")
    out = partials / f"{stem}.gguf"
    with storing(partials):
        partials.mkdir(parents=True, exist_ok=True)
    lock = partial.lock_of(partials, f"{stem}.create")
    yield from transfer.acquire(lock, partials, stem, base.name)
    try:
        written = yield from writer.write(layout, out, threads=wishes.threads)
        yield Progress("install", base.name)
        return store.install(_described(base, written, origin), {written.sha256: out})
    finally:
        out.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Windows keeps open files
            Path(lock.lock_file).unlink()
        lock.release()


def _described(base: Installed, written: Written, origin: Origin) -> Installed:
    """The model with its new weights; terms come from the base, else from the weights."""
    info = written.info
    file = StoredFile(f"{info.quantization}.gguf", written.sha256, info.file_bytes)
    terms = {
        "name": info.licence_name or info.licence,
        "link": info.licence_link,
        "text": origin.licence,
    }
    return replace(
        base,
        files=(file, *(old for old in base.files if old.role != "model")),
        quant=info.quantization,
        info=contents.scalars(info),
        conversion={},
        licence=base.licence or {key: value for key, value in terms.items() if value},
    )


def _holds_gguf(path: Path) -> bool:
    """Whether nothing has to be converted: a GGUF, or a folder with one."""
    return any(path.glob("*.gguf")) if path.is_dir() else not ggml.is_legacy(path)


def _spelled(path: Path) -> str:
    """The path as a name that means a file here."""
    return str(path.expanduser().absolute())


def _template(text: str) -> str:
    """A Jinja source: the text itself, or the twin of a Go template that is recognised."""
    if not text.strip():
        return ""
    if templates.is_go(text):
        family = templates.recognise(text)
        if family is None:
            raise InvalidTemplate(
                "the TEMPLATE is written in Go's language and of no family that is known here",
                f"write it in Jinja, or name one of {', '.join(templates.BUILTIN_NAMES)}",
            )
        return templates.builtin(family).source
    return templates.choose(text).source


def _parameters(given: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Values as a manifest keeps them; raises InvalidParameter."""
    found: dict[str, Any] = {}
    for name, values in given.items():
        if name in _LOADING:
            found[name] = _plain(name, values[-1])
            continue
        if name == "kv_type":
            found[name] = _kv_type(values[-1])
            continue
        parameter = sampling.lookup(name)
        if parameter.kind is str:
            found[parameter.name] = list(values)
        else:
            found[parameter.name] = parameter.convert(values[-1])
    return found


def _kv_type(text: str) -> str:
    if text not in KV_TYPES:
        raise InvalidParameter(f"there is no KV type {text!r}", f"known: {', '.join(KV_TYPES)}")
    return text


def _plain(name: str, text: str) -> int | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        raise InvalidParameter(f"{name} must be a whole number, not {text!r}") from None

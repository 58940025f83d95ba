"""What the models screen tells of one model, as lines; reads headers, so it belongs in a thread."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from localllama import catalog, gguf_file, model_card, names, plan, pull
from localllama.amounts import ago, count, size
from localllama.catalog import Entry
from localllama.config import Config
from localllama.engine import sampling
from localllama.errors import DoesNotFit, LocalLlamaError
from localllama.hardware import Hardware
from localllama.plan import Plan
from localllama.store import Installed, Store
from localllama.tui.fits import Fits
from localllama.tui.listing import Row
from localllama.tui.models import Opener
from localllama.wants import Want, parameter_layers

_LONGEST_VALUE = 120
_PLAN_HEAD = ("DEVICE", "LAYERS", "WEIGHTS", "KV CACHE", "COMPUTE", "PROCESS", "TOTAL", "FREE")


def describe(row: Row, store: Store, config: Config, opener: Opener, fits: Fits) -> str:
    """Return everything that is known of a model."""
    if row.installed is not None and row.remote:
        return "\n".join(_remote(row.installed))
    if row.installed is not None:
        return "\n".join(_installed(row.installed, store, config, opener, fits.machine))
    if row.entry is not None:
        return "\n".join(_entry(row.entry, fits))
    if row.coming is not None:
        return f"{row.name}\nbeing taken in from {row.coming.source}"
    assert row.found is not None
    found = row.found
    sizes = f"{size(found.smallest_bytes)} to {size(found.largest_bytes)}"
    facts = [
        ("models of", sizes if found.largest_bytes else "unknown size"),
        ("downloads", f"{found.downloads:,}"),
        ("updated", found.updated[:10]),
        ("licence", names.spdx(found.licence)),
        ("access", "must be requested on its page" if found.gated else "open"),
    ]
    return "\n".join((row.name, "on Hugging Face", "", *_aligned(facts)))


def plan_lines(chosen: Plan) -> Iterator[str]:
    """Yield a plan in a sentence and a table."""
    yield plan.sentence(chosen)
    yield ""
    cells = [
        [str(cell) if index < 2 else size(int(cell)) for index, cell in enumerate(row)]
        for row in plan.rows(chosen)
    ]
    yield from columns([_PLAN_HEAD, *cells])


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _installed(
    model: Installed, store: Store, config: Config, opener: Opener, machine: Hardware | None
) -> Iterator[str]:
    checked = all(file.promised for file in model.weights)
    yield model.name
    yield ""
    yield from _aligned(
        [
            ("parameters", count(int(model.info.get("parameters") or 0))),
            ("architecture", str(model.info.get("architecture", ""))),
            ("size", size(model.size_bytes)),
            ("digest", model.digest[:12]),
            ("source", model.source),
            ("checked", "sha256 given by the source" if checked else "structure only"),
            ("modified", ago(model.modified_at)),
            ("licence", pull.licence_terms(model.licence)),
        ]
    )
    yield from _title("How it would be loaded")
    if machine is not None:
        yield from _placement(model, opener, machine)
    yield from _title("Parameters")
    yield from _parameters(model, config)
    yield from _title("System prompt")
    yield model.system or "none"
    try:
        header = gguf_file.read_split_info(store.weights(model))
    except LocalLlamaError as error:
        yield f"\n{error.message}. {error.hint}"
        return
    yield from _title("Template")
    yield model.template or header.chat_template or model.fallback_template or "none"
    yield from _title("Metadata")
    for key, value in header.metadata.items():
        yield f"{key} = {str(value)[:_LONGEST_VALUE]}"
    if text := model_card.licence(store, model):
        yield from _title("Licence")
        yield text


def _remote(model: Installed) -> Iterator[str]:
    yield model.name
    yield "not local: what is written to it leaves this machine"
    yield ""
    yield from _aligned([("address", model.source)])


def _placement(model: Installed, opener: Opener, machine: Hardware) -> Iterator[str]:
    try:
        yield from plan_lines(opener.preview(model, Want(), machine)[1])
    except DoesNotFit as error:
        yield f"Does not fit: {error.message}"
        yield error.hint
    except LocalLlamaError as error:
        yield error.message


def _parameters(model: Installed, config: Config) -> Iterator[str]:
    try:
        resolved = sampling.resolve(parameter_layers(model, config))
    except LocalLlamaError as error:
        yield error.message
        return
    rows = [
        (name, f"{json.dumps(getattr(resolved.sampling, name))}  ({origin})")
        for name, origin in resolved.origins.items()
        if origin != sampling.DEFAULT
    ]
    yield from _aligned(rows or [("all", "as the program has them")])


def _entry(entry: Entry, fits: Fits) -> Iterator[str]:
    yield entry.name
    yield entry.description
    yield ""
    yield from _aligned(
        [
            ("parameters", count(entry.parameters)),
            ("context", f"{entry.context_length} tokens"),
            ("licence", f"{entry.licence.name} ({entry.licence.link})"),
            ("access", "needs an account for the original" if entry.gated else "open"),
        ]
    )
    yield from _title("Types")
    table: list[Sequence[str]] = [("TYPE", "SIZE", "FITS")]
    for quant in entry.quants:
        weight = catalog.estimate(entry, quant)
        word = fits.type_word(entry, quant)
        default = "  (the usual one)" if quant == entry.default_quant else ""
        table.append((quant, size(weight), word + default))
    yield from columns(table)


def _title(text: str) -> tuple[str, str]:
    return "", f"── {text}"


def _aligned(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    width = max(len(name) for name, _ in rows)
    return (f"{name.ljust(width)}  {value}" for name, value in rows if value)

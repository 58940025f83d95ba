"""The rows of the models screen: what is installed, what the catalog has, what the hub found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from localllama import catalog, names, pull
from localllama.amounts import size
from localllama.catalog import Catalog, Entry
from localllama.store import Installed
from localllama.tui.pulls import Pull

if TYPE_CHECKING:
    from localllama.sources.huggingface import Found

COLUMNS = ("NAME", "STATE", "SIZE", "TYPE", "FITS", "CONTEXT", "LICENCE")


@dataclass(frozen=True, slots=True)
class Row:
    """One model; exactly one of the last fields is what it was made of.

    One at an endpoint counts as installed; ``coming`` is a file that is being taken in.
    """

    name: str
    size_bytes: int
    quantization: str = ""
    context_length: int = 0
    licence: str = ""
    installed: Installed | None = None
    entry: Entry | None = None
    found: Found | None = None
    coming: Installed | None = None

    def matches(self, words: str) -> bool:
        """Whether each of the words occurs in what is said of it."""
        about = self.entry.description if self.entry else ""
        text = f"{self.name} {self.quantization} {self.licence} {about} {self._kind}".lower()
        return all(word in text for word in words.lower().split())

    @property
    def _kind(self) -> str:
        if self.remote:
            return "endpoint"
        if self.installed or self.coming:
            return "installed"
        return "catalog" if self.entry else "hub"

    @property
    def remote(self) -> bool:
        """Whether an endpoint has it."""
        return self.installed is not None and self.installed.remote

    def cells(self, state: str, fits: str) -> list[str]:
        """Return the texts of COLUMNS."""
        context = str(self.context_length) if self.context_length else ""
        weight = size(self.size_bytes) if self.size_bytes else ""
        licence = names.spdx(self.licence)
        return [self.name, state, weight, self.quantization, fits, context, licence]


def rows(
    installed: Iterable[Installed],
    known: Catalog,
    found: Iterable[Found],
    pulls: Iterable[Pull] = (),
) -> list[Row]:
    """Return the installed models, files that come, then the catalog's others and the hub's."""
    here = {model.name: _of_installed(model) for model in installed}
    for each in pulls:
        if each.file and each.open:  # it may be installed, and not say so yet
            here.setdefault(each.name, _of_file(each.name, each.file))
    entries = [_of_entry(entry) for entry in known.entries()]
    others = [row for row in entries if _installed_name(row.name, known) not in here]
    hub = [_of_found(item) for item in found]
    return [*here.values(), *others, *(row for row in hub if row.name not in here)]


def ordered(rows: Sequence[Row], column: int, fits: Callable[[Row], str]) -> list[Row]:
    """Return the rows by one of COLUMNS; by STATE keeps the order: installed ones come first."""
    keys: dict[str, Callable[[Row], tuple[object, ...]]] = {
        "NAME": lambda row: (row.name.lower(),),
        "STATE": lambda row: (),
        "SIZE": lambda row: (row.size_bytes,),
        "TYPE": lambda row: (row.quantization,),
        "FITS": lambda row: (_FITS.index(fits(row)),),
        "CONTEXT": lambda row: (-row.context_length,),
        "LICENCE": lambda row: (row.licence.lower(),),
    }
    return sorted(rows, key=keys[COLUMNS[column]])


_FITS = ("fits", "partly", "CPU", "no", "")


def _of_installed(model: Installed) -> Row:
    return Row(
        model.name,
        model.size_bytes,
        model.variant,
        int(model.info.get("context_length") or 0),
        str(model.licence.get("name", "")),
        installed=model,
    )


def _of_file(name: str, file: Installed) -> Row:
    row = _of_installed(file)
    return replace(row, name=name, installed=None, coming=file)


def _of_entry(entry: Entry) -> Row:
    return Row(
        entry.name,
        catalog.estimate(entry, entry.default_quant),
        entry.default_quant,
        entry.context_length,
        entry.licence.name,
        entry=entry,
    )


def _of_found(item: Found) -> Row:
    return Row(f"hf.co/{item.repo}", item.smallest_bytes, licence=item.licence, found=item)


def _installed_name(name: str, known: Catalog) -> str:
    """The name under which a pull of the entry's default type is installed."""
    return str(pull.canonical(names.parse(name), known))

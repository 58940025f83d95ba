"""models.toml becomes a Catalog of entries, and a catalog name the Ref of what to fetch.

Knows no network and no store, and leaves reading and checking the file to catalog_file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from localllama.catalog_file import BITS_PER_WEIGHT, Tables, read
from localllama.errors import InvalidName, InvalidParameter, ModelNotFound
from localllama.names import Licence, ModelName, Ref, Source, parse, split_parts

_OUTPUT_BITS = 6.56  # quantizers keep the output matrix at Q6_K even where the rest is smaller
_ALIKE = 0.7  # of 1: lama2 and llama2 are 0.91 alike, gpt-4 and phi4-mini 0.33
_SPELLING = {quant.casefold(): quant for quant in BITS_PER_WEIGHT}
_QUANT_SUFFIX = re.compile(rf"(?:(?P<tag>.+)-)?(?P<quant>{'|'.join(_SPELLING)})")


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides how much memory a model needs; counts, and sizes in values."""

    layers: int
    embedding: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class File:
    """Where the file of one quantization type is: one name, or all parts of a split GGUF.

    ``repo`` is the repository, the requirement, the URL or the path; ``size_bytes`` 0 = unknown.
    """

    source: Source
    repo: str
    names: tuple[str, ...]
    size_bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the catalog; ``files`` is by quantization type, ``template`` a built-in's name.

    ``gated`` is about ``original``, the repository with the checkpoint that can be converted.
    """

    family: str
    tag: str
    aliases: tuple[str, ...]
    description: str
    parameters: int
    shape: Shape
    context_length: int
    licence: Licence
    gated: bool
    original: str
    meta: str
    gguf: str
    files: Mapping[str, File]
    default_quant: str
    template: str
    fim: bool
    sampling: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The full name: ``family:tag``."""
        return f"{self.family}:{self.tag}"

    @property
    def quants(self) -> tuple[str, ...]:
        """The quantization types there are files of, smallest first."""
        return tuple(sorted(self.files, key=BITS_PER_WEIGHT.__getitem__))


@dataclass(frozen=True, slots=True)
class Family:
    """Models that share a name; ``entries`` is by tag, ``default`` one of its tags."""

    name: str
    description: str
    default: str
    entries: Mapping[str, Entry]

    def names(self) -> tuple[str, ...]:
        """Return ``family:tag`` for every tag, then for every alias."""
        entries = self.entries.values()
        return (
            *(entry.name for entry in entries),
            *(f"{self.name}:{alias}" for entry in entries for alias in entry.aliases),
        )

    def find(self, tag: str) -> Entry | None:
        """Return the entry of a tag or alias in any case; the default one for "" and latest."""
        tag = tag.casefold()
        if tag in ("", "latest"):
            return self.entries[self.default]
        for entry in self.entries.values():
            if tag in (name.casefold() for name in (entry.tag, *entry.aliases)):
                return entry
        return None


@dataclass(frozen=True, slots=True)
class Catalog:
    """All families, by name in lower case."""

    families: Mapping[str, Family]

    def entries(self) -> tuple[Entry, ...]:
        """Return every entry in the order of the files."""
        return tuple(e for family in self.families.values() for e in family.entries.values())

    def names(self) -> tuple[str, ...]:
        """Return everything that can be typed: families, then their tags and aliases."""
        families = self.families.values()
        return (*(f.name for f in families), *(name for f in families for name in f.names()))


def load(shipped: Path | None = None, user: Path | None = None) -> Catalog:
    """Return the Catalog of the shipped file, added to and overridden by the user's (if it exists).

    Raises InvalidConfig that names file, table and key, or the line of a TOML mistake.
    """
    files = [shipped or _shipped()]
    if user is not None and user.exists():
        files.append(user)
    tables = read(files)
    licences = {
        key: Licence(
            name=licence["name"], link=licence["link"], accept=licence.get("accept", False)
        )
        for key, licence in tables.licences().items()
    }
    families = {key: _family(tables, key, licences) for key in tables.families()}
    return Catalog(families)


def resolve(name: ModelName, catalog: Catalog, quant: str = "", *, origin: str = "") -> Ref:
    """Return what to fetch for a catalog name such as ``llama2:7b-chat-q5_K_M``.

    ``quant`` asks for a type as the name's suffix does. ``origin`` "original" gives the checkpoint
    to convert instead of ready files, "meta" the one that Meta's approval e-mail leads to. Raises
    ModelNotFound with near misses, InvalidParameter for a quantization type or origin that there
    is not.
    """
    entry, suffix = _find(name, catalog)
    wanted = _spelled(quant or suffix or entry.default_quant)
    if quant and suffix and wanted != suffix:
        raise InvalidParameter(
            f"the name {str(name)!r} asks for {suffix}, the quantization option for {wanted}",
            "give one of them",
        )
    tag = entry.tag if wanted == entry.default_quant else f"{entry.tag}-{_as_suffix(wanted)}"
    full_name = ModelName(Source.CATALOG, entry.family, tag)
    if origin:
        file = _checkpoint(entry, origin)
    elif wanted in entry.files:
        file = entry.files[wanted]
    else:
        raise InvalidParameter(
            f"{entry.name} has no file of type {wanted}",
            f"it has: {', '.join(entry.quants)}",
        )
    key = file.names[0] if file.names else file.repo.rsplit("/", 1)[-1]
    return Ref(
        full_name,
        file.source,
        file.repo,
        files=file.names,
        quant=wanted,
        licence=entry.licence,
        template=entry.template,
        parameters=dict(entry.sampling),
        sha256={key: file.sha256} if file.sha256 else {},
        original=bool(origin),
    )


def _checkpoint(entry: Entry, origin: str) -> File:
    places = {
        "original": (Source.HUGGINGFACE, entry.original),
        "meta": (Source.META, entry.meta),
    }
    if origin not in places:
        raise InvalidParameter(f"{origin!r} is no origin of a model", f"known: {', '.join(places)}")
    source, repo = places[origin]
    if not repo:
        raise InvalidParameter(f"the catalog knows no checkpoint of {entry.name} from {origin!r}")
    return File(source, repo, ())


def estimate(entry: Entry, quant: str) -> int:
    """Return the bytes of ``entry``'s file of type ``quant``: the known size, else a guess.

    The guess is within 5 % where rows are a multiple of 256 wide, as in most models of 1B and
    more; others cannot use the K types everywhere and may be a quarter larger. Raises
    InvalidParameter for an unknown type.
    """
    quant = _spelled(quant)
    file = entry.files.get(quant)
    if file is not None and file.size_bytes:
        return file.size_bytes
    bits = BITS_PER_WEIGHT[quant]
    output = entry.shape.vocabulary * entry.shape.embedding
    return round(((entry.parameters - output) * bits + output * max(bits, _OUTPUT_BITS)) / 8)


def suggest(text: str, candidates: Iterable[str]) -> tuple[str, ...]:
    """Return up to three candidates that ``text`` may have meant, best first.

    Case and punctuation do not count; what is clearly further off than the best is left out.

    >>> suggest("llama-2-7b", ["mistral", "llama2", "llama2:7b"])
    ('llama2:7b',)
    """
    matcher = SequenceMatcher(b=_letters(text), autojunk=False)
    scores: dict[str, float] = {}
    for candidate in candidates:
        matcher.set_seq1(_letters(candidate))
        if matcher.real_quick_ratio() >= _ALIKE:
            scores[candidate] = matcher.ratio()
    enough = max(_ALIKE, max(scores.values(), default=0.0) - 0.05)
    near = sorted((c for c in scores if scores[c] >= enough), key=lambda c: -scores[c])
    return tuple(near[:3])


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.casefold())


def _find(name: ModelName, catalog: Catalog) -> tuple[Entry, str]:
    """Return the entry of ``name`` and the quantization type at the end of its tag, if any."""
    family = catalog.families.get(name.repo.casefold())
    if family is None:
        hint = "localllama search WORDS looks on Hugging Face"
        if "/" in name.repo:
            hint = f"for a Hugging Face repository write hf.co/{name}"
        # "latest" is what a name without a tag gets: nobody typed it.
        text = name.repo if name.tag == "latest" else str(name)
        near = suggest(text, catalog.names())
        raise _not_found(f"there is no model called {str(name)!r}", near, hint)
    if entry := family.find(name.tag):
        return entry, ""
    match = _QUANT_SUFFIX.fullmatch(name.tag.casefold())
    if match and (entry := family.find(match["tag"] or "")):
        return entry, _SPELLING[match["quant"]]
    raise _not_found(
        f"{family.name} has no tag {name.tag!r}",
        suggest(str(name), family.names()),
        f"its tags: {', '.join(family.entries)}",
    )


def _not_found(message: str, near: tuple[str, ...], hint: str) -> ModelNotFound:
    return ModelNotFound(message, _did_you_mean(near) or hint, suggestions=near)


def _did_you_mean(near: tuple[str, ...]) -> str:
    return f"did you mean {' or '.join(near)}?" if near else ""


def _spelled(quant: str) -> str:
    try:
        return _SPELLING[quant.casefold()]
    except KeyError:
        hint = _did_you_mean(suggest(quant, BITS_PER_WEIGHT)) or "types look like Q4_K_M or Q8_0"
        raise InvalidParameter(f"{quant!r} is not a quantization type", hint) from None


def _as_suffix(quant: str) -> str:
    """Return ``quant`` as tags spell it: q4_K_M."""
    head, bar, rest = quant.partition("_")
    return head.lower() + bar + rest


def _shipped() -> Path:
    """Return models.toml: package data in a wheel, at the top of the tree in a checkout."""
    inside = Path(__file__).with_name("models.toml")
    return inside if inside.exists() else Path(__file__).parents[1] / "models.toml"


def _family(tables: Tables, name: str, licences: Mapping[str, Licence]) -> Family:
    table = tables.families()[name]
    at = ("families", name)
    if name != name.casefold():
        tables.fail(at, "write the family's name in lower case")
    default, tags = table.get("default"), table.get("tags", {})
    if default not in tags:
        tables.fail(at, f"default must be one of its tags, not {default!r}")
    taken: dict[str, str] = {}
    entries = {}
    for tag in tags:
        entry = entries[tag] = _entry(tables, name, tag, licences)
        for spelling in (tag, *entry.aliases):
            try:
                parse(f"{name}:{spelling}")
            except InvalidName as error:
                tables.fail((*at, "tags", tag), error.message)
            if spelling.casefold() in taken:
                other = taken[spelling.casefold()]
                tables.fail((*at, "tags", tag), f"{spelling!r} already means the tag {other!r}")
            taken[spelling.casefold()] = tag
    return Family(name, table.get("description", ""), default, entries)


def _entry(tables: Tables, family: str, tag: str, licences: Mapping[str, Licence]) -> Entry:
    table = tables.tag(family, tag)
    at = ("families", family, "tags", tag)
    if table["licence"] not in licences:
        tables.fail(
            at, f"there is no licence {table['licence']!r}", f"known: {', '.join(licences)}"
        )
    shape = {"head_size": table["shape"]["embedding"] // table["shape"]["heads"], **table["shape"]}
    files = _files(tables, at, table)
    default_quant = table.get("default_quant", "Q4_K_M")
    if default_quant not in files:
        tables.fail(
            at,
            f"default_quant {default_quant} has no file",
            f"there are files for {', '.join(files) or 'no type: give gguf and file'}",
        )
    return Entry(
        family=family,
        tag=tag,
        aliases=tuple(table.get("aliases", ())),
        description=table.get("description", ""),
        parameters=table["parameters"],
        shape=Shape(**shape),
        context_length=table["context_length"],
        licence=licences[table["licence"]],
        gated=table.get("gated", False),
        original=table.get("original", ""),
        meta=table.get("meta", ""),
        gguf=table.get("gguf", ""),
        files=files,
        default_quant=default_quant,
        template=table.get("template", ""),
        fim=table.get("fim", False),
        sampling=table.get("sampling", {}),
    )


def _files(tables: Tables, at: tuple[str, ...], table: Mapping[str, Any]) -> dict[str, File]:
    """Return the File of each quantization type: ``file`` for all ``quants``, then exceptions."""
    repo = table.get("gguf", "")
    pattern = table.get("file", "")
    if bool(repo) != bool(pattern):
        tables.fail(at, f"{'gguf' if pattern else 'file'} is missing", "give both or none")
    quants = table.get("quants") or tables.quants().get(repo.split("/")[0], ())
    if repo and not quants:
        tables.fail(at, "quants is missing", f"list the types that {repo} has")
    files = {
        quant: File(Source.HUGGINGFACE, repo, split_parts(pattern.replace("{quant}", quant)))
        for quant in (quants if repo else ())
    }
    for quant, special in table.get("files", {}).items():
        here = (*at, "files", quant)
        known = (special.get("size", 0), special.get("sha256", ""))
        if "source" in special:
            files[quant] = File(*_source(tables, here, special["source"]), *known)
        elif "name" in special and repo:
            files[quant] = File(Source.HUGGINGFACE, repo, split_parts(special["name"]), *known)
        elif quant in files:
            files[quant] = File(Source.HUGGINGFACE, repo, files[quant].names, *known)
        else:
            tables.fail(here, "give a source, or a name in the gguf repository")
    return files


def _source(tables: Tables, at: tuple[str, ...], text: str) -> tuple[Source, str, tuple[str, ...]]:
    try:
        name = parse(text)
    except InvalidName as error:
        tables.fail(at, f"source: {error.message}", error.hint)
    if name.source not in (Source.PACKAGE, Source.URL, Source.LOCAL):
        tables.fail(at, "source must be pypi:…, the web address of a file or a path to one")
    return name.source, name.repo, (name.tag,) if name.tag else ()

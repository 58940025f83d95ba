"""Where models come from: one file a place; all answer with a Listing and download nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from localllama.config import Network
from localllama.errors import InvalidName
from localllama.names import Licence, ModelName, Ref, RemoteFile, Source
from localllama.paths import Paths


@dataclass(frozen=True, slots=True)
class Listing:
    """What a place has for a Ref: all files of the model, the parts of a split GGUF in order.

    ``revision`` is the place's own mark of this version (commit, digest, ETag, release), empty
    where it has none. ``gated`` is true where the owner grants access person by person.
    """

    files: tuple[RemoteFile, ...]
    revision: str = ""
    licence: Licence = field(default_factory=Licence)
    gated: bool = False


def mark(file: RemoteFile) -> str:
    """Return what tells this version of a file from the next."""
    return file.sha256 or file.md5 or file.revision or str(file.size)


def marks(files: Iterable[RemoteFile]) -> dict[str, str]:
    """Return the marks of the files that a conversion reads, by name."""
    return {file.name: mark(file) for file in files if file.role == "checkpoint"}


def direct(name: ModelName) -> Ref:
    """Return the Ref of a name that needs no catalog; raises InvalidName for one that does."""
    match name.source:
        case Source.HUGGINGFACE if "." in name.tag or "/" in name.tag:
            return Ref(name, name.source, name.repo, files=(name.tag,))
        case Source.HUGGINGFACE:
            quant = "" if name.tag == "latest" else name.tag
            return Ref(name, name.source, name.repo, quant=quant)
        case Source.OLLAMA:
            return Ref(name, name.source, name.repo, revision=name.tag)
        case Source.PACKAGE:
            return Ref(name, name.source, name.repo, files=(name.tag,))
        case Source.URL | Source.LOCAL:
            return Ref(name, name.source, name.repo)
        case Source.ENDPOINT:
            raise InvalidName(
                f"{name} is a model on another machine, which is not fetched",
                f"chat with it where it is: localllama run {name}",
            )
    raise InvalidName(f"{name} is a name of the catalog and no place to fetch from")


def files(ref: Ref, network: Network, paths: Paths) -> Listing:
    """Ask the place of ``ref`` for the files of the model: headers and metadata only.

    Raises a NetworkError, NotFound, UsageProblem or UnsupportedFile that says what is the matter.
    """
    match ref.source:
        case Source.HUGGINGFACE:
            from localllama.sources import huggingface

            return huggingface.files(ref, network, paths)
        case Source.OLLAMA:
            from localllama.sources import ollama

            return ollama.files(ref, network)
        case Source.URL:
            from localllama.sources import url

            return url.files(ref, network)
        case Source.PACKAGE:
            from localllama.sources import package

            return package.files(ref, network)
        case Source.LOCAL:
            from localllama.sources import local

            return local.files(ref)
        case Source.META:
            from localllama.sources import meta

            return meta.files(ref, network)
    raise InvalidName(f"{ref.name} is a name of the catalog and no place to fetch from")

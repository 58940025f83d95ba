"""One installed model as it stands in its manifest: a JSON file per name, no imports that cost."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from localllama.errors import BadFile

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A blob and what it is to the model; ``origin`` is the source's own mark of this version.

    ``promised`` says whether the source gave the sha256, or it was taken from what arrived.
    """

    name: str
    sha256: str
    size_bytes: int
    role: str = "model"
    origin: str = ""
    promised: bool = False


@dataclass(frozen=True, slots=True)
class Installed:
    """A model under one name; one without files is at an endpoint (``source``), and not stored.

    ``source`` is the address it came from, ``requested`` the name and ``quant`` the choice that
    lead there (for ``update``); ``saved`` says that the settings are the user's own, from /save.
    ``digest`` identifies the content. ``info`` holds the scalars of the GGUF header,
    ``parameters`` what is set for this model, ``catalog_parameters`` and ``fallback_template``
    what the catalog says. ``conversion`` tells of a model that was made of original weights:
    ``recipe``, ``inputs`` (name -> sha256), ``version`` of the converter, ``origin`` as it was
    asked for, ``marks`` of the inputs at the source, and the ``key`` that all of it makes.
    """

    name: str
    files: tuple[StoredFile, ...]
    source: str = ""
    requested: str = ""
    quant: str = ""
    revision: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    licence: dict[str, Any] = field(default_factory=dict)
    template: str = ""
    fallback_template: str = ""
    system: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    catalog_parameters: dict[str, Any] = field(default_factory=dict)
    messages: tuple[dict[str, str], ...] = ()
    saved: bool = False
    conversion: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    modified_at: str = ""

    @property
    def remote(self) -> bool:
        """Whether another machine answers for it."""
        return not self.files

    @property
    def variant(self) -> str:
        """What tells it from others of its name: the quantization type, or that it is not local."""
        return "not local" if self.remote else str(self.info.get("quantization", ""))

    @property
    def weights(self) -> tuple[StoredFile, ...]:
        """The parts of the model itself, in order."""
        return tuple(file for file in self.files if file.role == "model")

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files; a blob that another name shares counts too."""
        return sum(file.size_bytes for file in self.files)

    def summary(self) -> dict[str, Any]:
        """Return what ``list --json`` says of it."""
        return {
            "name": self.name,
            "digest": self.digest,
            "size_bytes": self.size_bytes,
            "quantization": self.info.get("quantization", ""),
            "family": self.info.get("architecture", ""),
            "parameters": self.info.get("parameters", 0),
            "context_length": self.info.get("context_length", 0),
            "source": self.source,
            "modified_at": self.modified_at,
        }


def identify(model: Installed) -> str:
    """Return the digest of the content: equal for two models exactly when they answer alike."""
    import hashlib  # 3 ms that `list` need not spend

    content = {
        "files": [(file.role, file.sha256) for file in model.files],
        "template": model.template or model.fallback_template,
        "system": model.system,
        "parameters": model.parameters,
        "messages": model.messages,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def dump(model: Installed) -> bytes:
    """Return the manifest's text."""
    return json.dumps({"schema": SCHEMA, **asdict(model)}, indent=1, ensure_ascii=False).encode()


def load(path: Path) -> Installed:
    """Read a manifest; raises BadFile when it is damaged or from a newer version, else OSError."""
    try:
        data = json.loads(path.read_bytes())
        schema = data.pop("schema")
        if schema > SCHEMA:
            raise BadFile(
                f"the manifest {path.name} was written by a newer localllama", "upgrade localllama"
            )
        files = tuple(StoredFile(**file) for file in data.pop("files"))
        messages = tuple(data.pop("messages"))
        return Installed(files=files, messages=messages, **data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFile(
            f"the manifest {path} is damaged: {error}",
            "remove that file and pull the model again: its data is still in the store",
            path=str(path),
        ) from error

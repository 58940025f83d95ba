"""Ollama's registry: a manifest whose layers are the model and what was written for it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

from localllama.config import Network
from localllama.errors import AccessDenied, Gated, RemoteNotFound, ServerFailed, UnsupportedFile
from localllama.names import Ref, RemoteFile, is_digest
from localllama.sources import Listing

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_LAYER = "application/vnd.ollama.image."
_ROLES = ("model", "template", "system", "params", "license", "messages", "adapter", "projector")
_LARGEST_MANIFEST_BYTES = 1 << 20


def files(ref: Ref, network: Network) -> Listing:
    """List the layers of ``ref.repo`` (``[namespace/]model``) at the tag ``ref.revision``.

    The revision is the manifest's own sha256. Raises RemoteNotFound, UnsupportedFile (no model
    layer), ServerFailed (a manifest that is none) and the other NetworkErrors.
    """
    from localllama import download

    repo = ref.repo if "/" in ref.repo else f"library/{ref.repo}"
    tag = ref.revision or "latest"
    base = f"{network.ollama_registry.rstrip('/')}/v2/{repo}"
    try:
        body = download.get_bytes(
            f"{base}/manifests/{tag}",
            network,
            headers={"Accept": _MANIFEST},
            limit_bytes=_LARGEST_MANIFEST_BYTES,
        )
    except (RemoteNotFound, AccessDenied, Gated) as error:  # private models are refused, not hidden
        raise RemoteNotFound(
            f"ollama.com has no model {ref.repo}:{tag}",
            f"see https://ollama.com/{repo}/tags for what there is",
        ) from error
    try:
        layers = _layers(json.loads(body), base)
    except (ValueError, LookupError, TypeError) as error:
        raise ServerFailed(
            f"the registry's answer for {ref.repo}:{tag} is no manifest",
            "try again later, or check LOCALLLAMA_OLLAMA_REGISTRY",
        ) from error
    if not any(layer.role == "model" for layer in layers):
        raise UnsupportedFile(
            f"{ref.repo}:{tag} holds no GGUF model: it runs on ollama.com's own machines or "
            "is of another kind",
            "choose another tag",
        )
    return Listing(layers, hashlib.sha256(body).hexdigest(), ref.licence)


def _layers(manifest: dict[str, Any], base: str) -> tuple[RemoteFile, ...]:
    """Return the layers of known kinds; raises ValueError for one that cannot be."""
    seen: Counter[str] = Counter()
    layers = []
    for layer in manifest["layers"]:
        role = str(layer["mediaType"]).removeprefix(_LAYER)
        if role not in _ROLES:
            continue
        algorithm, _, sha256 = str(layer["digest"]).partition(":")
        size = layer["size"]
        if algorithm != "sha256" or not is_digest(sha256) or type(size) is not int or size < 0:
            raise ValueError(f"bad layer {layer!r}")
        seen[role] += 1
        name = role if seen[role] == 1 else f"{role}-{seen[role]}"  # two licences are common
        url = f"{base}/blobs/sha256:{sha256}"
        layers.append(RemoteFile(name, url, size, sha256, role, revision=sha256))
    return tuple(layers)

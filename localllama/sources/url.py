"""A GGUF file on any web server; whatever the server does not say (sha256, licence) stays open."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from localllama.config import Network
from localllama.names import Ref, RemoteFile, split_parts
from localllama.sources import Listing


def files(ref: Ref, network: Network) -> Listing:
    """List the file at the address ``ref.repo``, or all parts if it is one part of a split GGUF.

    The revision is the ETag, else the date, of the first part. Raises NetworkError and
    RemoteNotFound.
    """
    parts = urlsplit(ref.repo)
    folder, _, last = unquote(parts.path).rpartition("/")
    listed = tuple(
        _listed(urlunsplit(parts._replace(path=quote(f"{folder}/{name}"))), name, ref, network)
        if name != last
        else _listed(ref.repo, name, ref, network)  # as given: signatures cover the spelling
        for name in split_parts(last)
    )
    return Listing(listed, listed[0].revision, ref.licence)


def _listed(address: str, name: str, ref: Ref, network: Network) -> RemoteFile:
    from localllama import download

    head = download.probe(address, network)
    return RemoteFile(
        PurePosixPath(name).name,
        url=address,
        size=head.size,
        sha256=ref.sha256.get(name, ""),
        revision=head.etag,
    )

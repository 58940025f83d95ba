"""Meta's own download: what lies behind the signed link of the approval e-mail for Llama 2.

The link is an address of Amazon CloudFront with a ``*`` in the place of the path. Its policy says
until when it holds, so that an expired link is told from one whose downloads are used up.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from localllama import download
from localllama.config import Network
from localllama.errors import (
    AccessDenied,
    Gated,
    InvalidParameter,
    RemoteNotFound,
    ServerFailed,
)
from localllama.names import Licence, Ref, RemoteFile
from localllama.sources import Listing

PAGE = "https://www.llama.com/llama-downloads/"
_SHARDS = {"7b": 1, "13b": 2, "70b": 8}  # model-parallel parts, as Meta trained them
_LARGEST_TEXT_BYTES = 1 << 20
_CHECKSUM = re.compile(r"(?P<md5>[0-9a-f]{32})[ *]+(?P<name>\S+)")
_KEPT = "what arrived is kept: the same command with a new link goes on"


@dataclass(frozen=True, slots=True)
class Link:
    """The signed link; ``expires_at`` in seconds since the epoch, infinite where it is not said."""

    text: str = field(repr=False)  # whoever has it can download
    expires_at: float

    def to(self, path: str) -> str:
        """Return the address of one file."""
        return self.text.replace("*", path, 1)


def parse_link(text: str) -> Link:
    """Return the link as it stands in the e-mail; raises InvalidParameter for anything else."""
    text = text.strip().strip("\"'<>")
    parts = urlsplit(text)
    if parts.scheme not in ("https", "http") or text.count("*") != 1 or "*" not in parts.path:
        raise InvalidParameter(
            "this is not the link of Meta's approval e-mail",
            "copy all of it, from https:// to the end; the part after the host begins with /*?",
        )
    return Link(text, _expiry(parts.query))


def files(ref: Ref, network: Network) -> Listing:
    """List tokenizer, parameters and shards of ``ref.repo`` with the md5 of Meta's checklists.

    Raises InvalidParameter without a link, AccessDenied that says whether the link has expired,
    RemoteNotFound and the other NetworkErrors.
    """
    size = re.search(r"\d+b", ref.repo)
    if size is None or size[0] not in _SHARDS:
        known = ", ".join(f"llama-2-{size}[-chat]" for size in _SHARDS)
        raise RemoteNotFound(f"Meta's download has no model {ref.repo}", f"there are {known}")
    if not network.meta_url:
        raise InvalidParameter(
            f"{ref.repo} comes through the link of Meta's approval e-mail",
            f"ask for access at {PAGE} and set LLAMA_META_URL to the link",
        )
    link = parse_link(network.meta_url)
    folder = ref.repo
    shards = [f"consolidated.{n:02d}.pth" for n in range(_SHARDS[size[0]])]
    paths = ["tokenizer.model", *(f"{folder}/{name}" for name in ("params.json", *shards))]
    with explained(link):
        md5 = _checksums(link, "tokenizer_checklist.chk", network)
        md5 |= _checksums(link, f"{folder}/checklist.chk", network)
        licence = _text(link, "LICENSE", network)
        listed = tuple(
            RemoteFile(
                path.rpartition("/")[2],
                url=link.to(path),
                size=(head := download.probe(link.to(path), network)).size,
                role="checkpoint",
                revision=head.etag,
                md5=md5.get(path.rpartition("/")[2], ""),
            )
            for path in paths
        )
    unchecked = [file.name for file in listed if not file.md5]
    if unchecked:
        raise ServerFailed(f"Meta's checklists say nothing about {', '.join(unchecked)}")
    terms = Licence(ref.licence.name, ref.licence.link, licence, ref.licence.accept)
    return Listing(listed, md5[shards[0]], terms)


@contextlib.contextmanager
def explained(link: Link) -> Iterator[None]:
    """Say of a refusal what is the matter with the link."""
    try:
        yield
    except (Gated, AccessDenied) as error:
        raise _refused(link) from error


def _refused(link: Link) -> AccessDenied:
    if time.time() >= link.expires_at:
        ended = time.strftime("%Y-%m-%d %H:%M", time.localtime(link.expires_at))
        return AccessDenied(
            f"Meta's link has expired ({ended}): it holds for 24 hours",
            f"ask for a new one at {PAGE}; {_KEPT}",
        )
    if math.isinf(link.expires_at):
        return AccessDenied(
            "Meta refuses the link: it has expired (after 24 hours), its downloads are used up, or "
            "it is for another model",
            f"ask for a new one at {PAGE}; {_KEPT}",
        )
    return AccessDenied(
        "Meta refuses the link although it has not expired: its downloads are used up, or it is "
        "for another model",
        f"ask for a new one at {PAGE}; {_KEPT}",
    )


def _expiry(query: str) -> float:
    """Return until when a signed query holds: a canned policy says it, a custom one inside."""
    values = parse_qs(query)
    with contextlib.suppress(ValueError, LookupError, TypeError):
        if "Expires" in values:
            return float(values["Expires"][0])
        # CloudFront's base64 has -, _ and ~ where the usual one has +, = and /.
        policy = values["Policy"][0].translate(str.maketrans("-_~", "+=/"))
        statement = json.loads(base64.b64decode(policy))["Statement"][0]
        return float(statement["Condition"]["DateLessThan"]["AWS:EpochTime"])
    return math.inf


def _checksums(link: Link, path: str, network: Network) -> dict[str, str]:
    """Return file name -> md5 of one of Meta's checklists."""
    text = _text(link, path, network)
    return {match["name"]: match["md5"] for match in _CHECKSUM.finditer(text)}


def _text(link: Link, path: str, network: Network) -> str:
    body = download.get_bytes(link.to(path), network, limit_bytes=_LARGEST_TEXT_BYTES)
    return body.decode(errors="replace")

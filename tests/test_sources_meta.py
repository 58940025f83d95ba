"""Meta's own download, through a signed link."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllama import catalog, sources
from localllama.config import Network
from localllama.errors import AccessDenied, InvalidParameter, RemoteNotFound, ServerFailed
from localllama.names import Ref, Source, parse
from localllama.paths import locate
from localllama.sources import Listing
from localllama.sources.meta import parse_link
from tests.support.hub import Hub

SHARDS = {"consolidated.00.pth": b"one" * 1000, "consolidated.01.pth": b"two" * 1000}
FUTURE = 4_000_000_000


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def signed(hub: Hub, expires_at: int = FUTURE) -> str:
    """A link as the e-mail has it."""
    condition = {"DateLessThan": {"AWS:EpochTime": expires_at}}
    policy = json.dumps({"Statement": [{"Resource": "https://x/*", "Condition": condition}]})
    spelled = base64.b64encode(policy.encode()).decode().translate(str.maketrans("+=/", "-_~"))
    return f"{hub.url}/files/*?Policy={spelled}&Signature=abc~d&Key-Pair-Id=K1"


def offer(hub: Hub, model: str = "llama-2-13b-chat") -> None:
    """Put what Meta has behind the link."""
    files = {**SHARDS, "params.json": b"{}"}
    listed = "".join(f"{hashlib.md5(data).hexdigest()}  {name}\n" for name, data in files.items())
    for name, data in files.items():
        hub.add_file(f"{model}/{name}", data)
    hub.add_file(f"{model}/checklist.chk", listed.encode())
    hub.add_file("LICENSE", b"LLAMA 2 COMMUNITY LICENSE AGREEMENT")
    hub.add_file("tokenizer.model", b"pieces")
    hub.add_file("tokenizer_checklist.chk", f"{md5(b'pieces')}  tokenizer.model\n".encode())


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def listing(link: str, model: str = "llama-2-13b-chat") -> Listing:
    ref = Ref(parse("llama2:13b-chat"), Source.META, model)
    network = Network(retries=1, timeout_seconds=5, meta_url=link)
    return sources.files(ref, network, locate(Path("unused")))


def test_everything_is_listed_with_its_size_and_md5(hub: Hub) -> None:
    offer(hub)
    link = signed(hub)
    found = listing(link)
    assert [(file.name, file.size, file.md5) for file in found.files] == [
        ("tokenizer.model", 6, md5(b"pieces")),
        ("params.json", 2, md5(b"{}")),
        *((name, len(data), md5(data)) for name, data in SHARDS.items()),
    ]
    assert found.files[-1].url == link.replace("*", "llama-2-13b-chat/consolidated.01.pth")
    assert found.licence.text.startswith("LLAMA 2 COMMUNITY")
    assert "Signature" not in repr(Network(meta_url=link))


def test_an_expired_link_is_told_from_a_spent_one(hub: Hub) -> None:
    offer(hub)
    hub.fault("tokenizer_checklist.chk", "status", None, status=403)
    with pytest.raises(AccessDenied, match=r"has expired \(2001-09-0[89]"):
        listing(signed(hub, 1_000_000_000))
    with pytest.raises(AccessDenied, match="has not expired: its downloads are used up") as caught:
        listing(signed(hub))
    assert "what arrived is kept" in caught.value.hint
    with pytest.raises(AccessDenied, match=r"expired \(after 24 hours\), its downloads"):
        listing(f"{hub.url}/files/*?Policy=no-policy")


@pytest.mark.parametrize(
    "text", ["", "hello", "https://host/path", "ftp://host/*?Policy=x", "https://host/?a=*"]
)
def test_what_is_no_link(text: str) -> None:
    with pytest.raises(InvalidParameter, match="approval e-mail"):
        parse_link(text)


def test_links_as_people_paste_them() -> None:
    link = parse_link(" 'https://host/*?Expires=1700000000&Signature=x'\n")
    assert link.to("a/b.pth") == "https://host/a/b.pth?Expires=1700000000&Signature=x"
    assert link.expires_at == 1_700_000_000


def test_without_a_link_it_says_where_to_get_one() -> None:
    with pytest.raises(InvalidParameter) as caught:
        listing("")
    assert "LLAMA_META_URL" in caught.value.hint


def test_what_is_not_behind_the_link(hub: Hub) -> None:
    with pytest.raises(RemoteNotFound, match="no model llama-3-8b"):
        listing(signed(hub), "llama-3-8b")
    with pytest.raises(RemoteNotFound):
        listing(signed(hub))


def test_a_file_without_checksum_is_not_taken(hub: Hub) -> None:
    offer(hub)
    hub.add_file("llama-2-13b-chat/checklist.chk", f"{md5(b'{}')}  params.json\n".encode())
    with pytest.raises(ServerFailed, match=r"nothing about consolidated\.00\.pth"):
        listing(signed(hub))


def test_the_catalog_knows_what_lies_there() -> None:
    ref = catalog.resolve(parse("llama2:7b"), catalog.load(), "Q4_K_M", origin="meta")
    assert (ref.source, ref.repo) == (Source.META, "llama-2-7b-chat")
    with pytest.raises(InvalidParameter, match="from 'meta'"):
        catalog.resolve(parse("smollm2"), catalog.load(), origin="meta")

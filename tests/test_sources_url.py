"""Files on any web server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from localllama import sources
from localllama.config import Network
from localllama.errors import ConnectionLost, Offline, RemoteNotFound, ServerFailed
from localllama.names import Ref, parse
from localllama.paths import locate
from localllama.sources import Listing
from tests.support.hub import Content, Generated, Hub

NETWORK = Network(retries=1, timeout_seconds=5)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def listing(address: str, network: Network = NETWORK) -> Listing:
    return sources.files(sources.direct(parse(address)), network, locate(Path("unused")))


def test_size_and_etag_without_the_file(hub: Hub) -> None:
    address = hub.add_file("d/my model.gguf", Generated(10_000_000))
    found = listing(address)
    (file,) = found.files
    assert (file.name, file.url, file.size) == ("my model.gguf", address, 10_000_000)
    assert file.sha256 == ""
    assert found.revision == file.revision == Generated(10_000_000).etag
    assert hub.bytes_sent() < 1_000_000


def test_the_revision_changes_with_the_file(hub: Hub) -> None:
    before = listing(hub.add_file("m.gguf", b"one")).revision
    assert listing(hub.add_file("m.gguf", b"two")).revision != before


def test_all_parts_are_one_model(hub: Hub) -> None:
    for n in (1, 2, 3):
        last = hub.add_file(f"d d/m-0000{n}-of-00003.gguf", b"x" * n)
    found = listing(f"{last}?key=value")
    assert [(file.name, file.size) for file in found.files] == [
        (f"m-0000{n}-of-00003.gguf", n) for n in (1, 2, 3)
    ]
    assert all(file.url.endswith("?key=value") for file in found.files)


def test_a_missing_part(hub: Hub) -> None:
    with pytest.raises(RemoteNotFound, match="m-00002-of-00002"):
        listing(hub.add_file("m-00001-of-00002.gguf", b"x"))


def test_a_known_digest_is_passed_on(hub: Hub) -> None:
    name = parse(hub.add_file("m.gguf", b"x"))
    known = Content(b"x").sha256
    ref = Ref(name, name.source, name.repo, sha256={"m.gguf": known})
    assert sources.files(ref, NETWORK, locate(Path("unused"))).files[0].sha256 == known


def test_what_is_not_there(hub: Hub) -> None:
    with pytest.raises(RemoteNotFound):
        listing(f"{hub.url}/files/nothing.gguf")


def test_a_server_that_fails_or_is_gone(hub: Hub) -> None:
    address = hub.add_file("m.gguf", b"x")
    hub.fault("m.gguf", "status", status=500)
    with pytest.raises(ServerFailed):
        listing(address)
    with Hub() as other:
        gone = other.url
    with pytest.raises(ConnectionLost):
        listing(f"{gone}/m.gguf")


def test_offline(hub: Hub) -> None:
    with pytest.raises(Offline):
        listing(hub.add_file("m.gguf", b"x"), Network(offline=True))
    assert hub.requests == []

"""Ollama's registry protocol, spoken by the test hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllama import sources
from localllama.config import Network
from localllama.errors import (
    ConnectionLost,
    LocalLlamaError,
    Offline,
    RateLimited,
    RemoteNotFound,
    ServerFailed,
    UnsupportedFile,
)
from localllama.names import parse
from localllama.paths import locate
from localllama.sources import Listing
from tests.support.hub import Content, Hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def listing(hub: Hub, name: str, *, offline: bool = False) -> Listing:
    network = Network(ollama_registry=hub.url, offline=offline, retries=1, timeout_seconds=5)
    return sources.files(sources.direct(parse(name)), network, locate(Path("unused")))


def test_every_known_layer_is_listed(hub: Hub) -> None:
    layers = [
        ("model", b"GGUF weights"),
        ("projector", b"GGUF eyes"),
        ("adapter", b"GGUF lora"),
        ("template", b"{{ .Prompt }}"),
        ("system", b"Be brief."),
        ("params", b'{"stop": ["x"]}'),
        ("messages", b"[]"),
        ("license", b"one"),
        ("license", b"two"),
        ("draft", b"GGUF faster"),
    ]
    digest = hub.add_ollama("library/llama2", "7b", layers)
    found = listing(hub, "ollama.com/llama2:7b")
    assert [(file.role, file.name) for file in found.files] == [
        *((role, role) for role, _ in layers[:8]),
        ("license", "license-2"),
    ]
    for file, (_, data) in zip(found.files, layers, strict=False):
        sha256 = Content(data).sha256
        assert (file.size, file.sha256) == (len(data), sha256)
        assert file.url == f"{hub.url}/v2/library/llama2/blobs/sha256:{sha256}"
    assert found.revision == digest
    assert (
        "application/vnd.docker.distribution.manifest.v2+json" in hub.requests[0].headers["accept"]
    )


def test_the_default_tag_and_other_namespaces(hub: Hub) -> None:
    hub.add_ollama("library/llama2", "latest", {"model": b"a"})
    hub.add_ollama("me/mine", "x", {"model": b"b"})
    assert listing(hub, "ollama.com/llama2").files[0].sha256 == Content(b"a").sha256
    assert listing(hub, "ollama.com/me/mine:x").files[0].sha256 == Content(b"b").sha256


def test_no_such_model(hub: Hub) -> None:
    with pytest.raises(RemoteNotFound, match=r"ollama\.com has no model llama9:7b") as missing:
        listing(hub, "ollama.com/llama9:7b")
    assert "https://ollama.com/library/llama9/tags" in missing.value.hint


def test_a_model_that_runs_elsewhere(hub: Hub) -> None:
    hub.add_ollama("library/huge", "cloud", {"license": b"x"}, {"remote_host": "elsewhere"})
    with pytest.raises(UnsupportedFile, match="huge:cloud"):
        listing(hub, "ollama.com/huge:cloud")


MODEL = "application/vnd.ollama.image.model"
GOOD = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    "manifest",
    [
        b"<html>please log in</html>",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"layers": 3}',
        b'{"layers": ["model"]}',
        *(
            json.dumps({"layers": [{"mediaType": MODEL, "digest": digest, "size": size}]}).encode()
            for digest, size in [
                ("sha256:../../../etc/passwd", 1),
                ("sha256:" + "A" * 64, 1),
                ("sha256:" + "a" * 63, 1),
                ("md5:" + "a" * 64, 1),
                ("", 1),
                (None, 1),
                (GOOD, -1),
                (GOOD, "1"),
                (GOOD, None),
                (GOOD, True),
            ]
        ),
    ],
)
def test_a_manifest_that_is_none(hub: Hub, manifest: bytes) -> None:
    hub.add_file("registry/v2/library/bad/manifests/latest", manifest)
    network = Network(ollama_registry=f"{hub.url}/files/registry", retries=1)
    with pytest.raises(ServerFailed, match="no manifest"):
        sources.files(sources.direct(parse("ollama.com/bad")), network, locate(Path("unused")))


@pytest.mark.parametrize(("status", "kind"), [(429, RateLimited), (500, ServerFailed)])
def test_refusals(hub: Hub, status: int, kind: type[LocalLlamaError]) -> None:
    hub.fault("manifests", "status", status=status)
    with pytest.raises(kind):
        listing(hub, "ollama.com/llama2")


def test_nobody_listens() -> None:
    with Hub() as hub:
        pass
    with pytest.raises(ConnectionLost):
        listing(hub, "ollama.com/llama2")


def test_offline(hub: Hub) -> None:
    with pytest.raises(Offline):
        listing(hub, "ollama.com/llama2", offline=True)
    assert hub.requests == []

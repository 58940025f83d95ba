"""Ollama's API as its own client sees it: models that come, go and are made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from tests.support.asked import HI, SHORT
from tests.support.checkpoints import Shape, write_checkpoint, write_sentencepiece
from tests.support.engines import wait_until
from tests.support.gguf_maker import write_tiny_llama
from tests.support.servers import MODEL, Server
from tests.support.small_llama import write_small_llama


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_tiny_llama(path)
    return path


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(server.url) as client:
        yield client


def unload(client: ollama.Client) -> None:
    """Let the model go: one that is loaded with a longer context than asked for would do."""
    client.generate(MODEL, "", keep_alive=0)
    wait_until(lambda: not client.ps().models)


def test_models_load_stay_and_go_as_asked(client: ollama.Client) -> None:
    assert client.generate(MODEL, "").done_reason == "load"
    assert client.chat(MODEL, keep_alive="1h").done_reason == "load"
    (loaded,) = client.ps().models
    assert loaded.name == f"{MODEL}:latest"
    assert loaded.context_length == 1024
    assert loaded.expires_at
    assert client.generate(MODEL, "", keep_alive=0).done_reason == "unload"
    wait_until(lambda: not client.ps().models)  # the last connection is just being closed
    assert client.chat(MODEL, HI, options=SHORT, keep_alive=0).done
    wait_until(lambda: not client.ps().models)


def test_names_come_and_go(client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == [f"{MODEL}:latest"]
    client.copy(MODEL, "other")
    client.copy("other", "third:v1")
    names = {model.model for model in client.list().models}
    assert names == {"smol:latest", "other:latest", "third:v1"}
    assert client.delete("other").status == client.delete("third:v1").status == "success"
    with pytest.raises(ollama.ResponseError, match="model 'other' not found") as error:
        client.delete("other")
    assert error.value.status_code == 404


def test_show_tells_all(client: ollama.Client) -> None:
    shown = client.show(MODEL)
    assert shown.capabilities == ["completion"]
    assert shown.details
    assert shown.details.quantization_level == "Q4_1"
    assert shown.modelinfo
    assert shown.modelinfo["llama.block_count"] == 30
    assert "<|im_start|>" in (shown.template or "")
    assert (shown.modelfile or "").splitlines()[1].startswith("FROM ")


def test_a_model_is_made_of_another(client: ollama.Client) -> None:
    lines = list(
        client.create(
            "pirate",
            from_=MODEL,
            system="You are a pirate.",
            parameters={"temperature": 0, "num_predict": 5, "num_ctx": 512, "stop": ["zz", "yy"]},
            license="none",
            messages=[{"role": "user", "content": "Ahoy"}, {"role": "assistant", "content": "Arr"}],
            stream=True,
        )
    )
    assert [line.status for line in lines][-2:] == ["writing manifest", "success"]
    assert (lines[0].status or "").startswith("using existing layer sha256:")
    shown = client.show("pirate")
    assert "temperature" in (shown.parameters or "")
    assert "SYSTEM" in (shown.modelfile or "")
    assert 0 < client.chat("pirate", HI).eval_count <= 5
    assert client.create("pirate", from_="pirate", system="Be brief.").status == "success"
    assert "Be brief." in (client.show("pirate").modelfile or "")
    client.delete("pirate")
    unload(client)  # whatever name its weights were loaded for


def test_a_model_is_made_of_an_upload(client: ollama.Client, tiny: Path) -> None:
    digest = client.create_blob(tiny)
    assert client.create_blob(tiny) == digest  # is there already
    lines = list(client.create("up", files={"tiny.gguf": digest}, stream=True))
    assert [line.status for line in lines] == [
        "parsing GGUF",
        f"creating new layer {digest}",
        "writing manifest",
        "success",
    ]
    assert "up:latest" in {model.model for model in client.list().models}
    client.delete("up")
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.create("up", files={"tiny.gguf": "sha256:" + "0" * 64})


def test_a_model_is_quantized_when_it_is_made(client: ollama.Client, tmp_path: Path) -> None:
    big = write_small_llama(tmp_path / "big.gguf", layers=1)
    files = {big.name: client.create_blob(big)}
    lines = [line.status for line in client.create("q", files=files, quantize="q8_0", stream=True)]
    assert lines[0] == "parsing GGUF"
    assert lines[1] == "quantizing F16 model to Q8_0"
    assert [line.split(":")[0] for line in map(str, lines[-3:])] == [
        "creating new layer sha256",
        "writing manifest",
        "success",
    ]
    client.create("smaller", from_="q", quantize="Q4_0")
    found = {one.model: one.details for one in client.list().models}
    assert found["q:latest"].quantization_level == "Q8_0"
    assert found["smaller:latest"].quantization_level == "Q4_0"
    assert found["smaller:latest"].family == "llama"
    client.delete("q")
    client.delete("smaller")


def test_a_model_is_made_of_a_checkpoint(client: ollama.Client, tmp_path: Path) -> None:
    shape = Shape()
    folder = write_checkpoint(tmp_path / "weights", shape, shards=2)
    write_sentencepiece(folder, shape.vocabulary)
    files = {path.name: client.create_blob(path) for path in folder.iterdir()}
    lines = [line.status for line in client.create("made", files=files, stream=True)]
    assert lines[0] == "converting model"
    assert lines[-1] == "success"
    assert client.generate("made", "All human beings", options=SHORT).eval_count
    client.delete("made")


def test_what_create_refuses(client: ollama.Client, tiny: Path) -> None:
    digest = client.create_blob(tiny)
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "neither 'from' or 'files'"),
        ({"from_": MODEL, "adapters": {"a.gguf": digest}}, "applies no adapters"),
        ({"from_": MODEL, "quantize": "Q9"}, "'Q9' is not a quantization type"),
        ({"from_": MODEL, "quantize": "Q4_0"}, "is Q4_1 already"),
        ({"from_": MODEL, "parameters": {"temprature": 1}}, "temprature"),
        ({"from_": MODEL, "template": "{{ .Prompt }} by {{ .Nobody }}"}, "Go's language"),
        ({"files": {"..": digest}}, "invalid file name"),
        ({"files": {"a/x.gguf": digest, "b/x.gguf": digest}}, "names of their own"),
        ({"files": {"x.gguf": "sha256:../../x"}}, "invalid digest format"),
    ]
    for request, message in cases:
        with pytest.raises(ollama.ResponseError, match=message) as error:
            client.create("never", **request)
        assert 400 <= error.value.status_code < 500
    assert {model.model for model in client.list().models} == {f"{MODEL}:latest"}

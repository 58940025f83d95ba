"""Ollama's API as its own client sees it: replies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema
import ollama
import openai
import pytest

from tests.support.asked import HI, PERSON, SHORT
from tests.support.engines import wait_until
from tests.support.servers import MODEL, Server


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(server.url) as client:
        yield client


@pytest.fixture
def gpt(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def unload(client: ollama.Client) -> None:
    """Let the model go: one that is loaded with a longer context than asked for would do."""
    client.generate(MODEL, "", keep_alive=0)
    wait_until(lambda: not client.ps().models)


def test_chat_streams_what_it_says_as_one(client: ollama.Client) -> None:
    whole = client.chat(MODEL, HI, options=SHORT)
    pieces = list(client.chat(MODEL, HI, options=SHORT, stream=True))
    assert whole.message.role == "assistant"
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content != ""
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    last = pieces[-1]
    assert (last.done_reason, last.eval_count) == ("length", 8)
    assert last.total_duration > last.eval_duration > 1_000_000  # nanoseconds
    assert last.prompt_eval_count > 8


def test_generate_goes_on_from_its_context(client: ollama.Client) -> None:
    first = client.generate(MODEL, "My name is Ada.", options=SHORT)
    assert first.context
    assert first.response
    second = client.generate(MODEL, "What is my name?", context=first.context, options=SHORT)
    assert second.prompt_eval_count > len(first.context)
    pieces = list(client.generate(MODEL, "1, 2, 3,", raw=True, options=SHORT, stream=True))
    assert "4" in "".join(piece.response for piece in pieces)
    assert pieces[-1].context is None


def test_a_system_prompt_and_a_template_of_the_request_count(client: ollama.Client) -> None:
    plain = client.generate(MODEL, "Hello", options=SHORT)
    longer = client.generate(MODEL, "Hello", system="You are " + "very " * 40, options=SHORT)
    assert longer.prompt_eval_count > plain.prompt_eval_count + 15
    template = "{{ messages[-1].content }}"
    bare = client.generate(MODEL, "Hello", template=template, options=SHORT)
    assert bare.prompt_eval_count == 1


def test_a_reply_follows_a_schema(client: ollama.Client) -> None:
    question = [{"role": "user", "content": "Who are you? Answer in JSON."}]
    options = {"temperature": 0, "num_predict": 60}
    reply = client.chat(MODEL, question, format=PERSON, options=options)
    jsonschema.validate(json.loads(reply.message.content or ""), PERSON)
    reply = client.chat(MODEL, question, format="json", options=options)
    assert (reply.message.content or "").startswith(("{", "["))


def test_the_log_probabilities_of_a_reply(client: ollama.Client, gpt: openai.OpenAI) -> None:
    seeded = {**SHORT, "seed": 1}  # begins in an empty cache, so that nothing rounds differently
    reply = client.chat(MODEL, HI, options=seeded, logprobs=True, top_logprobs=2)
    assert reply.logprobs
    assert "".join(one.token for one in reply.logprobs) == reply.message.content
    assert all(len(one.top_logprobs or ()) == 2 and one.logprob <= 0 for one in reply.logprobs)
    same = gpt.chat.completions.create(
        model=MODEL,
        messages=HI,
        seed=1,
        temperature=0,
        max_tokens=8,
        logprobs=True,
        top_logprobs=1,
    )
    found = same.choices[0].logprobs
    assert found
    assert [t.token for t in found.content or ()] == [one.token for one in reply.logprobs]


def test_errors_are_ollamas(client: ollama.Client, server: Server) -> None:
    for call, status, message in (
        (lambda: client.chat("nope", HI), 404, "model 'nope' not found"),
        (lambda: client.chat("/etc/passwd", HI), 400, "invalid model name"),
        (lambda: client.chat(MODEL, HI, think=True), 400, "does not support thinking"),
        (lambda: client.generate(MODEL, "x", suffix="y"), 400, "does not support insert"),
        (lambda: client.chat(MODEL, HI, options={"temperature": "hot"}), 400, "temperature"),
        (lambda: client.chat(MODEL, HI, keep_alive="soon"), 400, "keep_alive"),
        (lambda: client.pull("llama3.2:1b"), 502, "offline"),
        (lambda: client.push(MODEL), 400, "pushing"),
    ):
        with pytest.raises(ollama.ResponseError, match=message) as error:
            call()
        assert error.value.status_code == status
    for method, path, body, status in (
        ("POST", "/api/chat", b"", 400),
        ("POST", "/api/chat", b"{", 400),
        ("POST", "/api/chat", b'{"model": "smol", "messages": [{"role": 1}]}', 400),
        ("POST", "/api/generate", b'{"model": "smol", "prompt": "x", "format": "xml"}', 400),
        ("GET", "/api/chat", b"", 405),
        ("GET", "/api/nothing", b"", 404),
        ("HEAD", "/", b"", 200),
        ("HEAD", "/api/version", b"", 200),
    ):
        answer = httpx2.request(method, server.url + path, content=body)
        assert answer.status_code == status, (method, path)
    assert httpx2.post(f"{server.url}/api/chat").json() == {"error": "missing request body"}
    for name, hint in (("nope", "localllama list shows"), ("llama3.2:1b", "pull llama3.2:1b")):
        missing = httpx2.post(f"{server.url}/api/show", json={"model": name})
        assert hint in missing.json()["hint"]


def test_what_does_not_fit_is_left_out_and_told(client: ollama.Client, server: Server) -> None:
    unload(client)
    long = [
        {"role": role, "content": f"{index} " + "word " * 8}
        for index in range(12)
        for role in ("user", "assistant")
    ]
    request = {"model": MODEL, "messages": long + HI, "stream": False}
    request["options"] = {**SHORT, "num_ctx": 128}
    answer = httpx2.post(f"{server.url}/api/chat", json=request, timeout=60)
    left_out = answer.json()["truncated"]
    assert left_out["messages"] >= 10
    header = f"messages={left_out['messages']}, tokens={left_out['tokens']}"
    assert answer.headers["X-Localllama-Truncated"] == header
    with httpx2.stream(
        "POST", f"{server.url}/api/chat", json=request | {"stream": True}, timeout=60
    ) as stream:
        assert stream.headers["X-Localllama-Truncated"] == header
        assert json.loads([*stream.iter_lines()][-1])["truncated"] == left_out
    answer = httpx2.post(f"{server.url}/api/chat", json=request | {"truncate": False}, timeout=60)
    assert answer.status_code == 400
    assert "the context holds 128" in answer.json()["error"]


def test_a_reply_shifts_its_context_when_asked(client: ollama.Client, server: Server) -> None:
    unload(client)
    small = {"ignore_eos": True, "num_ctx": 64, "num_keep": 4}
    chat: dict[str, Any] = {"messages": HI}
    raw: dict[str, Any] = {"prompt": "1, 2, 3,", "raw": True}
    for path, prompt in (("chat", chat), ("generate", raw)):
        request = prompt | {"model": MODEL, "stream": False}
        request["options"] = {**small, "num_predict": 100}
        ended = httpx2.post(f"{server.url}/api/{path}", json=request, timeout=60).json()
        assert ended["done_reason"] == "length"
        assert ended["eval_count"] < 64
        assert "truncated" not in ended
        request["shift"] = True
        shifted = httpx2.post(f"{server.url}/api/{path}", json=request, timeout=60).json()
        assert shifted["eval_count"] == 100
        assert shifted["truncated"]["messages"] == 0
        assert shifted["truncated"]["tokens"] >= 40

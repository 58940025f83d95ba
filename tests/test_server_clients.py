"""The server as real, unmodified clients see it: ollama, openai, anthropic."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from struct import unpack
from typing import Any

import anthropic
import httpx2
import jsonschema
import ollama
import openai
import pytest

from tests.support import servers
from tests.support.checkpoints import Shape, write_checkpoint, write_sentencepiece
from tests.support.engines import wait_until
from tests.support.gguf_maker import write_tiny_llama
from tests.support.servers import MODEL, Server
from tests.support.small_llama import write_small_llama

SHORT = {"temperature": 0, "num_predict": 8}
HI = [{"role": "user", "content": "Say hello."}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("served") / "home"
    servers.install(home, smollm2)
    with servers.served(home) as running:
        yield running


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_tiny_llama(path)
    return path


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(server.url) as client:
        yield client


@pytest.fixture
def gpt(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        yield client


def unload(client: ollama.Client) -> None:
    """Let the model go: one that is loaded with a longer context than asked for would do."""
    client.generate(MODEL, "", keep_alive=0)
    wait_until(lambda: not client.ps().models)


# --- ollama --------------------------------------------------------------------------------------


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


# --- openai --------------------------------------------------------------------------------------


def test_openai_chats(gpt: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": HI, "max_tokens": 8, "temperature": 0}
    whole = gpt.chat.completions.create(**asked)
    chunks = list(
        gpt.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != ""
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.total_tokens == (
        whole.usage.total_tokens
    )
    assert chunks[0].choices[0].delta.role == "assistant"


def test_openai_gives_several_choices(gpt: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": HI, "max_completion_tokens": 6, "n": 3}
    whole = gpt.chat.completions.create(**asked, seed=1, temperature=1.5)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in whole.choices}) > 1
    chunks = gpt.chat.completions.create(**asked, stream=True)
    assert {chunk.choices[0].index for chunk in chunks} == {0, 1, 2}


def test_openai_keeps_to_a_schema(gpt: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    reply = gpt.chat.completions.create(
        model=MODEL, messages=HI, response_format=form, max_tokens=60, temperature=0
    )
    jsonschema.validate(json.loads(reply.choices[0].message.content or ""), PERSON)
    unknown = {"type": "object", "patternProperties": {"x": {"type": "string"}}}
    form["json_schema"]["schema"] = unknown
    with pytest.raises(openai.BadRequestError, match="patternProperties"):
        gpt.chat.completions.create(model=MODEL, messages=HI, response_format=form)


def test_openai_calls_the_tool_it_must(gpt: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    messages: Any = [{"role": "user", "content": "How is the weather in Rome?"}]
    for choice in (named, "required"):
        reply = gpt.chat.completions.create(
            model=MODEL,
            messages=messages,
            tools=[WEATHER],  # type: ignore[list-item]
            tool_choice=choice,
            max_tokens=60,
            temperature=0,
        )
        (call,) = reply.choices[0].message.tool_calls or ()
        assert reply.choices[0].finish_reason == "tool_calls"
        assert call.type == "function"
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    messages += [reply.choices[0].message.model_dump(exclude_none=True)]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    after = gpt.chat.completions.create(
        model=MODEL,
        messages=messages,
        tools=[WEATHER],  # type: ignore[list-item]
        max_tokens=8,
    )
    assert after.choices[0].finish_reason in ("stop", "length")


def test_openai_streams_a_forced_call(gpt: openai.OpenAI) -> None:
    chunks = gpt.chat.completions.create(
        model=MODEL,
        messages=HI,  # type: ignore[arg-type]
        tools=[WEATHER],  # type: ignore[list-item]
        tool_choice="required",
        max_tokens=60,
        stream=True,
    )
    deltas = [chunk.choices[0] for chunk in chunks]
    (calls,) = [choice.delta.tool_calls for choice in deltas if choice.delta.tool_calls]
    assert calls[0].index == 0
    assert deltas[-1].finish_reason == "tool_calls"


def test_openai_completes(gpt: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "1, 2, 3,", "max_tokens": 6}
    whole = gpt.completions.create(**asked, temperature=0, echo=True, logprobs=2)
    choice = whole.choices[0]
    assert choice.text.startswith("1, 2, 3, 4")
    assert choice.logprobs
    assert choice.logprobs.text_offset
    assert choice.logprobs.text_offset[0] == len("1, 2, 3,")
    stopped = gpt.completions.create(**asked, temperature=0, stop=[" 5"])
    assert stopped.choices[0].finish_reason == "stop"
    assert "5" not in stopped.choices[0].text
    several = gpt.completions.create(
        model=MODEL, prompt=["a b c", "1 2 3"], max_tokens=2, n=2, stream=True
    )
    assert {chunk.choices[0].index for chunk in several} == {0, 1, 2, 3}
    biased = gpt.completions.create(**asked, logit_bias={"28": 100}, temperature=0)
    assert len(set(biased.choices[0].text)) == 1


def test_openai_embeds(gpt: openai.OpenAI, client: ollama.Client) -> None:
    texts = ["The sky is blue.", "Stocks fell."]
    raw = gpt.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    vectors = [one.embedding for one in raw.data]
    assert abs(sum(x * x for x in vectors[0]) - 1) < 1e-3
    coded = gpt.embeddings.create(model=MODEL, input=texts, encoding_format="base64")
    bytes_ = base64.b64decode(str(coded.data[0].embedding))
    assert unpack(f"<{len(bytes_) // 4}f", bytes_) == pytest.approx(vectors[0])
    short = gpt.embeddings.create(model=MODEL, input="x", dimensions=8)
    assert len(short.data[0].embedding) == 8
    found = client.embed(MODEL, texts)
    assert list(found.embeddings[1]) == pytest.approx(vectors[1], abs=1e-5)
    assert client.embeddings(MODEL, texts[0]).embedding


def test_openai_lists_models(gpt: openai.OpenAI) -> None:
    assert [model.id for model in gpt.models.list()] == [f"{MODEL}:latest"]
    assert gpt.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        gpt.models.retrieve("nope")


def test_openai_says_that_the_context_is_full(gpt: openai.OpenAI) -> None:
    long: Any = [{"role": "user", "content": "word " * 2000}]
    with pytest.raises(openai.BadRequestError) as error:
        gpt.chat.completions.create(model=MODEL, messages=long)
    assert error.value.code == "context_length_exceeded"


# --- anthropic -----------------------------------------------------------------------------------


def test_anthropic_talks(claude: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": HI, "max_tokens": 8}
    asked["extra_body"] = {"temperature": 0}
    whole = claude.messages.create(**asked, system="Be kind.")
    assert whole.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == 8
    with claude.messages.stream(**asked, system="Be kind.") as stream:
        assert [*stream.text_stream]
        streamed = stream.get_final_message()
    assert (streamed.content[0].type, whole.content[0].type) == ("text", "text")
    assert streamed.content[0].text == whole.content[0].text
    assert streamed.usage.output_tokens == 8
    counted = claude.messages.count_tokens(model=MODEL, messages=HI, system="Be kind.")  # type: ignore[arg-type]
    assert counted.input_tokens == whole.usage.input_tokens
    stopped = claude.messages.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2,"}],
        stop_sequences=[" 4"],
        max_tokens=20,
        extra_body={"temperature": 0},
    )
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " 4")


def test_anthropic_uses_tools(claude: anthropic.Anthropic) -> None:
    function = WEATHER["function"]
    assert isinstance(function, dict)
    tool: Any = {"name": "get_weather", "input_schema": function["parameters"]}
    question: Any = {"role": "user", "content": [{"type": "text", "text": "Weather in Rome?"}]}
    asked: dict[str, Any] = {
        **{"model": MODEL, "messages": [question], "tools": [tool], "max_tokens": 60},
        "tool_choice": {"type": "any"},
    }
    with claude.messages.stream(**asked) as stream:
        message = stream.get_final_message()
    (block,) = message.content
    assert message.stop_reason == "tool_use"
    assert block.type == "tool_use"
    assert block.input["city"] in ("Paris", "Rome")
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
    after = claude.messages.create(
        model=MODEL,
        max_tokens=4,
        tools=[tool],
        messages=[
            question,
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [result]},
        ],
    )
    assert after.usage.output_tokens <= 4
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(**(asked | {"model": "nope"}))


# --- our own -------------------------------------------------------------------------------------


def test_tokens_plans_and_the_document(server: Server) -> None:
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        tokens = http.post("/api/tokenize", json={"model": MODEL, "text": "Hello there"}).json()
        assert len(tokens["tokens"]) == 2
        text = http.post("/api/detokenize", json={"model": MODEL, "tokens": tokens["tokens"]})
        assert text.json()["text"] == "Hello there"
        found = http.post("/api/plan", json={"model": MODEL, "num_ctx": 512}).json()
        assert found["context_length"] == 512
        assert found["devices"]
        assert http.get("/health").json() == {"status": "ok"}
        paths = http.get("/openapi.json").json()["paths"]
        assert {"/api/chat", "/v1/chat/completions", "/v1/messages"} <= set(paths)

"""OpenAI's API as its own client sees it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from struct import unpack
from typing import Any

import jsonschema
import ollama
import openai
import pytest

from tests.support.asked import HI, PERSON, WEATHER
from tests.support.servers import MODEL, Server


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    with ollama.Client(server.url) as client:
        yield client


@pytest.fixture
def gpt(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        yield client


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

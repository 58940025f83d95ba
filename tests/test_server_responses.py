"""OpenAI's Responses API as its own client sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.support.asked import PERSON, WEATHER
from tests.support.servers import MODEL, Server

ASKED: dict[str, Any] = {"model": MODEL, "input": "Say hello.", "temperature": 0}
TOOL: dict[str, Any] = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]  # nested dicts of one constant


class City(BaseModel):
    name: str = Field(max_length=10)


@pytest.fixture
def gpt(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def test_a_stream_says_what_comes_as_one(gpt: openai.OpenAI) -> None:
    whole = gpt.responses.create(**ASKED, max_output_tokens=200, instructions="Be brief.")
    assert (whole.status, whole.instructions) == ("completed", "Be brief.")
    assert whole.output_text
    assert whole.usage
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    with gpt.responses.stream(**ASKED, max_output_tokens=200, instructions="Be brief.") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert len(deltas) > 1


def test_a_reply_that_is_cut_is_incomplete(gpt: openai.OpenAI) -> None:
    cut = gpt.responses.create(**ASKED, max_output_tokens=3)
    assert (cut.status, cut.output[0].type) == ("incomplete", "message")
    assert cut.incomplete_details
    assert cut.incomplete_details.reason == "max_output_tokens"
    *_, last = gpt.responses.create(**ASKED, max_output_tokens=3, stream=True)
    assert last.type == "response.incomplete"
    assert last.response.output_text == cut.output_text


def test_a_reply_follows_a_schema(gpt: openai.OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "person", "schema": PERSON}}
    reply = gpt.responses.create(**ASKED, text=form, max_output_tokens=60)
    jsonschema.validate(json.loads(reply.output_text), PERSON)
    parsed = gpt.responses.parse(**ASKED, text_format=City, max_output_tokens=60)
    assert parsed.output_parsed
    form["format"]["schema"] = {"type": "object", "patternProperties": {"x": {}}}
    with pytest.raises(openai.BadRequestError, match="patternProperties"):
        gpt.responses.create(**ASKED, text=form)


def test_a_tool_is_called_and_answered(gpt: openai.OpenAI) -> None:
    question: Any = {"role": "user", "content": [{"type": "input_text", "text": "Is Rome hot?"}]}
    asked: Any = {"model": MODEL, "tools": [TOOL], "temperature": 0, "max_output_tokens": 60}
    named: Any = {"type": "function", "name": "get_weather"}
    for choice in ("required", named):
        reply = gpt.responses.create(**asked, input=[question], tool_choice=choice)
        (call,) = reply.output
        assert call.type == "function_call"
        assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    with gpt.responses.stream(**asked, input=[question], tool_choice="required") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output[0].type == "function_call"
    assert "response.function_call_arguments.delta" in kinds
    assert "response.function_call_arguments.done" in kinds
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    items: Any = [question, *(item.model_dump(mode="json") for item in reply.output), output]
    after = gpt.responses.create(**asked, input=items, tool_choice="none")
    assert after.output_text
    again: Any = [question, *(item.model_dump() for item in after.output), question]
    assert gpt.responses.create(**asked, input=again, tool_choice="none").output_text


def test_log_probabilities_come_where_they_are_asked_for(gpt: openai.OpenAI) -> None:
    reply = gpt.responses.create(
        **ASKED, include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=3
    )
    (message,) = reply.output
    assert message.type == "message"
    (content,) = message.content
    assert content.type == "output_text"
    assert content.logprobs
    assert "".join(one.token for one in content.logprobs) == reply.output_text
    assert len(content.logprobs[0].top_logprobs) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store", True),
        ("background", True),
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("prompt", {"id": "pmpt_1"}),
    ],
)
def test_what_needs_a_memory_is_refused_by_name(
    gpt: openai.OpenAI, name: str, value: object
) -> None:
    with pytest.raises(openai.BadRequestError, match=f"{name} is not supported") as error:
        gpt.responses.create(**ASKED, **{name: value})  # type: ignore[call-overload]  # any of them
    assert (error.value.param, error.value.code) == (name, "unsupported_parameter")


def test_what_it_cannot_do_is_an_error(gpt: openai.OpenAI, server: Server) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tools": [{"type": "web_search"}]}, "a tool of the type 'web_search'"),
        ({"tools": [TOOL], "tool_choice": {"type": "mcp"}}, "tool_choice must be"),
        ({"input": []}, "input must not be empty"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ({"input": "word " * 2000}, "context"),
    ]
    for changed, message in cases:
        with pytest.raises(openai.BadRequestError, match=message):
            gpt.responses.create(**(ASKED | changed))
    with pytest.raises(openai.NotFoundError):
        gpt.responses.create(model="nope", input="x")
    request = {**ASKED, "input": "word " * 2000, "stream": True}
    answer = httpx2.post(f"{server.url}/v1/responses", json=request, timeout=60)
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_old_turns_go_only_where_that_is_allowed(gpt: openai.OpenAI) -> None:
    turns: Any = [
        {"role": role, "content": f"{index} " + "word " * 40}
        for index in range(14)
        for role in ("user", "assistant")
    ]
    asked: Any = {"model": MODEL, "input": [*turns, {"role": "user", "content": "Hi"}]}
    with pytest.raises(openai.BadRequestError):
        gpt.responses.create(**asked)
    raw = gpt.responses.with_raw_response.create(**asked, truncation="auto", max_output_tokens=4)
    assert raw.headers["X-Localllama-Truncated"].startswith("messages=")
    assert raw.parse().truncation == "auto"

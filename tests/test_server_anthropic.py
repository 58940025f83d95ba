"""Anthropic's API as its own client sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.support.asked import HI, WEATHER
from tests.support.servers import MODEL, Server


@pytest.fixture
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        yield client


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

"""The server's pure parts: tool calls and thoughts in pieces of text, options, errors."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllama import errors
from localllama.engine.api import Generate, Sampling, ToolCall
from localllama.errors import InvalidParameter, LocalLlamaError
from localllama.server import asking, options, thinking, tools, turns
from localllama.server import errors as http_errors
from localllama.server.http import require_shallow

CALL = '{"name": "add", "arguments": {"a": 1, "b": "}]\\""}}'
ARGUMENTS = {"a": 1, "b": '}]"'}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}


def parse(text: str, *cuts: int) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """Return text and calls of a reply that came in pieces."""
    parser = tools.Parser(("add",))
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    found: list[str | ToolCall] = []
    for begin, end in pairwise(borders):
        found += parser.feed(text[begin:end])
    found += parser.finish()
    calls = [(one.name, one.arguments) for one in found if isinstance(one, ToolCall)]
    return "".join(one for one in found if isinstance(one, str)), calls


REPLIES = {
    "hermes": (f"<tool_call>\n{CALL}\n</tool_call>", "", 1),
    "hermes, two": (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "", 2),
    "hermes after text": (f"I will add.\n<tool_call>{CALL}</tool_call>", "I will add.", 1),
    "mistral": (f"[TOOL_CALLS][{CALL}, {CALL}]", "", 2),
    "mistral, new": ('[TOOL_CALLS]add[ARGS]{"a": 1, "b": "}]\\""}', "", 1),
    "llama, tag": (f"<|python_tag|>{CALL.replace('arguments', 'parameters')}", "", 1),
    "llama, bare": (CALL.replace("arguments", "parameters"), "", 1),
    "llama, two": (f"{CALL}; {CALL}", "", 2),
    "llama, function": ('<function=add>{"a": 1, "b": "}]\\""}</function>', "", 1),
    "fenced": (f"```json\n{CALL}\n```", "", 1),
    "wrapped": (f'{{"type": "function", "function": {CALL}}}', "", 1),
    "text": ("1 < 2, see [1] and {x}.", "1 < 2, see [1] and {x}.", 0),
    "other json": ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', 0),
    "no call": ('[1, 2] {"a": 3}', '[1, 2] {"a": 3}', 0),
    "cut": ('<tool_call>{"name": "add", "argu', '<tool_call>{"name": "add", "argu', 0),
}


@pytest.mark.parametrize("name", REPLIES)
@given(cuts=st.lists(st.integers(0, 500), max_size=12))
def test_calls_are_found_however_the_text_is_cut(name: str, cuts: list[int]) -> None:
    reply, text, count = REPLIES[name]
    assert parse(reply, *cuts) == (text, [("add", ARGUMENTS)] * count)


@given(st.text(alphabet='<>[]{}"\\/tol_cal TOOL_CALLS:,x1\n', max_size=60), st.integers(0, 60))
def test_no_text_is_lost_without_a_call(text: str, cut: int) -> None:
    said, calls = parse(text, cut)
    assert calls or said == text


def test_text_comes_out_as_soon_as_it_can() -> None:
    parser = tools.Parser(("add",))
    assert list(parser.feed("Hello, ")) == ["Hello,"]
    assert list(parser.feed("1 <")) == [" 1"]
    assert list(parser.feed(" 2")) == [" < 2"]


def test_a_forced_call_is_a_schema() -> None:
    schema = json.loads(tools.schema([TOOL], "add"))
    assert schema["properties"]["name"] == {"const": "add"}
    both = json.loads(tools.schema([TOOL, TOOL]))
    assert len(both["anyOf"]) == 2
    with pytest.raises(InvalidParameter, match="there is no tool 'sub'"):
        tools.schema([TOOL], "sub")
    with pytest.raises(InvalidParameter):
        tools.names_of([{"type": "function"}])


@given(st.lists(st.integers(0, 60), max_size=8), st.booleans())
def test_thoughts_are_told_from_answers(cuts: list[int], inside: bool) -> None:
    text = ("" if inside else "\n<think>") + "\nHm, 1 < 2.\n</think>\n\nIt is <b>2</b>."
    splitter = thinking.Splitter(inside=inside)
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    found = []
    for begin, end in pairwise(borders):
        found += splitter.feed(text[begin:end])
    found += splitter.finish()
    thought = "".join(piece for is_thought, piece in found if is_thought)
    answer = "".join(piece for is_thought, piece in found if not is_thought)
    assert (thought.rstrip(), answer) == ("Hm, 1 < 2.", "It is <b>2</b>.")


def test_a_reply_without_a_thought_stays_as_it_is() -> None:
    splitter = thinking.Splitter()
    found = [*splitter.feed("<thin"), *splitter.feed("g> is no tag"), *splitter.finish()]
    assert found == [(False, "<thing> is no tag")]
    assert thinking.opens("{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}")
    assert not thinking.opens("{% if add_generation_prompt %}<think>\n\n</think>{% endif %}")


def test_options_are_ollamas() -> None:
    given_options = {
        **{"num_ctx": 2048, "num_gpu": 0, "num_thread": 3, "num_batch": 64, "use_mmap": True},
        **{"seed": 2**40, "num_predict": -2, "stop": ["", "x"], "temperature": 1, "top_k": None},
        **{"nonsense": 1},
    }
    chosen, loading = options.options(given_options)
    assert loading == {"num_ctx": 2048, "num_gpu": 0, "num_thread": 3}
    assert chosen["num_predict"] == -1
    assert chosen["stop"] == ["x"]
    assert 0 <= int(str(chosen["seed"])) < 2**32
    for wrong in ({"num_ctx": "2048"}, {"temperature": "1"}, {"use_mmap": 1}, {"top_k": 1.5}):
        with pytest.raises(InvalidParameter, match="must be of type"):
            options.options(wrong)
    assert (options.duration("5m"), options.duration(7), options.duration("-1")) == (300, 7, -1)


def test_a_reply_that_could_go_on_for_ever_has_an_end() -> None:
    for asked, limit in ((-1, 640), (10_000, 640), (7, 7)):
        request = asking.bounded(Generate(Sampling(max_tokens=asked)), 640)
        assert request.sampling.max_tokens == limit


def test_what_is_kept_of_a_prompt() -> None:
    for given_options, kept in ((None, 0), ({"num_keep": 4}, 4), ({"num_keep": -5}, -1)):
        assert options.keep_tokens(given_options) == kept
    with pytest.raises(InvalidParameter, match="num_keep"):
        options.keep_tokens({"num_keep": "all"})


def test_what_is_nested_too_deeply_is_refused() -> None:
    value: Any = 1
    for _ in range(60):
        value = {"a": [value]} if isinstance(value, int) else {"a": value}
    require_shallow(value, "it")
    for _ in range(10):
        value = [value]
    with pytest.raises(InvalidParameter, match="nested too deeply"):
        require_shallow(value, "it")


def test_clients_take_turns() -> None:
    order: list[str] = []

    async def ask(gate: turns.Turns, who: str) -> None:
        turns.client.set(who)
        await gate.acquire()
        order.append(who)

    async def scenario() -> None:
        gate = turns.Turns(1)
        await gate.acquire()
        greedy = [asyncio.create_task(ask(gate, "a")) for _ in range(4)]
        await asyncio.sleep(0)  # they are in the queue
        others = [asyncio.create_task(ask(gate, who)) for who in "bcb"]
        await asyncio.sleep(0)
        greedy[1].cancel()
        for _ in range(6):
            gate.release()
        await asyncio.wait([*greedy, *others])
        gate.release()
        await gate.acquire()  # the place of who left came back
        gate.release()

    asyncio.run(scenario())
    assert order == ["a", "b", "c", "a", "b", "a"]


def _kinds(kind: type[LocalLlamaError]) -> list[type[LocalLlamaError]]:
    return [kind, *(inner for one in kind.__subclasses__() for inner in _kinds(one))]


@pytest.mark.parametrize("kind", _kinds(LocalLlamaError))
def test_every_error_has_a_status_and_three_bodies(kind: type[LocalLlamaError]) -> None:
    error = kind("what", "hint --ctx 5")
    assert 400 <= http_errors.status(error) < 600
    assert http_errors.body(error, "/api/chat") == {"error": "what", "hint": "hint num_ctx 5"}
    assert http_errors.body(error, "/v1/models")["error"]["message"] == "what (hint num_ctx 5)"
    assert http_errors.body(error, "/v1/messages")["type"] == "error"
    assert http_errors.status(errors.ModelNotFound("x")) == 404

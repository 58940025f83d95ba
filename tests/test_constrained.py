"""The sampler chain, grammars and schemas on the real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from localllama.engine import grammar
from localllama.engine.api import Done, Message, Sampling, Text
from localllama.engine.client import Engine
from localllama.errors import EngineError, InvalidParameter
from tests.support import engines

COUNTING = "1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4,"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
}
SMALL: list[Any] = [
    PERSON,
    {"type": "object", "properties": {"person": PERSON}, "required": ["person"]},
    {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2},
    {"type": "array", "items": {"type": "integer", "minimum": -3, "maximum": 3}, "maxItems": 5},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}]},
    {"type": "object", "properties": {name: {"type": "boolean"} for name in "abc"}},
    {"enum": ["red", "gréen 🦙", 'with "quotes" and \\']},
    {"const": {"a": [1, 2.5, None]}},
    {"type": "integer", "minimum": 17, "maximum": 23456},
    {"type": "integer", "exclusiveMaximum": -5},
    {"type": "number", "minimum": 0.125, "maximum": 0.25},
    {"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 0},
    {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 99},
    {"type": "string", "minLength": 3, "maxLength": 9},
    {"type": "string", "pattern": "^[A-Z][a-z]{2,6}( [A-Z][a-z]{2,6})?$"},
    {"type": "string", "pattern": '^[^a-z"]{1,4}$'},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": ["string", "null"], "maxLength": 5},
    {"oneOf": [{"type": "boolean"}, {"type": "string", "maxLength": 6}]},
]


@pytest.fixture(scope="module")
def engine(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engines.load(smollm2, tmp_path_factory.mktemp("workers"), 512) as loaded:
        yield loaded


def ask(engine: Engine, text: str, **chosen: Any) -> tuple[str, Done]:
    sampling = Sampling(**{"temperature": 0, "max_tokens": 12, **chosen})
    reply = ""
    for event in engine.stream(sampling, messages=[Message("user", text)]):
        if isinstance(event, Text):
            reply += event.text
    assert isinstance(event, Done)
    return reply, event


@pytest.mark.parametrize("document", SMALL, ids=lambda document: json.dumps(document)[:60])
def test_a_reply_under_a_schema_is_valid(engine: Engine, document: Any) -> None:
    schema = json.dumps(document)
    reply, done = ask(engine, "Describe a person.", schema=schema, max_tokens=120, temperature=0.7)
    assert done.reason == "stop"
    draft = jsonschema.Draft202012Validator
    draft(document, format_checker=draft.FORMAT_CHECKER).validate(json.loads(reply))


def test_a_schema_that_cannot_be_kept_to_is_refused_before_anything_runs(engine: Engine) -> None:
    with pytest.raises(InvalidParameter, match="'not' at #/properties/a"):
        engine.stream(Sampling(schema='{"properties": {"a": {"not": {}}}}'), prompt="Hello")
    with pytest.raises(InvalidParameter, match="not both"):
        engine.stream(Sampling(schema="{}", grammar=grammar.JSON), prompt="Hello")


@pytest.mark.parametrize(
    "dead_end",
    [
        r'root ::= "\x00"',  # no token has it
        r"root ::= [^\x00-\U0010FFFF]",  # nothing is left
        r'root ::= "a" [^\x00-\U0010FFFF]',
    ],
)
def test_a_grammar_that_leads_nowhere_costs_the_request_only(engine: Engine, dead_end: str) -> None:
    with pytest.raises(EngineError, match="allows nothing"):
        ask(engine, "Hello", grammar=dead_end)
    assert ask(engine, "Hello", grammar='root ::= "yes" | "no"')[0] in ("yes", "no")


@pytest.mark.parametrize(
    "stage",
    [
        {"typical_p": 0.5, "top_k": 0},
        {"xtc_probability": 1, "xtc_threshold": 0.01, "top_k": 3},
        {"mirostat": 1},
        {"mirostat": 2},
        {"top_k": 1},
        {"min_p": 0.9},
    ],
)
def test_no_stage_picks_what_the_grammar_refuses(engine: Engine, stage: dict[str, Any]) -> None:
    wanted = 'root ::= ("Ж" | "é" "x"){3} "🦙"'
    reply, done = ask(engine, "Hello", grammar=wanted, temperature=1, seed=5, **stage)
    assert reply.endswith("🦙")
    assert done.reason == "stop"


def test_a_grammar_stays_when_the_end_is_to_be_ignored(engine: Engine) -> None:
    assert ask(engine, "Hello", grammar='root ::= "yes"', ignore_eos=True)[0] == "yes"


def test_the_end_can_be_ignored(engine: Engine) -> None:
    assert ask(engine, "Say hi.", max_tokens=60)[1].reason == "stop"
    _, done = ask(engine, "Say hi.", max_tokens=60, ignore_eos=True)
    assert (done.reason, done.usage.completion_tokens) == ("length", 60)


def test_dry_breaks_a_repetition(engine: Engine) -> None:
    def count(**chosen: Any) -> str:
        stream = engine.stream(Sampling(temperature=0, max_tokens=12, **chosen), prompt=COUNTING)
        return "".join(event.text for event in stream if isinstance(event, Text))

    repeated = " 1, 2, 3, 4,"
    assert count() == repeated
    assert count(dry_multiplier=5.0) != repeated
    assert count(dry_multiplier=5.0, dry_penalty_last_n=2**31 - 1) != repeated
    assert count(dry_multiplier=5.0, dry_penalty_last_n=0) == repeated
    assert count(dry_multiplier=5.0, dry_allowed_length=100) == repeated
    assert count(dry_multiplier=5.0, dry_sequence_breakers=(",",)) == repeated


@pytest.mark.parametrize(
    "stage",
    [{"xtc_probability": 1.0, "xtc_threshold": 0.01}, {"mirostat": 1}, {"mirostat": 2}],
)
def test_a_stage_changes_the_reply(engine: Engine, stage: dict[str, Any]) -> None:
    def story(**chosen: Any) -> str:
        return ask(engine, "Tell me a story.", temperature=1, seed=11, **chosen)[0]

    story()  # from now on the whole prompt is cached, which changes the last bits of the logits
    assert story(**stage) != story()


def test_a_bias_forces_a_token(engine: Engine) -> None:
    reply, done = ask(engine, "Hello", logit_bias={260: 100.0}, max_tokens=6)
    assert done.usage.completion_tokens == 6
    assert reply == reply[: len(reply) // 6] * 6
    assert reply != ask(engine, "Hello", max_tokens=6)[0]
    with pytest.raises(InvalidParameter, match="token 49152"):
        ask(engine, "Hello", logit_bias={49152: 1.0})

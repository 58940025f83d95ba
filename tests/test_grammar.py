"""Grammars and JSON schemas: what is refused, and that nothing else than asked can come out."""

from __future__ import annotations

import json
from decimal import Decimal
from random import Random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllama.engine import gbnf, gbnf_parser, grammar, schema
from localllama.errors import InvalidParameter
from localllama.native.json_schema import to_gbnf
from tests.support.derive import Deriver

CHAIN = "\n".join(f'r{i} ::= r{i + 1} "x" | r{i + 1} "y"' for i in range(40)) + '\nr40 ::= "z"'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no rule named root"),
        ('answer ::= "yes"', "no rule named root"),
        ("root ::= (", r"line 1: \) must be where its end"),
        ('root ::= "yes', "the end of a literal"),
        ("root ::= [a-", "the end of a class"),
        (r'root ::= "\q"', "the end of a literal"),
        ('root ::= "a"\n\nroot2 = "b"', "line 3: ::= must"),
        ('root ::= ** "a"', "the end of the rule"),
        ("root ::= answer", "a rule answer, which does not exist"),
        ('root ::= "a" | root "b"', "root begins with itself"),
        ('root ::= x root "c" | "d"\nx ::= y?\ny ::= "a"', "root begins with itself"),
        ('root ::= one\none ::= two "a"\ntwo ::= "" one', "begins with itself"),
        ("root ::= " + "(" * 200 + '"a"' + ")" * 200, "nests more than 100"),
        ("root ::= " + "(" * 100_000, "nests more than 100"),
        ('root ::= "a"{3000}', "cannot be kept to"),
        ('root ::= "a"{3,2}', "cannot be kept to"),
        ("root ::= " + '"abc"{2000} ' * 20, "too large"),
        ("root ::= r0\n" + CHAIN, "more than 2000 ways"),
        ('root ::= a\na ::= "x" a | "x" a "b" | "x" a "c" | ""', "too many ways at once"),
        ('root ::= "[" (one | two) "]"\none ::= "(" root\ntwo ::= "(" root ";"', "too many ways"),
        ("root ::= <think>", "refers to a token"),
        ("root ::= !<[7]>", "refers to a token"),
        ('root ::= "a\0b"', "characters that no text has"),
        ('root ::= "\ud800"', "characters that no text has"),
        ('root ::= "' + "a" * 300_000 + '"', "longer than"),
    ],
)
def test_a_grammar_that_would_harm_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidParameter, match=says):
        grammar.check(text)


@pytest.mark.parametrize(
    "text",
    [
        grammar.JSON,
        'root ::= ("a"?)* "b"',
        'root ::= "a"{2} "b"{1,} [^c-e]{0,7} . [\\]\\-x]+ # a remark\n',
        'root ::= (\n  "a" |\n  "b"\n)\n\n',
        'root ::= list\nlist ::= item ("," item)*\nitem ::= "x" | "(" list ")"',
        'root ::= "x" root | ""',
    ],
)
def test_a_sound_grammar_passes(text: str) -> None:
    grammar.check(text)


def test_json_text_is_what_the_json_grammar_writes() -> None:
    deriver = Deriver(gbnf_parser.parse(grammar.JSON), Random(0))
    for _ in range(100):
        assert isinstance(json.loads(deriver.text()), dict | list)


# --- schemas -------------------------------------------------------------------------------------

NODE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
        }
    },
    "$ref": "#/$defs/node",
}
KEPT: list[Any] = [
    {},
    True,
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "additionalProperties": False},
    {"required": ["a"], "properties": {"b": {"type": "null"}}},
    {"type": "object", "properties": {name: {"type": "integer"} for name in "abcd"}},
    {"properties": {"a": {"maxLength": 3, "type": "string"}, "b": {"const": 1}}, "required": ["b"]},
    {"properties": {'a/b~"\\é\n': {"const": 1}, "": {"type": "null"}}, "required": [""]},
    # Names that the converter and this program use for rules of their own.
    {
        "properties": {
            "root": {"type": "null"},
            "space": {"type": "boolean"},
            "json-char": {"type": "integer"},
            "ref-1": {"$ref": "#/$defs/ref-1"},
        },
        "$defs": {"ref-1": {"type": "integer"}},
    },
    NODE,
    {"type": "array", "minItems": 2, "maxItems": 3, "items": {"type": "boolean"}},
    {"type": "array", "minItems": 2},
    {"type": "array", "maxItems": 0},
    {"type": "array", "prefixItems": [{"type": "null"}, {"type": "integer"}], "items": False},
    {"type": "array", "uniqueItems": True, "maxItems": 1},
    {"enum": ['a"b\\', "é\n", 3, None, 1.5, {"a": [1]}]},
    {"enum": [1, "a", True], "type": "string"},
    {"const": "x\ty"},
    {"type": "string", "minLength": 3, "maxLength": 4},
    {"type": "string", "minLength": 2050, "maxLength": 2060},
    {"type": ["string", "null"], "maxLength": 3},
    {"type": ["integer", "string", "array"], "maxLength": 3, "minimum": 5},
    {"minimum": 1, "maxLength": 2},
    *({"format": name} for name in ("date", "time", "date-time", "uuid", "ipv4")),
    {"pattern": "^[a-z]{2,4}\\d$"},
    {"pattern": "b+"},
    {"pattern": '^(a|"b\\\\c)*[^x-z\\s]\\.$'},
    {"pattern": "^[ -~]{3}$"},
    {"pattern": "^(?:\\w+@\\w+\\.[A-Za-z]{2,3}|none)$"},
    {"pattern": "^.{1,5}\\x41\\u0042\\t?$"},
    {"pattern": '^\\D\\W\\S[^"\\\\]$'},
    {"type": "integer", "multipleOf": 7, "minimum": 3, "maximum": 100},
    {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 3},
    {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    {
        "oneOf": [
            {"properties": {"k": {"const": c}}, "required": ["k"], "type": "object"} for c in "ab"
        ]
    },
    {
        "allOf": [
            {"properties": {"a": {"type": "integer", "minimum": 0}}, "required": ["a"]},
            {"properties": {"a": {"maximum": 9}, "b": {"type": "string"}}, "required": ["b"]},
        ]
    },
    {"properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
]
REFUSED: list[tuple[Any, str]] = [
    (5, "neither an object nor a boolean"),
    (False, "allows no value"),
    *(({name: {}}, name) for name in ("not", "if", "then", "else", "contains", "propertyNames")),
    *(({name: {}}, name) for name in ("patternProperties", "dependentRequired", "nonsense")),
    *(({name: 1}, name) for name in ("minProperties", "maxProperties", "minContains")),
    ({"properties": {"a": {"items": [{}, {"not": {}}]}}}, "'not' at #/properties/a/items/1"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "minItems": 3, "maxItems": 2}, "maxItems"),
    ({"type": "array", "items": False, "minItems": 1}, "minItems"),
    ({"prefixItems": [{}], "minItems": 2}, "minItems"),
    ({"minItems": -1}, "minItems"),
    ({"minLength": 3, "maxLength": 2}, "maxLength"),
    *(({name: 10**9}, name) for name in ("minLength", "maxLength", "minItems", "maxItems")),
    ({"format": "email"}, "format.*email"),
    ({"pattern": "a", "maxLength": 3}, "pattern.*maxLength"),
    *(
        ({"pattern": wrong}, "pattern")
        for wrong in ("[", "\\", "(", ")", "*", "^a$|b", "a^b", "\\1")
    ),
    *(({"pattern": wrong}, "pattern") for wrong in ("(?=a)", "a{3000}", "[z-a]", "\\p{L}", "\\b")),
    ({"multipleOf": 3}, "multipleOf"),
    ({"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 6}, "multipleOf"),
    ({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4}, "exclusiveM"),
    ({"type": "integer", "minimum": 10**20}, "minimum"),
    ({"type": "number", "minimum": 1e-20}, "minimum"),
    ({"minimum": "low"}, "minimum"),
    ({"type": "thing"}, "type"),
    ({"enum": []}, "enum"),
    ({"enum": [1], "type": "string"}, "enum"),
    ({"enum": [1], "minimum": 0}, "'minimum' at # beside enum"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
    ({"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, "oneOf"),
    ({"required": ["a"], "additionalProperties": False}, "required"),
    ({"$ref": "#"}, "without end"),
    ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "without end"),
    ({"allOf": [{"$ref": "#"}]}, "without end"),
    ({"$ref": "#/nowhere"}, r"\$ref"),
    ({"$ref": "https://example.com/schema"}, r"\$ref"),
    ({"allOf": [{"properties": {"a": {}}}, {"additionalProperties": False}]}, "additionalProp"),
    ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "pattern.*twice"),
]


def gbnf_of(document: Any) -> str:
    made = to_gbnf(schema.definitions(json.dumps(document)))
    grammar.check(made)
    return made


@pytest.mark.parametrize("document", KEPT, ids=lambda document: json.dumps(document)[:60])
def test_whatever_the_grammar_of_a_schema_writes_is_valid(document: Any) -> None:
    _write_and_validate(document, texts=4 if "2060" in str(document) else 40)


def _write_and_validate(document: Any, texts: int) -> None:
    draft = jsonschema.Draft202012Validator
    validator = draft(document, format_checker=draft.FORMAT_CHECKER)
    deriver = Deriver(gbnf_parser.parse(gbnf_of(document)), Random(1))
    for _ in range(texts):
        text = deriver.text()
        validator.validate(json.loads(text))


@pytest.mark.parametrize(("document", "says"), REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_what_a_grammar_cannot_keep_to_is_refused_by_name(document: Any, says: str) -> None:
    with pytest.raises(InvalidParameter, match=says):
        gbnf_of(document)


@pytest.mark.parametrize(
    "text", ["", "{", '{"minimum": NaN}', '{"minimum": 1e999999999}', "[" * 9**5]
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match=r"not JSON|longer"):
        schema.definitions(text)


_BOUNDS = st.decimals(-2000, 2000, places=3) | st.integers(-(10**14), 10**14).map(Decimal)


@settings(deadline=None, max_examples=60)
@given(_BOUNDS, _BOUNDS, st.booleans(), st.booleans())
def test_numbers_stay_within_their_bounds(
    one: Decimal, other: Decimal, above: bool, below: bool
) -> None:
    low, high = min(one, other), max(one, other)
    if low == high and (above or below):
        with pytest.raises(gbnf.NotPossible):
            gbnf.decimals(low, high, above=above, below=below)
        return
    rules = gbnf_parser.parse("root ::= " + gbnf.decimals(low, high, above=above, below=below))
    for seed in range(20):
        number = Decimal(Deriver(rules, Random(seed)).text())
        assert low <= number <= high
        assert not (above and number == low)
        assert not (below and number == high)


@settings(deadline=None, max_examples=60)
@given(st.integers(-1500, 1500), st.integers(0, 30))
def test_every_integer_of_a_range_and_no_other_is_possible(low: int, length: int) -> None:
    deriver = Deriver(gbnf_parser.parse("root ::= " + gbnf.integers(low, low + length)), Random(0))
    wanted = set(range(low, low + length + 1))
    written = {int(deriver.text()) for _ in range(40 * (length + 1))}
    assert written <= wanted
    assert len(written) > length // 2


_SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "null"},
            {"type": "boolean"},
            {"type": "integer", "minimum": -3, "maximum": 120},
            {"type": "number", "exclusiveMinimum": 0},
            {"type": "string", "maxLength": 4},
            {"type": "string", "pattern": "^[A-Z]\\d?$"},
            {"enum": ["red", 'gr"een', 3]},
        ]
    ),
    lambda inner: (
        st.builds(
            lambda items, most: {"type": "array", "items": items, "maxItems": most},
            inner,
            st.integers(0, 3),
        )
        | st.builds(
            lambda properties, count: {
                "type": "object",
                "properties": properties,
                "required": list(properties)[:count],
            },
            st.dictionaries(st.text(max_size=4), inner, max_size=4),
            st.integers(0, 4),
        )
        | st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3))
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(_SCHEMAS)
def test_generated_schemas_are_kept_to(document: Any) -> None:
    _write_and_validate(document, texts=10)

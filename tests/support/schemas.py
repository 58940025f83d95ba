"""JSON Schemas made at random, of the keywords that people use."""

from __future__ import annotations

from random import Random
from typing import Any

_NAMES = ("name", "age", "city", "tags", "active", "price", "address", "note", "kind")


def schema(random: Random) -> dict[str, Any]:
    """Return a schema of an object; now and then with a keyword that cannot be kept to."""
    found = _object(random, 2)
    if random.random() < 0.05:
        found["patternProperties"] = {"^x": {"type": "string"}}
    return found


def _object(random: Random, depth: int) -> dict[str, Any]:
    names = random.sample(_NAMES, random.randrange(1, 4))
    return {
        "type": "object",
        "properties": {name: _value(random, depth) for name in names},
        "required": random.sample(names, random.randrange(len(names) + 1)),
        "additionalProperties": False,
    }


def _value(random: Random, depth: int) -> dict[str, Any]:
    kind = random.randrange(8 if depth else 6)
    if kind == 6:
        return _object(random, depth - 1)
    if kind == 7:
        items = _value(random, depth - 1)
        return {"type": "array", "items": items, "minItems": 1, "maxItems": random.randrange(1, 4)}
    return (
        {"type": "string", "maxLength": random.randrange(1, 12)},
        {"type": "integer", "minimum": random.randrange(10), "maximum": 10 + random.randrange(100)},
        {"type": "boolean"},
        {"enum": ["red", "green", 3, None]},
        {"anyOf": [{"type": "null"}, {"type": "number", "minimum": 0, "maximum": 9}]},
        {"type": "string", "pattern": "^[a-z]{2,5}$"},
    )[kind]

"""JSON Schemas that replies can be held to: every keyword is kept to or refused by name. Pure.

llama-cpp-python's converter silently leaves out what it does not know, so it gets to see only a
small language in which it is right: the forms ``{"gbnf": rule}``, ``{"$ref": "#/$defs/ref-N"}``,
``{"anyOf": [...]}``, objects with ``properties``, ``required`` and ``additionalProperties`` (a form
or false), and arrays with ``items``, ``minItems`` and ``maxItems`` or with ``prefixItems``. This
module says a schema again in that language.

What comes of it may allow less than the schema: properties come in their order, and others only
where none are listed. It never allows more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from localllama.engine import gbnf, schema_scalars
from localllama.engine.gbnf_parser import LONGEST_REPETITION
from localllama.engine.schema_scalars import NUMBERS, is_number, refuse
from localllama.errors import InvalidParameter

Schema = dict[str, Any]

_LONGEST_TEXT = 256 << 10
_DEEPEST = 40
_MOST_PARTS = 2_000
_MOST_PROPERTIES = 200
_LARGEST_EXPONENT = 300

_NOTES = frozenset(
    (
        *("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default"),
        *("examples", "deprecated", "readOnly", "writeOnly"),
    )
)
_BY_TYPE: dict[str, frozenset[str]] = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(
        ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems")
    ),
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "number": NUMBERS,
    "integer": NUMBERS,
    "boolean": frozenset(),
    "null": frozenset(),
}
_ANY_TYPE = frozenset(("type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf"))
_KNOWN = _ANY_TYPE.union(*_BY_TYPE.values())
_COUNTS = frozenset(("minItems", "maxItems", "minLength", "maxLength"))


@lru_cache(maxsize=64)
def definitions(text: str) -> dict[str, Schema]:
    """Return named schemas in the small language; ``ref-0`` is the one that ``text`` is.

    Raises InvalidParameter naming the keyword that cannot be kept to, and its place.
    """
    if len(text) > _LONGEST_TEXT:
        raise InvalidParameter(f"the schema is longer than {_LONGEST_TEXT >> 10} KiB")
    try:
        root = json.loads(text, parse_float=_decimal, parse_constant=_decimal)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise InvalidParameter(f"the schema is not JSON: {error}") from error
    return _Reader(root).read()


def _decimal(text: str) -> Decimal:
    number = Decimal(text)
    if not number.is_finite() or abs(number.adjusted()) > _LARGEST_EXPONENT:
        raise ValueError(f"{text} is no number that a double holds")
    return number


class _Reader:
    """Says one document again; each place that a $ref names becomes a definition."""

    def __init__(self, root: object) -> None:
        self._root = root
        self._names: dict[str, str] = {}  # of a $ref's target
        self._waiting: list[str] = []
        self._parts = 0

    def read(self) -> dict[str, Schema]:
        """Return the definitions."""
        self._define("#", "#")
        found: dict[str, Schema] = {}
        while self._waiting:
            ref = self._waiting.pop()
            found[self._names[ref]] = self._form(self._target(ref, ref), ref)
        for ref, name in self._names.items():
            if name in _met_at_once(found[name], found, set()):
                raise InvalidParameter(f"the schema at {ref} refers to itself without end")
        return found

    def _define(self, ref: str, path: str) -> str:
        """Return the name of the definition of what ``ref`` points to."""
        self._target(ref, path)
        if ref not in self._names:
            self._names[ref] = f"ref-{len(self._names)}"
            self._waiting.append(ref)
        return self._names[ref]

    def _target(self, ref: object, path: str) -> object:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            refuse("$ref", path, "must point into the schema itself, like #/$defs/NAME")
        target: Any = self._root
        for step in ref.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and step.isdecimal() and int(step) < len(target):
                target = target[int(step)]
            elif isinstance(target, dict) and step in target:
                target = target[step]
            else:
                refuse("$ref", path, f"points to {ref}, where nothing is")
        return target

    def _form(self, schema: object, path: str) -> Schema:
        """Return what ``schema`` says in the small language."""
        self._parts += 1
        if self._parts > _MOST_PARTS or path.count("/") > 2 * _DEEPEST:
            raise InvalidParameter(f"the schema is too large or nested too deeply at {path}")
        known = self._checked(schema, path)
        if set(known) == {"$ref"}:
            return {"$ref": f"#/$defs/{self._define(known['$ref'], path)}"}
        known = self._flat(known, path)
        for keyword in ("anyOf", "oneOf"):
            if keyword in known:
                return self._union(known, keyword, path)
        if "enum" in known or "const" in known:
            return _one_of_values(known, path)
        return self._typed(known, path)

    def _checked(self, schema: object, path: str) -> Schema:
        """The schema without notes for people; refuses what nobody here knows."""
        if schema is True:
            return {}
        if schema is False:
            raise InvalidParameter(f"the schema allows no value at {path}")
        if not isinstance(schema, dict):
            raise InvalidParameter(f"the schema at {path} is neither an object nor a boolean")
        known = {key: value for key, value in schema.items() if key not in _NOTES}
        for keyword, value in known.items():
            if keyword not in _KNOWN:
                refuse(keyword, path, "is not supported")
            _check_kind(keyword, value, path)
        return known

    def _flat(self, schema: Schema, path: str, depth: int = 0) -> Schema:
        """The schema with $ref and allOf worked in."""
        if depth > _DEEPEST:
            raise InvalidParameter(f"the schema refers to itself without end at {path}")
        merged = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        others = list(schema.get("allOf", ()))
        if "$ref" in schema:
            others.append(self._target(schema["$ref"], path))
        for other in others:
            part = self._flat(self._checked(other, path), path, depth + 1)
            merged = self._both(merged, part, path, depth)
        return merged

    def _both(self, one: Schema, other: Schema, path: str, depth: int = 0) -> Schema:
        """A schema that allows what both allow."""
        for closed, open_ in ((one, other), (other, one)):
            beyond = set(open_.get("properties", ())) - set(closed.get("properties", ()))
            if beyond and closed.get("additionalProperties", True) not in (True, {}):
                refuse("additionalProperties", path, "does not know the properties beside it")
        merged = dict(one)
        for keyword, value in other.items():
            if keyword not in merged or merged[keyword] == value:
                merged[keyword] = value
            elif keyword == "properties":
                merged[keyword] = {**merged[keyword]}
                for name, schema in value.items():
                    merged[keyword][name] = (
                        {"allOf": [merged[keyword][name], schema]}
                        if name in merged[keyword]
                        else schema
                    )
            elif keyword in _MERGED:
                merged[keyword] = _MERGED[keyword](merged[keyword], value)
            else:
                refuse(keyword, path, "comes twice for the same value")
        return merged

    def _union(self, schema: Schema, keyword: str, path: str) -> Schema:
        base = {key: value for key, value in schema.items() if key != keyword}
        parts = [self._flat(self._checked(part, path), path) for part in schema[keyword]]
        if keyword == "oneOf":
            for i, part in enumerate(parts):
                if not all(self._apart(part, other, path) for other in parts[i + 1 :]):
                    refuse(keyword, path, "has parts that may allow the same value; use anyOf")
        # Without anything beside them, parts that are a $ref may lead back here.
        said = [self._both(base, part, path) for part in parts] if base else schema[keyword]
        return {"anyOf": [self._form(part, f"{path}/{keyword}/{i}") for i, part in enumerate(said)]}

    def _apart(self, one: Schema, other: Schema, path: str) -> bool:
        """Whether what is generated for either is certainly nothing that the other allows."""
        if not _types(one) & _types(other):
            return True
        values, others = _values(one), _values(other)
        if values is not None and others is not None:
            return not any(value in others for value in values)
        properties, more = one.get("properties", {}), other.get("properties", {})
        needed, needs = set(one.get("required", ())), set(other.get("required", ()))
        if _types(one) == _types(other) == {"object"}:
            if any(
                self._apart(
                    self._flat(self._checked(properties[name], path), path),
                    self._flat(self._checked(more[name], path), path),
                    path,
                )
                for name in needed & needs & set(properties) & set(more)
            ):
                return True
            listed = bool(properties) and bool(more)
            return listed and bool(needed - set(more) - needs and needs - set(properties) - needed)
        return False

    def _typed(self, schema: Schema, path: str) -> Schema:
        if not schema:
            return {"gbnf": "json-value"}
        types = schema.get("type")
        if types is None:
            types = [
                name for name in _BY_TYPE if name != "integer" and _BY_TYPE[name] & set(schema)
            ]
        if isinstance(types, list) and len(types) != 1:
            parts = [self._of_type(name, schema, path) for name in types]
            if not parts:
                raise InvalidParameter(f"the schema allows no value at {path}")
            return {"anyOf": parts}
        return self._of_type(types[0] if isinstance(types, list) else types, schema, path)

    def _of_type(self, name: str, schema: Schema, path: str) -> Schema:
        if name == "object":
            return self._object(schema, path)
        if name == "array":
            return self._array(schema, path)
        if name == "string":
            return {"gbnf": schema_scalars.string(schema, path)}
        if name in ("number", "integer"):
            return {"gbnf": schema_scalars.number(schema, path, whole=name == "integer")}
        return {"gbnf": '"null"' if name == "null" else '( "true" | "false" )'}

    def _object(self, schema: Schema, path: str) -> Schema:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        others = schema.get("additionalProperties", True)
        if len(properties) + len(required) > _MOST_PROPERTIES:
            refuse("properties", path, f"has more than {_MOST_PROPERTIES}")
        wanted = {name: part for name, part in properties.items() if part is not False}
        for name in required:
            if name not in wanted:
                if others is False or name in properties:
                    refuse("required", path, f"asks for {name!r}, which may not be there")
                wanted[name] = others
        forms = {
            name: self._form(part, f"{path}/properties/{_escaped(name)}")
            for name, part in wanted.items()
        }
        form: Schema = {"type": "object", "properties": forms, "required": required}
        form["additionalProperties"] = False
        if not wanted and others is not False:
            form["additionalProperties"] = self._form(others, f"{path}/additionalProperties")
        return form

    def _array(self, schema: Schema, path: str) -> Schema:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most is not None and most < least:
            refuse("maxItems", path, "is less than minItems")
        if max(least, most or 0) > LONGEST_REPETITION:
            keyword = "minItems" if least > LONGEST_REPETITION else "maxItems"
            refuse(keyword, path, f"is more than {LONGEST_REPETITION}")
        if schema.get("uniqueItems") and (most is None or most > 1):
            refuse("uniqueItems", path, "is not supported")
        items = schema.get("items", True)
        tuple_items = items if isinstance(items, list) else schema.get("prefixItems")
        if tuple_items is not None:
            if least > len(tuple_items):
                refuse("minItems", path, "is more than the items that are listed")
            tuple_items = tuple_items[:most]
            return {
                "type": "array",
                "prefixItems": [
                    self._form(part, f"{path}/items/{i}") for i, part in enumerate(tuple_items)
                ],
            }
        if items is False:
            if least:
                refuse("minItems", path, "is more than items allows")
            return {"type": "array", "prefixItems": []}
        form = {"type": "array", "items": self._form(items, f"{path}/items")}
        return {**form, "minItems": least, "maxItems": most}


def _met_at_once(form: Schema, definitions: Mapping[str, Schema], met: set[str]) -> set[str]:
    """The definitions that a value must follow before its first character."""
    for part in form.get("anyOf", [form]):
        name = part.get("$ref", "").rpartition("/")[2]
        if "anyOf" in part:
            _met_at_once(part, definitions, met)
        elif name and name not in met:
            met.add(name)
            _met_at_once(definitions[name], definitions, met)
    return met


def _one_of_values(schema: Schema, path: str) -> Schema:
    if beside := set(schema) - {"enum", "const", "type"}:
        refuse(min(beside), path, "beside enum or const is not supported")
    values = [value for value in _values(schema) or () if _type_of(value) & _types(schema)]
    if not values:
        refuse("enum" if "enum" in schema else "const", path, "allows no value")
    try:
        return {"gbnf": gbnf.either([gbnf.json_literal(value) for value in values])}
    except gbnf.NotPossible as error:
        refuse("enum" if "enum" in schema else "const", path, str(error))


def _values(schema: Schema) -> list[object] | None:
    """What enum and const leave; None = anything."""
    if "const" in schema:
        constant = schema["const"]
        return [constant] if constant in schema.get("enum", [constant]) else []
    return schema.get("enum")


def _types(schema: Schema) -> set[str]:
    """The types that a value can have; an integer is a number too."""
    given = schema.get("type", list(_BY_TYPE))
    names = set(given if isinstance(given, list) else [given])
    names |= {"integer"} if "number" in names else set()
    values = _values(schema)
    return names if values is None else names & {t for value in values for t in _type_of(value)}


def _type_of(value: object) -> set[str]:
    if value is None:
        return {"null"}
    for kind, name in ((bool, "boolean"), (str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return {name}
    whole = isinstance(value, int | Decimal) and value == int(value)
    return {"number", "integer"} if whole else {"number"}


def _check_kind(keyword: str, value: object, path: str) -> None:
    """Refuse a keyword whose value is of the wrong kind."""
    if keyword in _COUNTS:
        right = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    elif keyword == "multipleOf":
        right = is_number(value) and value > 0  # type: ignore[operator]  # a number by now
    elif keyword in NUMBERS:
        right = is_number(value) or (keyword.startswith("exclusive") and value is True)
    elif keyword == "properties":
        right = isinstance(value, dict)
    elif keyword in ("required", "enum", "allOf", "anyOf", "oneOf", "prefixItems"):
        right = isinstance(value, list) and (bool(value) or keyword in ("required", "prefixItems"))
        right = right and (keyword != "required" or _all_texts(value))
    elif keyword == "type":
        names = value if isinstance(value, list) else [value]
        right = bool(names) and _all_texts(names) and set(names) <= set(_BY_TYPE)
    elif keyword in ("pattern", "format"):
        right = isinstance(value, str)
    elif keyword == "uniqueItems":
        right = isinstance(value, bool)
    else:
        return  # schemas, references and constants are looked at where they count
    if not right:
        refuse(keyword, path, f"cannot be {json.dumps(value, default=str)[:60]}")


def _all_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _shared_types(one: Any, other: Any) -> list[str]:
    return sorted(_types({"type": one}) & _types({"type": other}))


def _united(one: Iterable[str], other: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*one, *other]))


# How two values of a keyword become the one that says both.
_MERGED: Mapping[str, Callable[[Any, Any], Any]] = {
    "type": _shared_types,
    "required": _united,
    "enum": lambda one, other: [value for value in one if value in other],
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minItems", "minLength"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxItems", "maxLength"), min),
    "uniqueItems": lambda one, other: one or other,
}


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")

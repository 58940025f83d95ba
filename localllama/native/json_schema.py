"""llama-cpp-python's JSON schema converter, corrected where what it makes is not valid JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_cpp.llama_grammar import SchemaConverter

# Its own rules for primitive values let line breaks into strings and numbers like 007 through, and
# are free to write 15 digits of exponent. Half a surrogate pair is no character.
_RULES = {
    "json-char": r'[^"\\\x00-\x1f\x7f] | "\\" ( ["\\/bfnrt] | "u" json-code )',
    "json-code": "[0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}",
    "json-string": r'"\"" json-char* "\""',
    "json-integer": '"-"? ( "0" | [1-9] [0-9]{0,14} )',
    "json-number": 'json-integer ( "." [0-9]{1,15} )? ( [eE] [-+]? [0-9]{1,2} )?',
    "json-object": '"{" space ( json-pair ( "," space json-pair )* )? "}"',
    "json-pair": 'json-string ":" space json-value',
    "json-array": '"[" space ( json-value ( "," space json-value )* )? "]"',
    "json-value": "json-object | json-array | json-string | json-number"
    ' | "true" | "false" | "null"',
}


def to_gbnf(definitions: Mapping[str, dict[str, Any]]) -> str:
    """Return the grammar of definition ``ref-0``; they are as ``engine.schema`` makes them."""
    return _Converter(definitions).grammar()


class _Converter(SchemaConverter):
    """Adds the form ``{"gbnf": rule}``, arrays without nesting, and literals with a backslash."""

    def __init__(self, definitions: Mapping[str, dict[str, Any]]) -> None:
        self._base.__init__(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        self._rules.update(_RULES)
        self._refs.update({f"#/$defs/{name}": schema for name, schema in definitions.items()})

    @property
    def _base(self) -> Any:
        """The converter as it comes, which has no annotations."""
        return super()

    def grammar(self) -> str:
        """Convert it all."""
        self.visit({"$ref": "#/$defs/ref-0"}, "")
        text: str = self._base.format_grammar()
        return text

    def visit(self, schema: dict[str, Any], name: str) -> str:
        """Add the rule of a schema and return its name."""
        if "gbnf" in schema:
            rule = schema["gbnf"]
        elif "items" in schema:
            rule = f'"[" space {self._items(schema, name)} "]"'
        elif schema.get("prefixItems") == []:
            rule = '"[" space "]"'
        else:
            return str(self._base.visit(schema, name))
        return str(self._base._add_rule(name or "root", f"{rule} space"))

    def _items(self, schema: dict[str, Any], name: str) -> str:
        item = self.visit(schema["items"], f"{name}-item")
        least, most = schema["minItems"], schema["maxItems"]
        if most == 0:
            return ""
        last = "" if most is None else most - 1
        some = f'{item} ( "," space {item} ){{{max(0, least - 1)},{last}}}'
        return some if least else f"( {some} )?"

    def _add_primitive(self, name: str, rule: object) -> str:
        return "json-string"  # the keys of properties that are not listed: all it is asked for

    def _format_literal(self, literal: str) -> str:
        return str(self._base._format_literal(literal.replace("\\", "\\\\")))

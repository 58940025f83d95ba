"""The strings and numbers that a JSON Schema allows, as GBNF. Pure."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, NoReturn

from localllama.engine import gbnf
from localllama.errors import InvalidParameter

_MOST_MULTIPLES = 200
NUMBERS = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"))

_DAY = (
    '( ( "0" [13578] | "1" [02] ) "-" ( "0" [1-9] | [12] [0-9] | "3" [01] )'
    ' | ( "0" [469] | "11" ) "-" ( "0" [1-9] | [12] [0-9] | "30" )'
    ' | "02-" ( "0" [1-9] | "1" [0-9] | "2" [0-8] ) )'
)
_DATE = f'( "000" [1-9] | "00" [1-9] [0-9] | "0" [1-9] [0-9]{{2}} | [1-9] [0-9]{{3}} ) "-" {_DAY}'
_HOURS = '( [01] [0-9] | "2" [0-3] ) ":" [0-5] [0-9]'
_TIME = f'{_HOURS} ":" [0-5] [0-9] ( "." [0-9]{{1,6}} )? ( "Z" | [+-] {_HOURS} )'
_BYTE = '( "25" [0-5] | "2" [0-4] [0-9] | "1" [0-9]{2} | [1-9]? [0-9] )'
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": ' "-" '.join(f"[0-9a-f]{{{count}}}" for count in (8, 4, 4, 4, 12)),
    "ipv4": f'{_BYTE} ( "." {_BYTE} ){{3}}',
}


def refuse(keyword: str, path: str, why: str) -> NoReturn:
    raise InvalidParameter(
        f"the schema's {keyword!r} at {path} {why}",
        "replies can be held only to what a grammar can say: change or leave out this keyword",
    )


def string(schema: dict[str, Any], path: str) -> str:
    kinds = [keyword for keyword in ("pattern", "format") if keyword in schema]
    lengths = [keyword for keyword in ("minLength", "maxLength") if keyword in schema]
    if len(kinds) > 1 or (kinds and lengths):
        refuse(kinds[0], path, f"beside {(kinds[1:] or lengths)[0]} is not supported")
    if "pattern" in schema:
        try:
            return gbnf.pattern(schema["pattern"])
        except gbnf.NotPossible as error:
            refuse("pattern", path, str(error))
    if "format" in schema:
        if schema["format"] not in _FORMATS:
            refuse("format", path, f"{schema['format']!r} is none of {', '.join(_FORMATS)}")
        return gbnf.string(_FORMATS[schema["format"]])
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if most is not None and most < least:
        refuse("maxLength", path, "is less than minLength")
    if not lengths:
        return "json-string"
    try:
        return gbnf.string(gbnf.repeat("json-char", least, most))
    except gbnf.NotPossible as error:
        refuse(lengths[-1], path, str(error))


def number(schema: dict[str, Any], path: str, *, whole: bool) -> str:
    if not NUMBERS & set(schema):
        return "json-integer" if whole else "json-number"
    low, above = _bound(schema, "minimum", "exclusiveMinimum", max)
    high, below = _bound(schema, "maximum", "exclusiveMaximum", min)
    step = schema.get("multipleOf")
    keyword = min(NUMBERS & set(schema))
    try:
        if step is not None and not (whole and step == 1):
            return gbnf.either(_multiples(step, low, high, above, below, path, whole=whole))
        if not whole:
            return gbnf.decimals(low, high, above=above, below=below)
        first = None if low is None else int(low.to_integral_value("ROUND_CEILING"))
        last = None if high is None else int(high.to_integral_value("ROUND_FLOOR"))
        if first is not None and above and first == low:
            first += 1
        if last is not None and below and last == high:
            last -= 1
        return gbnf.integers(first, last)
    except gbnf.NotPossible as error:
        refuse(keyword, path, str(error))


def _bound(
    schema: dict[str, Any], closed: str, open_: str, narrower: Callable[..., Decimal]
) -> tuple[Decimal | None, bool]:
    """The bound that counts, and whether it lies outside itself; draft 4 has it as a flag."""
    bounds = [Decimal(schema[key]) for key in (closed, open_) if is_number(schema.get(key))]
    if not bounds:
        return None, False
    bound, exclusive = narrower(bounds), schema.get(open_, False)
    return bound, exclusive is True or (is_number(exclusive) and bool(exclusive == bound))


def _multiples(
    step: Decimal,
    low: Decimal | None,
    high: Decimal | None,
    above: bool,
    below: bool,
    path: str,
    *,
    whole: bool,
) -> list[str]:
    """All of them as literals: they follow no rule that a grammar could say."""
    step = Decimal(step)
    if low is None or high is None or (high - low) / step > _MOST_MULTIPLES:
        refuse("multipleOf", path, f"needs bounds with at most {_MOST_MULTIPLES} multiples")
    first = int((low / step).to_integral_value("ROUND_CEILING"))
    values = [step * n for n in range(first, int(high // step) + 1)]
    found = [
        gbnf.literal(f"{value:f}")
        for value in values
        if low <= value <= high
        and not (above and value == low)
        and not (below and value == high)
        and not (whole and value != int(value))
    ]
    if not found:
        refuse("multipleOf", path, "allows no value")
    return found


def is_number(value: object) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)

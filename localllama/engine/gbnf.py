"""Pieces of GBNF for JSON text: literals, numbers in a range, strings by length or pattern. Pure.

The rules json-char and json-string that some of them name are in native/json_schema.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal

from localllama.engine.gbnf_parser import LONGEST_REPETITION

_DIGITS = 15  # as many as every double keeps
_BEYOND = Decimal(10) ** _DIGITS
_MOST_REPETITIONS = 10 * LONGEST_REPETITION
_LAST_CHARACTER = 0x10FFFF
# Inside a JSON string these stand as escapes or not at all.
_UNSAFE = ((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F), (0xD800, 0xDFFF))
_ESCAPED = {0x22: r"\"", 0x5C: r"\\", 0x08: r"\b", 0x09: r"\t", 0x0A: r"\n", 0x0C: r"\f"}
_ESCAPED[0x0D] = r"\r"
_DIGIT = ((0x30, 0x39),)
_WORD = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_BLANK = (
    *((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
    *((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
_LINE_ENDS = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_SHORTHANDS = {"d": _DIGIT, "w": _WORD, "s": _BLANK}
_CONTROLS = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "0": 0x00}
_QUANTIFIER = re.compile(r"([*+?]|\{(\d{1,5})(,(\d{1,5})?)?\})\??")

Ranges = Sequence[tuple[int, int]]


class NotPossible(ValueError):
    """What is asked for has no GBNF; the text says why."""


def literal(text: str) -> str:
    """Return a GBNF literal of ``text``."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r") + '"'


def json_literal(value: object) -> str:
    """Return a GBNF literal of the JSON text of ``value``."""
    text = json.dumps(value, ensure_ascii=False, default=float)
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise NotPossible("it has half a surrogate pair, which no text has")
    return literal(text)


def either(alternatives: Sequence[str]) -> str:
    """Return a group of alternatives."""
    return alternatives[0] if len(alternatives) == 1 else f"({' | '.join(alternatives)})"


def repeat(what: str, least: int, most: int | None) -> str:
    """Return ``what`` repeated; ``most`` None = without end. Raises NotPossible."""
    if max(least, most or 0) > _MOST_REPETITIONS:
        raise NotPossible(f"is more than {_MOST_REPETITIONS}")
    if most is None:
        return f"{repeat(what, least, least)} {what}*".strip()
    parts: list[str] = []
    while most > 0:
        part = min(most, LONGEST_REPETITION)
        parts.append(f"{what}{{{min(least, part)},{part}}}")
        least, most = max(0, least - part), most - part
    return " ".join(parts)


# --- numbers -------------------------------------------------------------------------------------


def integers(low: int | None, high: int | None) -> str:
    """Return the integers from ``low`` to ``high``, at most 15 digits; raises NotPossible."""
    limit = 10**_DIGITS - 1
    low = -limit if low is None else max(low, -limit)
    high = limit if high is None else min(high, limit)
    if low > high:
        raise NotPossible(f"no integer of up to {_DIGITS} digits lies in its range")
    found: list[str] = []
    if low < 0:
        found.append('"-" ' + either(_naturals(max(1, -high), -low)))
    if high >= 0:
        found += _naturals(max(0, low), high)
    return either(found)


def _naturals(low: int, high: int) -> list[str]:
    if low == 0:
        return ['"0"', *(_naturals(1, high) if high else [])]
    first, last = str(low), str(high)
    if len(first) == len(last):
        return _same_length(first, last)
    found = _same_length(first, "9" * len(first))
    if len(last) - len(first) > 1:
        found.append(f"[1-9] [0-9]{{{len(first)},{len(last) - 2}}}")
    return found + _same_length("1" + "0" * (len(last) - 1), last)


def _same_length(low: str, high: str) -> list[str]:
    """The digit strings from ``low`` to ``high``, all of one length."""
    if not low:
        return [""]
    rest = len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return [f"{_digit(low[0], high[0])}{_any_digits(rest)}"]
    if low[0] == high[0]:
        return [f'"{low[0]}" {either(_same_length(low[1:], high[1:]))}']
    found = [f'"{low[0]}" {either(_same_length(low[1:], "9" * rest))}']
    if int(high[0]) - int(low[0]) > 1:
        between = _digit(str(int(low[0]) + 1), str(int(high[0]) - 1))
        found.append(f"{between}{_any_digits(rest)}")
    return [*found, f'"{high[0]}" {either(_same_length("0" * rest, high[1:]))}']


def _digit(low: str, high: str) -> str:
    return f'"{low}"' if low == high else f"[{low}-{high}]"


def _any_digits(count: int) -> str:
    return f" [0-9]{{{count}}}" if count else ""


def decimals(low: Decimal | None, high: Decimal | None, *, above: bool, below: bool) -> str:
    """Return the numbers from ``low`` to ``high``, without exponents; raises NotPossible.

    ``above`` and ``below`` leave the bounds themselves out.
    """
    low = -_BEYOND if low is None else max(low, -_BEYOND)
    high = _BEYOND if high is None else min(high, _BEYOND)
    found: list[str] = []
    if low < 0:
        nearest = max(Decimal(0), -high)
        found += [f'"-" {part}' for part in _magnitudes(nearest, -low, below and high <= 0, above)]
    if high >= 0:
        found += _magnitudes(max(Decimal(0), low), high, above and low >= 0, below)
    if not found:
        raise NotPossible(f"no number of up to {_DIGITS} digits lies in its range")
    return either(found)


def _magnitudes(low: Decimal, high: Decimal, above: bool, below: bool) -> list[str]:
    first, last = int(low), int(high)
    low_digits, high_digits = _fraction_of(low), _fraction_of(high)
    if low > high:
        return []
    if first == last:
        ends = [(first, _fraction(low_digits, high_digits, above, below))]
    else:
        ends = [
            (first, _fraction(low_digits, None, above, below)),
            (last, _fraction(None, high_digits, above, below)),
        ]
    found = [f'"{whole}" {fraction}' for whole, fraction in ends if fraction is not None]
    if last - first > 1:
        found.append(f"{either(_naturals(first + 1, last - 1))} {_fraction(None, None)}")
    return found


def _fraction_of(number: Decimal) -> str:
    digits = f"{number:f}".partition(".")[2]
    if len(digits) > _DIGITS:
        raise NotPossible(f"its bounds have more than {_DIGITS} decimals")
    return digits


def _fraction(
    low: str | None, high: str | None, above: bool = False, below: bool = False
) -> str | None:
    """The point and what follows it, or nothing, from ``0.low`` to ``0.high``; None = no bound."""
    digits = _fraction_digits(low, high, above, below, _DIGITS)
    whole = _zero_fits(low, high, above, below)
    if digits:
        return f'("." ({" | ".join(digits)})){"?" if whole else ""}'
    return "" if whole else None


def _zero_fits(low: str | None, high: str | None, above: bool, below: bool) -> bool:
    enough = low is None or (not low.strip("0") and not above)
    return enough and (high is None or bool(high.strip("0")) or not below)


def _fraction_digits(
    low: str | None, high: str | None, above: bool, below: bool, room: int
) -> list[str]:
    if low is not None and not low.strip("0") and not above:
        low = None
    if low is None and high is None:
        return [f"[0-9]{{1,{room}}}"] if room else []
    if room == 0 or (high is not None and not high.strip("0")):
        return []  # what follows could only be zeros
    at_low = (low or "0")[0] if low is not None else "0"
    at_high = (high or "0")[0] if high is not None else "9"
    found: list[str] = []
    inner = [d for d in "0123456789" if at_low <= d <= at_high]
    for digit in inner:
        next_low = low[1:] if low is not None and digit == at_low else None
        next_high = high[1:] if high is not None and digit == at_high else None
        if next_low is None and next_high is None:
            continue
        rest = _fraction_digits(next_low, next_high, above, below, room - 1)
        ends = _zero_fits(next_low, next_high, above, below)
        if rest:
            found.append(f'"{digit}" ({" | ".join(rest)}){"?" if ends else ""}')
        elif ends:
            found.append(f'"{digit}"')
    free = [
        d
        for d in inner
        if not (low is not None and d == at_low) and not (high is not None and d == at_high)
    ]
    if free:
        found.append(f"{_digit(free[0], free[-1])} [0-9]{{0,{room - 1}}}")
    return found


# --- strings -------------------------------------------------------------------------------------


def string(content: str) -> str:
    """Return a JSON string with that content."""
    return f'"\\"" {content} "\\""'


def pattern(regex: str) -> str:
    """Return a JSON string whose text a JSON Schema pattern matches; raises NotPossible."""
    return string(_Pattern(regex).translate())


class _Pattern:
    """Translates a regular expression character by character: GBNF has the same operators."""

    def __init__(self, regex: str) -> None:
        self._regex = regex
        self._at = 0
        self._open_groups = 0
        self._alternatives = False  # at the top level

    def translate(self) -> str:
        begins = self._regex.startswith("^")
        ends = self._regex.endswith("$") and not re.search(r"(?<!\\)(\\\\)*\\\$$", self._regex)
        self._regex = self._regex[1 if begins else 0 : len(self._regex) - (1 if ends else 0)]
        inner = " ".join(self._parts())
        if self._open_groups:
            raise NotPossible("a parenthesis is not closed")
        if self._alternatives and (begins or ends):
            raise NotPossible("put parentheses around the alternatives between ^ and $")
        before, after = "" if begins else "json-char* ", "" if ends else " json-char*"
        return f"{before}({inner}){after}"

    def _parts(self) -> Iterator[str]:
        repeatable = False
        while self._at < len(self._regex):
            char = self._regex[self._at]
            quantifier = _QUANTIFIER.match(self._regex, self._at)
            if quantifier is not None:
                if not repeatable:
                    raise NotPossible(f"nothing comes before {quantifier[0]}")
                self._at = quantifier.end()
                yield self._quantity(quantifier)
                repeatable = False
            elif char == "(":
                yield self._group()
                repeatable = False
            elif char in ")|":
                yield self._border(char)
                repeatable = char == ")"
            elif char in "^$":
                raise NotPossible(f"{char} is possible at its ends only")
            else:
                yield _characters(self._ranges())
                repeatable = True

    def _quantity(self, found: re.Match[str]) -> str:
        if max(int(found[2] or 0), int(found[4] or 0)) > LONGEST_REPETITION:
            raise NotPossible(f"{LONGEST_REPETITION} repetitions are the most")
        return found[1]

    def _group(self) -> str:
        self._open_groups += 1
        self._at += 1
        if self._regex.startswith("?", self._at):
            if not self._regex.startswith("?:", self._at):
                raise NotPossible(f"(?{self._regex[self._at + 1 : self._at + 2]} is not possible")
            self._at += 2
        return "("

    def _border(self, char: str) -> str:
        self._at += 1
        if char == ")":
            self._open_groups -= 1
            if self._open_groups < 0:
                raise NotPossible("a parenthesis is closed that was not opened")
        elif not self._open_groups:
            self._alternatives = True
        return char

    def _ranges(self) -> Ranges:
        """The characters that the next unit of the expression stands for."""
        char = self._regex[self._at]
        self._at += 1
        if char == ".":
            return _complement(_LINE_ENDS)
        if char == "\\":
            return self._escape()
        if char == "[":
            return self._class()
        return ((ord(char), ord(char)),)

    def _escape(self) -> Ranges:
        char = self._regex[self._at : self._at + 1]
        self._at += 1
        if char.lower() in _SHORTHANDS and char:
            ranges = _SHORTHANDS[char.lower()]
            return ranges if char.islower() else _complement(ranges)
        if char in _CONTROLS and char:
            return ((_CONTROLS[char], _CONTROLS[char]),)
        if (
            code := re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})").match(
                self._regex, self._at - 1
            )
        ) is not None:
            self._at = code.end()
            number = int(code[1] or code[2], 16)
            return ((number, number),)
        if not char or char.isalnum():
            raise NotPossible(f"\\{char} is not possible")
        return ((ord(char), ord(char)),)

    def _class(self) -> Ranges:
        negated = self._regex.startswith("^", self._at)
        self._at += negated
        found: list[tuple[int, int]] = []
        while not self._regex.startswith("]", self._at):
            low = self._member()
            if self._regex.startswith("-", self._at) and self._regex[self._at + 1 :][:1] != "]":
                self._at += 1
                high = self._member()
                if len(low) != 1 or len(high) != 1 or low[0][0] > high[0][1]:
                    raise NotPossible("a range of characters is wrong")
                low = ((low[0][0], high[0][1]),)
            found += low
        self._at += 1
        return _complement(found) if negated else found

    def _member(self) -> Ranges:
        if self._at >= len(self._regex):
            raise NotPossible("a class of characters is not closed")
        char = self._regex[self._at]
        self._at += 1
        return self._escape() if char == "\\" else ((ord(char), ord(char)),)


def _complement(ranges: Ranges) -> Ranges:
    found: list[tuple[int, int]] = []
    begin = 0
    for low, high in sorted(ranges):
        if low > begin:
            found.append((begin, low - 1))
        begin = max(begin, high + 1)
    if begin <= _LAST_CHARACTER:
        found.append((begin, _LAST_CHARACTER))
    return found


def _characters(ranges: Ranges) -> str:
    """The characters as they stand in a JSON string: plain, or escaped."""
    outside = _complement(ranges)
    plain = _complement([*outside, *_UNSAFE])
    found = ["[" + "".join(map(_range, plain)) + "]"] if plain else []
    found += [
        literal(text)
        for code, text in sorted(_ESCAPED.items())
        if any(low <= code <= high for low, high in ranges)
    ]
    if not found:
        raise NotPossible("a class of characters has none that a string can hold")
    return either(found)


def _range(bounds: tuple[int, int]) -> str:
    low, high = (f"\\U{code:08X}" for code in bounds)
    return low if low == high else f"{low}-{high}"

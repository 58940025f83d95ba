"""Reads grammars in llama.cpp's GBNF, with bounds on what they make llama.cpp build. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from localllama.errors import InvalidParameter

LONGEST_REPETITION = 2000  # llama.cpp refuses more, or takes it as "without end"
_LONGEST_TEXT = 256 << 10
_DEEPEST_NESTING = 100
_MOST_ELEMENTS = 50_000  # each may become a rule of its own in llama.cpp, of some 100 bytes

_ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\\"\[\]-])"
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_LITERAL = re.compile(rf'"((?:{_ESCAPE}|[^"\\])*)"')
_CLASS = re.compile(rf"\[(\^?(?:{_ESCAPE}|[^\]\\])*)\]")
_REPEAT = re.compile(r"[*+?]|\{[ \t]*(\d{1,6})[ \t]*(?:(,)[ \t]*(\d{1,6})?[ \t]*)?\}")
_UNIT = re.compile(
    r"\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\(.)|.", re.DOTALL
)
_CONTROLS = {"t": "\t", "r": "\r", "n": "\n"}
_LAST_CHARACTER = 0x10FFFF
_HINT = "grammars are written in llama.cpp's GBNF, with a rule named root"


@dataclass(slots=True)
class Item:
    """A literal, a class of characters, ``.``, a rule's name or a group, and how often it comes.

    ``most`` -1 = without end. ``groups`` are the alternatives of a group, each a sequence.
    """

    kind: str  # "literal", "class", "any", "rule" or "group"
    text: str = ""
    groups: list[list[Item]] = field(default_factory=list)
    least: int = 1
    most: int = 1


Rules = dict[str, list[list[Item]]]


def parse(text: str) -> Rules:
    """Return the rules of a grammar; raises InvalidParameter naming the line that is wrong."""
    if len(text) > _LONGEST_TEXT:
        raise InvalidParameter(f"the grammar is longer than {_LONGEST_TEXT >> 10} KiB", _HINT)
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidParameter("the grammar has characters that no text has", _HINT)
    return _Parser(text).rules()


class _Parser:
    """Recursive descent, with llama.cpp's own idea of where lines may break."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._elements = 0

    def rules(self) -> Rules:
        """Parse it all."""
        found: Rules = {}
        self._take(_SPACE_AND_LINES)
        while self._at < len(self._text):
            name = self._expect(_NAME, "the name of a rule")
            self._take(_SPACE)
            if not self._text.startswith("::=", self._at):
                raise self._wrong("::=")
            self._at += 3
            self._take(_SPACE_AND_LINES)
            found[name] = self._alternatives(0)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                raise self._wrong("the end of the rule")
            self._take(_SPACE_AND_LINES)
        if "root" not in found:
            raise InvalidParameter("the grammar has no rule named root", _HINT)
        for name, alternatives in found.items():
            for item in _all_items(alternatives):
                if item.kind == "rule" and item.text not in found:
                    raise InvalidParameter(
                        f"the grammar's rule {name} uses a rule {item.text}, which does not exist",
                        _HINT,
                    )
        return found

    def _alternatives(self, depth: int) -> list[list[Item]]:
        found = [self._sequence(depth)]
        while self._text.startswith("|", self._at):
            self._at += 1
            self._take(_SPACE_AND_LINES)
            found.append(self._sequence(depth))
        return found

    def _sequence(self, depth: int) -> list[Item]:
        found: list[Item] = []
        space = _SPACE_AND_LINES if depth else _SPACE
        while (item := self._item(depth)) is not None:
            self._take(space)
            while (repeat := _REPEAT.match(self._text, self._at)) is not None:
                self._at = repeat.end()
                self._take(space)
                item = self._repeated(item, repeat)
            if self._elements > _MOST_ELEMENTS:
                raise InvalidParameter(
                    "the grammar is too large once its repetitions are written out",
                    f"{_MOST_ELEMENTS} elements are the most",
                )
            found.append(item)
        return found

    def _item(self, depth: int) -> Item | None:
        self._elements += 1
        char = self._text[self._at : self._at + 1]
        if char == '"':
            literal = self._expect(_LITERAL, "the end of a literal")
            self._elements += len(literal)
            return Item("literal", literal[1:-1])
        if char == "[":
            chars = self._expect(_CLASS, "the end of a class of characters")
            self._elements += len(chars)
            # llama.cpp takes a class without characters for nothing at all.
            return Item("literal") if chars in ("[]", "[^]") else Item("class", chars[1:-1])
        if char == "(":
            return self._group(depth)
        if char == ".":
            self._at += 1
            return Item("any")
        if char in ("<", "!") and char:
            raise InvalidParameter(
                f"the grammar refers to a token in line {self._line()}, which is not supported",
                "write the token's text as a literal",
            )
        name = _NAME.match(self._text, self._at)
        if name is None:
            return None
        self._at = name.end()
        return Item("rule", name[0])

    def _group(self, depth: int) -> Item:
        if depth == _DEEPEST_NESTING:
            raise InvalidParameter(
                f"the grammar nests more than {_DEEPEST_NESTING} parentheses in line "
                f"{self._line()}",
                "give the inner part a rule of its own",
            )
        self._at += 1
        self._take(_SPACE_AND_LINES)
        groups = self._alternatives(depth + 1)
        if not self._text.startswith(")", self._at):
            raise self._wrong(")")
        self._at += 1
        return Item("group", groups=groups)

    def _repeated(self, item: Item, repeat: re.Match[str]) -> Item:
        marks = {"*": (0, -1), "+": (1, -1), "?": (0, 1)}
        if repeat[0] in marks:
            least, most = marks[repeat[0]]
        else:
            least = int(repeat[1])
            most = (int(repeat[3]) if repeat[3] else -1) if repeat[2] else least
        if max(least, most) > LONGEST_REPETITION or 0 <= most < least:
            raise InvalidParameter(
                f"the grammar's repetition {repeat[0]} in line {self._line()} cannot be kept to",
                f"{LONGEST_REPETITION} times are the most",
            )
        self._elements += max(least, most) * max(1, len(item.text))
        if (item.least, item.most) == (1, 1):
            item.least, item.most = least, most
            return item
        return Item("group", groups=[[item]], least=least, most=most)

    def _take(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _expect(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise self._wrong(what)
        self._at = match.end()
        return match[0]

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def _wrong(self, expected: str) -> InvalidParameter:
        rest = self._text[self._at : self._at + 20].split("\n")[0]
        found = repr(rest) if rest else "its end"
        return InvalidParameter(
            f"the grammar does not parse in line {self._line()}: {expected} must be where "
            f"{found} is",
            _HINT,
        )


def ranges(item: Item) -> Iterator[tuple[tuple[int, int], ...]]:
    """The characters that a literal, class or ``.`` stands for, one tuple of ranges for each."""
    if item.kind == "any":
        yield ((0, _LAST_CHARACTER),)
    elif item.kind == "literal":
        for char, _ in _characters(item.text):
            yield ((char, char),)
    else:
        negated = item.text.startswith("^")
        found = sorted(_class_ranges(list(_characters(item.text[negated:]))))
        yield tuple(_outside(found) if negated else found)


def _characters(text: str) -> Iterator[tuple[int, bool]]:
    """The code points that a literal or class spells, and whether each is a ``-`` for a range."""
    for match in _UNIT.finditer(text):
        code = match[1] or match[2] or match[3]
        if code:
            yield int(code, 16), False
        else:
            char = _CONTROLS.get(match[4], match[4]) if match[4] else match[0]
            yield ord(char), match[0] == "-"


def _class_ranges(characters: list[tuple[int, bool]]) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(characters):
        low = characters[at][0]
        if at + 2 < len(characters) and characters[at + 1][1]:
            yield low, characters[at + 2][0]
            at += 3
        else:
            yield low, low
            at += 1


def _outside(found: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    begin = 0
    for low, high in found:
        if low > begin:
            yield begin, low - 1
        begin = max(begin, high + 1)
    if begin <= _LAST_CHARACTER:
        yield begin, _LAST_CHARACTER


def _all_items(alternatives: list[list[Item]]) -> Iterator[Item]:
    for sequence in alternatives:
        for item in sequence:
            yield item
            yield from _all_items(item.groups)

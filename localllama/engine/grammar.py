"""Grammars in llama.cpp's GBNF that replies can be held to, and which of them are safe. Pure.

llama.cpp takes a grammar from whoever asks for a reply, and some grammars end its process: hidden
left recursion and deep nesting exhaust the stack or the memory, ambiguity the time, and references
to tokens let it pick a token that it then refuses. ``check`` finds those before llama.cpp sees
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from localllama.engine import ambiguity
from localllama.engine.gbnf_parser import Item, Rules, parse
from localllama.errors import InvalidParameter

# Any JSON object or array. White space between tokens is bounded: a model that may write endless
# blanks sometimes does.
JSON = r"""
root   ::= object | array
value  ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws ( pair ( "," ws pair )* )? "}"
pair   ::= string ":" ws value ws
array  ::= "[" ws ( value ws ( "," ws value ws )* )? "]"
string ::= "\"" ( [^"\\\x00-\x1f] | "\\" ( ["\\/bfnrt] | "u" [0-9a-fA-F]{4} ) )* "\""
number ::= "-"? ( "0" | [1-9] [0-9]{0,15} ) ( "." [0-9]{1,16} )? ( [eE] [-+]? [0-9]{1,3} )?
ws     ::= ( " " | "\n" [ ]{0,20} )?
"""

_MOST_WAYS = 2_000  # in which a rule may begin: as many states are kept, and tried for each token


@lru_cache(maxsize=64)
def check(text: str) -> None:
    """Raise InvalidParameter unless llama.cpp can follow the grammar and survive it."""
    rules = parse(text)
    nullable = _nullable(rules)
    ways: dict[str, int] = {}
    for name in rules:
        _count_ways(name, rules, nullable, ways)
    if ambiguity.multiplies(rules):
        raise InvalidParameter(
            "the grammar can be read in too many ways at once",
            "let the text before a rule's use of itself tell which alternative it is",
        )


def _nullable(rules: Rules) -> set[str]:
    """The names of the rules that match the empty text."""
    found: set[str] = set()
    while True:
        more = {
            name
            for name, alternatives in rules.items()
            if name not in found and _any_empty(alternatives, found)
        }
        if not more:
            return found
        found |= more


def _any_empty(alternatives: list[list[Item]], nullable: set[str]) -> bool:
    return any(all(_empty(item, nullable) for item in sequence) for sequence in alternatives)


def _empty(item: Item, nullable: set[str]) -> bool:
    return (
        item.least == 0
        or (item.kind == "literal" and not item.text)
        or (item.kind == "rule" and item.text in nullable)
        or (item.kind == "group" and _any_empty(item.groups, nullable))
    )


def _count_ways(name: str, rules: Rules, nullable: set[str], known: dict[str, int]) -> None:
    """Fill ``known`` with the number of ways in which a rule, and those it begins with, can begin.

    Raises InvalidParameter for left recursion, hidden behind what may be empty or not: then the
    rule is met again before a character is. Without recursion of its own: the chain of rules may be
    as long as the grammar.
    """
    open_rules: list[tuple[str, Iterator[str]]] = [
        (name, iter(_first_rules(rules[name], nullable)))
    ]
    on_the_way = {name}
    while open_rules:
        current, firsts = open_rules[-1]
        first = next((rule for rule in firsts if rule not in known), None)
        if first is None:
            open_rules.pop()
            on_the_way.discard(current)
            if current not in known:
                known[current] = _ways(rules[current], nullable, known)
                if known[current] > _MOST_WAYS:
                    raise InvalidParameter(
                        f"the grammar's rule {current} can begin in more than {_MOST_WAYS} ways",
                        "rewrite it so that the next character tells which rule applies",
                    )
        elif first in on_the_way:
            raise InvalidParameter(
                f"the grammar's rule {first} begins with itself (left recursion)",
                "write the repetition with * or put a character before it",
            )
        else:
            on_the_way.add(first)
            open_rules.append((first, iter(_first_rules(rules[first], nullable))))


def _first_items(sequence: list[Item], nullable: set[str]) -> Iterator[Item]:
    """The items of a sequence that its text can begin with."""
    for item in sequence:
        yield item
        if not _empty(item, nullable):
            return


def _first_rules(alternatives: list[list[Item]], nullable: set[str]) -> Iterator[str]:
    for sequence in alternatives:
        for item in _first_items(sequence, nullable):
            if item.kind == "rule":
                yield item.text
            yield from _first_rules(item.groups, nullable)


def _ways(alternatives: list[list[Item]], nullable: set[str], known: dict[str, int]) -> int:
    total = 0
    for sequence in alternatives:
        for item in _first_items(sequence, nullable):
            ways = known[item.text] if item.kind == "rule" else 1
            if item.kind == "group":
                ways = _ways(item.groups, nullable, known)
            # What may be empty and comes up to n times can begin with any of its n copies.
            inner_empty = _empty(Item(item.kind, item.text, item.groups), nullable)
            total += ways * (max(1, item.most) if inner_empty else 1)
    return total + 1

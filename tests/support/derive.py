"""Texts that a GBNF grammar allows, chosen at random: what a model could write at worst."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from localllama.engine.gbnf_parser import Item, Rules, ranges

_DEEP = 12  # from here on the shortest way out is taken


class Deriver:
    """Derives texts from ``rules``."""

    def __init__(self, rules: Rules, random: Random) -> None:
        self._rules = rules
        self._random = random
        self._heights = dict.fromkeys(rules, 10_000)
        for _ in rules:
            for name, alternatives in rules.items():
                self._heights[name] = 1 + min(map(self._height, alternatives))

    def text(self) -> str:
        """Return one of the grammar's texts."""
        return self._one_of(self._rules["root"], 0)

    def _height(self, sequence: list[Item]) -> int:
        return max((self._item_height(item) for item in sequence if item.least), default=0)

    def _item_height(self, item: Item) -> int:
        if item.kind == "group":
            return 1 + min(map(self._height, item.groups))
        return self._heights[item.text] if item.kind == "rule" else 0

    def _one_of(self, alternatives: list[list[Item]], depth: int) -> str:
        if depth > _DEEP:
            sequence = min(alternatives, key=self._height)
        else:
            sequence = self._random.choice(alternatives)
        return "".join(self._item(item, depth) for item in sequence)

    def _item(self, item: Item, depth: int) -> str:
        most = item.least + 3 if item.most < 0 else item.most
        counts = (item.least, self._random.randint(item.least, most), most)
        count = item.least if depth > _DEEP else self._random.choice(counts)
        return "".join(self._once(item, depth) for _ in range(count))

    def _once(self, item: Item, depth: int) -> str:
        if item.kind == "group":
            return self._one_of(item.groups, depth + 1)
        if item.kind == "rule":
            return self._one_of(self._rules[item.text], depth + 1)
        return "".join(map(self._character, ranges(item)))

    def _character(self, allowed: Sequence[tuple[int, int]]) -> str:
        low, high = self._random.choice(allowed)
        # Mostly the first ones, so that letters come before symbols of unknown scripts.
        code = self._random.randint(low, min(high, low + self._random.choice((0, 0x60, 0x20000))))
        return (
            chr(code) if not 0xD800 <= code <= 0xDFFF else "x" if low <= 0x78 <= high else chr(low)
        )

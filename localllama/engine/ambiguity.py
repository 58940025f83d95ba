"""Finds grammars whose states multiply with every character, before llama.cpp follows them. Pure.

llama.cpp keeps every way in which the text so far can be read. Where a rule holds itself and two
ways lead into it by the same text, their number doubles with each character, and with it the time
and memory of one step, which nothing can interrupt. A walk along the characters that give the most
ways shows that early.
"""

from __future__ import annotations

from collections.abc import Iterator

from localllama.engine.gbnf_parser import Item, Rules, ranges

MOST_STATES = 1_000
_STEPS = 24  # doubling at every second character passes MOST_STATES by then
_WIDTH = 2  # walks side by side
_CHARACTERS = 24  # tried at each step

# Where reading is: sequence, item in it, how often that item came, place in a literal, and the
# position to go on from after the sequence. None = the text is complete.
Position = tuple[int, int, int, int, "Position | None"]
Ranges = tuple[tuple[int, int], ...]


def multiplies(rules: Rules) -> bool:
    """Whether the walk meets a text that can be read in more than MOST_STATES ways."""
    if not _recursive(rules):
        return False  # so many ways as its positions at most
    walker = _Walker(rules)
    beam = [walker.begin()]
    for _ in range(_STEPS):
        reached = [states for ways in beam for states in walker.steps(ways)]
        beam = sorted(reached, key=len, reverse=True)[:_WIDTH]
        if any(len(ways) > MOST_STATES for ways in beam):
            return True
    return False


def _recursive(rules: Rules) -> bool:
    reached = {name: set(_names(alternatives)) for name, alternatives in rules.items()}
    for _ in rules:
        for names in reached.values():
            names |= set[str]().union(*(reached[name] for name in names))
    return any(name in names for name, names in reached.items())


def _names(alternatives: list[list[Item]]) -> Iterator[str]:
    for sequence in alternatives:
        for item in sequence:
            if item.kind == "rule":
                yield item.text
            yield from _names(item.groups)


# The ways to read on: the characters that come next, and the position after one of them.
_Ways = set[tuple[Ranges, Position]]


class _Walker:
    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._sequences: dict[int, list[Item]] = {}
        self._ranges: dict[int, list[Ranges]] = {}

    def begin(self) -> _Ways:
        """The ways in which a text can begin."""
        return self._ways([(self._key(s), 0, 0, 0, None) for s in self._rules["root"]])

    def steps(self, ways: _Ways) -> Iterator[_Ways]:
        """The ways after each of some characters that can come next."""
        characters = sorted({low for allowed, _ in ways for low, _ in allowed})
        for char in characters[:_CHARACTERS]:
            yield self._ways(
                [
                    position
                    for allowed, position in ways
                    if any(low <= char <= high for low, high in allowed)
                ]
            )

    def _key(self, sequence: list[Item]) -> int:
        self._sequences[id(sequence)] = sequence
        return id(sequence)

    def _ways(self, positions: list[Position]) -> _Ways:
        found: _Ways = set()
        seen: set[Position | None] = {None}
        todo: list[Position | None] = list(positions)
        while todo and len(found) <= MOST_STATES:
            position = todo.pop()
            if position is not None and position not in seen:
                seen.add(position)
                todo += self._advance(position, found)
        return found

    def _advance(self, position: Position, found: _Ways) -> Iterator[Position | None]:
        """Add the next characters to ``found``; yield the positions that lead to others."""
        key, index, count, offset, parent = position
        sequence = self._sequences[key]
        if index == len(sequence):
            yield parent
            return
        item = sequence[index]
        if not offset and count >= item.least:
            yield (key, index + 1, 0, 0, parent)
        if 0 <= item.most <= count:
            return
        counted = min(count + 1, item.least) if item.most < 0 else count + 1
        after = (key, index, counted, 0, parent)
        if item.kind in ("group", "rule"):
            for inner in item.groups or self._rules[item.text]:
                yield (self._key(inner), 0, 0, 0, after)
            return
        characters = self._characters(item)
        if not characters:
            yield (key, index + 1, 0, 0, parent)
        else:
            last = offset + 1 == len(characters)
            inside = (key, index, count, offset + 1, parent)
            found.add((characters[offset], after if last else inside))

    def _characters(self, item: Item) -> list[Ranges]:
        """What an item other than a group or rule stands for, character by character."""
        if id(item) not in self._ranges:
            self._ranges[id(item)] = list(ranges(item))
        return self._ranges[id(item)]

"""Which sequence of the context holds which tokens, and how many cells that takes.

Stays true whatever happens to a decode. Sequences may share the cells of a common beginning.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from itertools import count

from localllama.native.llama import Context


@dataclass(eq=False, slots=True)
class Sequence:
    """``tokens`` is exactly what llama.cpp's sequence ``id`` has evaluated.

    ``live`` = a reply is using it; the others are kept for their tokens alone.
    """

    id: int
    tokens: list[int] = field(default_factory=list)
    live: bool = False
    used_at: int = 0  # on a clock that ticks with every release
    conversation: str = ""  # whose the tokens are, and whether they may go to disk
    keeps: bool = False
    saved: int = 0  # so many of the tokens are on disk
    shortest: int = 0  # of what lies before, not all is there: only more than that can be kept
    exact: int = sys.maxsize  # only so many are what reading them again would give


class Cache:
    """The sequences of one context; ``cells`` is what they may hold together.

    ``divisible`` = any beginning of a sequence can be kept or shared, not only all of it.
    """

    def __init__(
        self,
        context: Context,
        cells: int,
        sequences: int,
        *,
        divisible: bool,
    ) -> None:
        self._context = context
        self._cells = cells
        self._divisible = divisible
        self.sequences = [Sequence(id) for id in range(sequences)]
        # How many cells at their beginning two sequences have in common, by their ids.
        self._common: dict[frozenset[int], int] = {}
        self._clock = count(1)
        self.on_loss: Callable[[Sequence], object] = lambda _: None  # an idle one's tokens go now
        self.used_cells = 0

    @property
    def free_cells(self) -> int:
        """How many tokens can be evaluated without evicting anything."""
        return self._cells - self.used_cells

    def fits(self, prompt: Tokens[int], reserve_tokens: int) -> bool:
        """Whether a prompt and that many more tokens have room beside the live sequences."""
        live = [sequence for sequence in self.sequences if sequence.live]
        shared = max((self._usable(sequence, prompt) for sequence in live), default=0)
        return self._count(live) + len(prompt) - shared + reserve_tokens <= self._cells

    def claim(self, prompt: Tokens[int]) -> Sequence:
        """Return a sequence that is live now and holds the longest known beginning of ``prompt``.

        At least the last token of the prompt is left out: evaluating it gives the first logits.
        There must be a sequence that is not live.
        """
        source = max(self.sequences, key=lambda sequence: self._usable(sequence, prompt))
        length = self._usable(source, prompt)
        idle = sorted((s for s in self.sequences if not s.live), key=lambda s: s.used_at)
        if source in idle and (length == len(source.tokens) or len(idle) == 1):
            target = source
        else:  # what else the source holds may be asked for again
            target = next(sequence for sequence in idle if sequence is not source)
        if target is source:
            self._lose(target, length)
        else:
            self._lose(target, 0)
            self._share(source, target, length)
        target.live = True
        return target

    def release(self, sequence: Sequence) -> None:
        """The reply is over; keep the tokens until their cells are needed."""
        if sequence.exact < len(sequence.tokens):
            self.cut(sequence, sequence.exact)
        sequence.live = False
        sequence.used_at = next(self._clock)

    def clear(self) -> None:
        """Forget everything; no sequence may be live."""
        for sequence in self.sequences:
            self._lose(sequence, 0)
        self._context.clear()

    def make_room(self, cells: int) -> bool:
        """Evict idle sequences, the least recently used first, until ``cells`` are free."""
        idle = sorted((s for s in self.sequences if not s.live), key=lambda s: s.used_at)
        for sequence in idle:
            if self.free_cells >= cells:
                break
            self._lose(sequence, 0)
        return self.free_cells >= cells

    def vacate(self, cells: int) -> Sequence | None:
        """Return an empty sequence and make that many cells free; None when that cannot be."""
        idle = [sequence for sequence in self.sequences if not sequence.live]
        if not idle or not self.make_room(cells):
            return None
        target = min(idle, key=lambda s: (bool(s.tokens), s.used_at))
        self._lose(target, 0)
        target.used_at = next(self._clock)
        return target

    def extend(self, sequence: Sequence, tokens: Tokens[int]) -> None:
        """``tokens`` have been evaluated after the others of the sequence."""
        sequence.tokens += tokens
        self.used_cells += len(tokens)

    def cut(self, sequence: Sequence, length: int) -> None:
        """Keep ``length`` tokens of a sequence at most, none if it cannot be cut there."""
        if length < sequence.shortest or not self._context.cut(sequence.id, length):
            self._context.cut(sequence.id, length := 0)
            sequence.shortest = 0
        del sequence.tokens[length:]
        sequence.saved = min(sequence.saved, length)
        if length <= sequence.exact:
            sequence.exact = sys.maxsize
        for pair, common in self._common.items():
            if sequence.id in pair:
                self._common[pair] = min(common, length)
        self.used_cells = self._count(self.sequences)

    def shift(self, sequence: Sequence, keep: int, count: int) -> None:
        """Take ``count`` tokens behind the first ``keep`` out of a live sequence.

        Those behind have seen what goes, so nobody else may begin with them. Where another reply
        shares them, they go too, to be evaluated again.
        """
        kept = sequence.tokens[:keep] + sequence.tokens[keep + count :]
        for other in self.sequences:
            if other is not sequence and self._common_cells(sequence, other) > keep:
                if other.live:
                    self.cut(sequence, keep)
                    return
                self._lose(other, keep)
        self._context.shift(sequence.id, keep, count)
        sequence.tokens = kept
        sequence.exact = min(sequence.exact, keep)
        sequence.saved = min(sequence.saved, keep)
        self.used_cells = self._count(self.sequences)

    def usable(self, prompt: Tokens[int]) -> int:
        """How many tokens of ``prompt`` some sequence holds."""
        return max(self._usable(sequence, prompt) for sequence in self.sequences)

    def _lose(self, sequence: Sequence, length: int) -> None:
        if length < len(sequence.tokens):
            self.on_loss(sequence)
        self.cut(sequence, length)

    def _share(self, source: Sequence, target: Sequence, length: int) -> None:
        self._context.share(source.id, target.id, length)
        target.tokens = source.tokens[:length]
        target.shortest = source.shortest
        for other in self.sequences:
            if other is not source and other is not target:
                pair = frozenset((target.id, other.id))
                self._common[pair] = min(length, self._common_cells(source, other))
        self._common[frozenset((source.id, target.id))] = length
        self.used_cells = self._count(self.sequences)

    def _common_cells(self, one: Sequence, other: Sequence) -> int:
        return self._common.get(frozenset((one.id, other.id)), 0)

    def _count(self, sequences: list[Sequence]) -> int:
        """How many cells they hold; those of each that no earlier one holds, summed up."""
        return sum(
            len(s.tokens) - max((self._common_cells(s, t) for t in sequences[:i]), default=0)
            for i, s in enumerate(sequences)
        )

    def _usable(self, sequence: Sequence, prompt: Tokens[int]) -> int:
        """How many tokens of ``prompt`` need not be evaluated for having this sequence."""
        length = min(common_prefix(sequence.tokens, prompt), len(prompt) - 1, sequence.exact)
        if length < sequence.shortest:
            return 0
        return length if self._divisible or length == len(sequence.tokens) else 0


def common_prefix(one: Tokens[int], other: Tokens[int]) -> int:
    """Return how many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))

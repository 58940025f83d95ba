"""Speculative decoding: guess the next tokens, check them in one step, as far as that pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

LONGEST_DRAFT = 32  # tokens
_LENGTHS = (1, 2, 4, 8, 16, LONGEST_DRAFT)
_WORTHWHILE = 1.05
_WEIGHT = 0.25  # of a new measurement
_FORGET = 0.999  # a size that lost once, maybe by a hiccup, is tried again after some hundred steps
_HALF_LIFE = 0.99  # of what is known about guesses, per guess


class Drafter(Protocol):
    """Guesses how a text goes on: by looking it up, or with a small model."""

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return at most ``count`` tokens that may follow ``tokens``, [] without an idea.

        ``tokens`` only grows between calls.
        """
        ...


class PromptLookup:
    """Guesses that what followed the last three (else two) tokens before follows them again."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # where the text goes on after these tokens
        self._seen = 0
        self._source = 0  # where the token after the last one is copied from; 0 = unknown

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return what followed the same tokens before. O(new tokens + ``count``)."""
        for end in range(self._seen + 1, len(tokens) + 1):
            self._advance(tokens, end)
        self._seen = len(tokens)
        if not self._source:
            return []
        # A text that repeats itself may be copied beyond its end.
        period = len(tokens) - self._source
        return [tokens[self._source + i % period] for i in range(count)]

    def _advance(self, tokens: Sequence[int], end: int) -> None:
        """Take in the token before ``end``."""
        if self._source and tokens[self._source] == tokens[end - 1]:
            self._source += 1  # keep to the place that was right so far
        else:
            self._source = 0
        for size in (3, 2):
            if end >= size:
                recent = tuple(tokens[end - size : end])
                if not self._source:
                    self._source = self._after.get(recent, 0)
                self._after[recent] = end


class Speculation:
    """Learns how often guesses are right and what checking costs, and so how long drafts pay.

    The longer the streak of right guesses, the surer the next one: a reply that copies a text does
    so for long. Without a draft, the first guess is still compared with what comes, which is free.
    """

    def __init__(self) -> None:
        streaks = (LONGEST_DRAFT + 1).bit_length() + 1
        self._right = [0.5] * streaks  # by the bits of the streak before
        self._guesses = [1.0] * streaks
        self._step_seconds = 0.0
        self._costs = {2: 1.7}  # plain steps, by tokens in a step; the first is a guess

    def draft_tokens(self, streak: int, limit: int) -> int:
        """How many tokens to guess after ``streak`` right guesses; 0 = it does not pay."""
        chances = self._chances()
        best, best_rate = 0, _WORTHWHILE
        expected, certainty, guessed = 1.0, 1.0, 0
        for length in _LENGTHS:
            if length > limit:
                break
            while guessed < length:
                certainty *= chances[self._bucket(streak + guessed)]
                expected += certainty
                guessed += 1
            rate = expected / self._cost(1 + length)
            if rate > best_rate:
                best, best_rate = length, rate
        return best

    def record_guess(self, streak: int, *, right: bool) -> None:
        """A guess after ``streak`` right ones was compared with the token that came."""
        bucket = self._bucket(streak)
        self._right[bucket] = self._right[bucket] * _HALF_LIFE + right
        self._guesses[bucket] = self._guesses[bucket] * _HALF_LIFE + 1

    def record_step(self, tokens: int, seconds: float) -> None:
        """A step of one reply evaluated that many tokens."""
        if tokens == 1:
            known = self._step_seconds or seconds
            self._step_seconds = known + _WEIGHT * (seconds - known)
            for size in self._costs:
                self._costs[size] = max(1.0, self._costs[size] * _FORGET)
        elif self._step_seconds:
            measured = seconds / self._step_seconds
            known = self._costs.get(tokens, measured)
            self._costs[tokens] = known + _WEIGHT * (measured - known)

    def _chances(self) -> list[float]:
        """How likely the next guess is right; a long streak never seen is like a shorter one."""
        chances, before = [], 0.5
        for right, guesses in zip(self._right, self._guesses, strict=True):
            before = (right + 2 * before) / (guesses + 2)
            chances.append(before)
        return chances

    def _bucket(self, streak: int) -> int:
        return min(streak.bit_length(), len(self._right) - 1)

    def _cost(self, tokens: int) -> float:
        """What a step of that size takes, in plain steps; the first further token costs most."""
        if tokens in self._costs:
            return self._costs[tokens]
        size = max((size for size in self._costs if size < tokens), default=2)
        each = (self._costs[size] - 1) / (size - 1)
        return 1 + 0.75 * each * (tokens - 1)

"""How much of a prompt is read beside running replies, so that these are not held up."""

from __future__ import annotations

# A running reply waits at most 5 plain steps for its next token; the rest is for measuring errors.
_LONGEST_STEP = 4.6
# While that is still as fast as people read, it waits longer: where computing is the limit, 5 plain
# steps leave at most 0.8 of the speed for the prompt, and less with every cell that it fills.
_READER_SECONDS, _READER_STEPS = 0.12, 12
_RISE = 1.05  # a step that was interrupted looks slow: up slowly, down at once
_WEIGHT = 0.25  # of a new measurement


class Pace:
    """Learns from the duration of steps what a plain one takes and a token of a prompt besides."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}  # seconds, by how many replies run
        self._per_token = 0.0  # seconds

    def tokens(self, running: int) -> int:
        """How many tokens of prompts to read in a step beside that many running replies.

        0 when a plain step has to show first how long it takes.
        """
        plain = self._plain.get(running)
        if plain is None:
            return 0
        if not self._per_token:
            return 1
        longest = max(_LONGEST_STEP * plain, min(_READER_SECONDS, _READER_STEPS * plain))
        return max(1, int((longest - plain) / self._per_token))

    def record(self, running: int, read: int, seconds: float) -> None:
        """A step that gave ``running`` replies a token and read ``read`` tokens of prompts."""
        plain = self._plain.get(running, seconds)
        if not read:
            self._plain[running] = min(seconds, plain * _RISE)
            return
        measured = max(0.0, seconds - plain) / read
        known = self._per_token or measured
        self._per_token = known + _WEIGHT * (measured - known)

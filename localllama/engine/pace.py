"""How much of a prompt is read beside running replies, so that these are not held up."""

from __future__ import annotations

# A running reply waits at most 5 plain steps for its next token; the rest is for measuring errors.
_LONGEST_STEP = 4.6
_RISE = 1.05  # a step that was interrupted looks slow: up slowly, down at once
_WEIGHT = 0.25  # of a new measurement


class Pace:
    """Learns from the duration of steps what a plain one takes and a token of a prompt besides.

    Reading in small pieces is no waste: on 2 CPU cores a step with 6 tokens of a prompt takes 4.9
    plain ones, and 2,000 tokens alone 0.72 a token.
    """

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
        return max(1, int((_LONGEST_STEP - 1) * plain / self._per_token))

    def record(self, running: int, read: int, seconds: float) -> None:
        """A step that gave ``running`` replies a token and read ``read`` tokens of prompts."""
        plain = self._plain.get(running, seconds)
        if not read:
            self._plain[running] = min(seconds, plain * _RISE)
            return
        measured = max(0.0, seconds - plain) / read
        known = self._per_token or measured
        self._per_token = known + _WEIGHT * (measured - known)

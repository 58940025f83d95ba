"""Bytes of tokens become text: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Collects a reply piece by piece and gives out what is certain.

    ``stopped`` turns true when a stop string came; ``tokens`` counts the pieces up to there.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # may be the beginning of a stop string
        self.stopped = False
        self.tokens = 0

    def feed(self, piece: bytes) -> str:
        """Take the bytes of the next token and return the text that can be shown now."""
        if self.stopped:
            return ""
        self.tokens += 1
        text = self._held + self._decoder.decode(piece)
        ends = [at for at in map(text.find, self._stop) if at >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)]
        keep = self._doubtful(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return what was held back; half a character at the end of a reply is dropped."""
        text, self._held = self._held, ""
        return text

    def _doubtful(self, text: str) -> int:
        """How many characters at the end of ``text`` could begin a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

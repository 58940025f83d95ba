"""Bytes of tokens become text: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterator, Sequence

from localllama.engine.api import Text, TokenLogprob


class TextStream:
    """Collects a reply piece by piece and gives out what is certain.

    ``stop`` is the stop string that came, '' = none so far; ``tokens`` counts the pieces up to
    there.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # may be the beginning of a stop string
        self._decoded = self._shown = 0  # characters
        # Tokens that are not given out yet, by the number of characters before them.
        self._logprobs: deque[tuple[int, TokenLogprob]] = deque()
        self.stop = ""
        self.tokens = self._told = 0

    def feed(self, piece: bytes | TokenLogprob) -> Text | None:
        """Take the next token and return what can be shown now."""
        if self.stop:
            return None
        self.tokens += 1
        if isinstance(piece, TokenLogprob):
            self._logprobs.append((self._decoded, piece))
            piece = piece.piece
        new = self._decoder.decode(piece)
        self._decoded += len(new)
        text = self._held + new
        ends = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            at, self.stop = min(ends, key=lambda end: end[0])
            self._held = ""
            return self._show(text[:at])
        keep = self._doubtful(text)
        self._held = text[len(text) - keep :]
        return self._show(text[: len(text) - keep])

    def finish(self) -> Text | None:
        """Return what was held back; half a character at the end of a reply is dropped."""
        text, self._held = self._held, ""
        self._shown += len(text)
        rest = () if self.stop else tuple(logprob for _, logprob in self._logprobs)
        return Text(text, rest, self._new_tokens()) if text or rest else None

    def _show(self, text: str) -> Text | None:
        self._shown += len(text)
        return Text(text, tuple(self._begun()), self._new_tokens()) if text else None

    def _new_tokens(self) -> int:
        told, self._told = self._told, self.tokens
        return self.tokens - told

    def _begun(self) -> Iterator[TokenLogprob]:
        """Give out the tokens of which something is shown."""
        while self._logprobs and self._logprobs[0][0] < self._shown:
            yield self._logprobs.popleft()[1]

    def _doubtful(self, text: str) -> int:
        """How many characters at the end of ``text`` could begin a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

"""The tokens whose keys and values a context holds; stays true whatever happens to a decode."""

from __future__ import annotations

from collections.abc import Sequence

from localllama.errors import EngineError
from localllama.native.llama import Context


class PromptCache:
    """``tokens`` is exactly what the context has evaluated."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.tokens: list[int] = []

    def keep_prefix(self, prompt: Sequence[int]) -> int:
        """Keep what ``prompt`` begins with, forget the rest; return how many tokens that is.

        At least the last token of the prompt is forgotten: evaluating it gives the first logits.
        """
        length = min(_common_prefix(self.tokens, prompt), len(prompt) - 1)
        if length < len(self.tokens):
            self._cut(length)
        return len(self.tokens)

    def append(self, tokens: Sequence[int]) -> bool:
        """Evaluate ``tokens`` after the others; False when an abort callback stopped it."""
        try:
            done = self._context.decode(tokens, len(self.tokens))
        except EngineError:
            self._cut(len(self.tokens))
            raise
        if done:
            self.tokens += tokens
        else:
            self._cut(len(self.tokens))
        return done

    def _cut(self, length: int) -> None:
        if self._context.cut(length):
            del self.tokens[length:]
        else:
            self._context.clear()
            self.tokens.clear()


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))

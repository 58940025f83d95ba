"""Texts to split into tokens: many scripts, emoji, digits, spaces, controls, special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

_SCRIPTS = (
    (0x20, 0x7E),
    (0xA1, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x3FF),
    (0x400, 0x52F),
    (0x5D0, 0x5EA),
    (0x620, 0x64A),
    (0x905, 0x939),
    (0xE01, 0xE3A),
    (0x1780, 0x17B3),
    (0x3041, 0x3096),
    (0x30A1, 0x30FA),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),
    (0x1F300, 0x1F64F),
    (0x2190, 0x22FF),
)
_SPACES = (" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u00a0", "\u3000")
_ODD = ("\x01", "\x1b", "\x7f", "\u200b", "\u200d", "\ufeff", "\u0000", "\ufffd")
_WORDS = ("the", "I'm", "don't", "We'LL", "def f(x):", "3.14", "https://a.b/c?d=1", "ção")
_EMOJI = ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f", "\U0001f1e9\U0001f1ea")


def texts(count: int, *, words: Sequence[str] = (), seed: int = 0) -> list[str]:
    """Return ``count`` texts, always the same for a seed; ``words`` turn up in them."""
    random = Random(seed)
    return [_text(random, (*_WORDS, *words)) for _ in range(count)]


def _text(random: Random, words: Sequence[str]) -> str:
    return "".join(_part(random, words) for _ in range(random.randint(1, 12)))


def _part(random: Random, words: Sequence[str]) -> str:
    kind = random.randrange(8)
    if kind < 3:
        low, high = random.choice(_SCRIPTS)
        return "".join(chr(random.randint(low, high)) for _ in range(random.randint(1, 8)))
    if kind == 3:
        return random.choice(words)
    if kind == 4:
        return str(random.randrange(10 ** random.randint(1, 9)))
    if kind == 5:
        return random.choice(_EMOJI)
    return random.choice(_SPACES if kind == 6 or random.random() < 0.7 else _ODD)

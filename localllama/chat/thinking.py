"""The part of a reply in which a model thinks aloud, told apart from what it says."""

from __future__ import annotations

_OPEN, _CLOSE = "<think>", "</think>"


def split(text: str) -> tuple[str, str]:
    """Return the thinking in a reply, which may not be over, and what is said after it.

    Templates that begin the thinking themselves leave only its end in the reply.

    >>> split("<think>2 + 2</think>4"), split("<think>2 +"), split("4")
    (('2 + 2', '4'), ('2 +', ''), ('', '4'))
    """
    begin = text.lstrip()
    if not begin.startswith(_OPEN) and _CLOSE not in begin:
        return "", text
    thought, _, said = begin.removeprefix(_OPEN).partition(_CLOSE)
    return thought.strip(), said.lstrip("\n")


def join(thinking: str, said: str) -> str:
    """Return a reply as the model wrote it, but for blank lines.

    >>> join("2 + 2", "4"), join("", "4")
    ('<think>2 + 2</think>4', '4')
    """
    if not thinking:
        return said
    return f"{_OPEN}{thinking}" + (f"{_CLOSE}{said}" if said else "")

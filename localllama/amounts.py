"""Sizes, counts and times in the words of people."""

from __future__ import annotations

from datetime import UTC, datetime

_STEPS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def size(count: int) -> str:
    """Return bytes in SI units, as Ollama prints them.

    >>> size(98362432)
    '98 MB'
    """
    for unit, step in _STEPS:
        if count >= step:
            number = count / step
            return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{count} B"


def count(number: int) -> str:
    """Return a number of parameters as people say it.

    >>> count(134515008)
    '134.5M'
    """
    for unit, step in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= step:
            return f"{number / step:.1f}".removesuffix(".0") + unit
    return str(number)


def ago(moment: str) -> str:
    """Return how long ago an ISO 8601 moment was."""
    try:
        then = datetime.fromisoformat(moment)
    except ValueError:
        return ""
    seconds = max(0, int((datetime.now(UTC) - then).total_seconds()))
    steps = (("week", 604800), ("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))
    for unit, length in steps:
        if seconds >= length:
            number = seconds // length
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"


def duration(seconds: float) -> str:
    """Return a time span as Go prints it, which is how Ollama's users know it.

    >>> duration(0.0123), duration(75.5)
    ('12.3ms', '1m15.5s')
    """
    if seconds < 1:
        return f"{seconds * 1000:.6g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:.9g}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text

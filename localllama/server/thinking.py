"""Tells what a model thinks (``<think>…</think>`` before its answer) from what it says. Pure."""

from __future__ import annotations

from collections.abc import Iterator

_OPEN, _CLOSE = "<think>", "</think>"


class Splitter:
    """Takes a reply in pieces; yields (whether it is thought, text).

    ``inside``: the chat template has opened the thought already.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._held = ""
        self._inside = inside
        self._begun = inside  # else a thought may still open
        self._fresh = True  # nothing of this part came yet: its leading blanks belong to the tags

    def feed(self, text: str) -> Iterator[tuple[bool, str]]:
        """Take a piece; yield what is certain now."""
        self._held += text
        if not self._begun:
            start = self._held.lstrip()
            if _OPEN.startswith(start[: len(_OPEN)]) and len(start) < len(_OPEN):
                return  # nothing but blanks counts as a possible beginning too
            self._begun = True
            if start.startswith(_OPEN):
                self._held, self._inside = start[len(_OPEN) :], True
        if self._inside:
            at = self._held.find(_CLOSE)
            if at < 0:
                keep = next((n for n in range(7, 0, -1) if self._held.endswith(_CLOSE[:n])), 0)
                yield from self._give(self._held[: len(self._held) - keep])
                return
            rest = self._held[at + len(_CLOSE) :]
            yield from self._give(self._held[:at].rstrip())
            self._held, self._inside, self._fresh = rest, False, True
        yield from self._give(self._held)

    def finish(self) -> Iterator[tuple[bool, str]]:
        """The reply is over; yield the rest."""
        yield from self._give(self._held)

    def _give(self, text: str) -> Iterator[tuple[bool, str]]:
        self._held = self._held[len(text) :]
        if self._fresh:
            text = text.lstrip()
        if text:
            self._fresh = False
            yield self._inside, text


def opens(template: str) -> bool:
    """Whether a chat template's prompt for a reply ends inside a thought."""
    tail = template.rpartition("add_generation_prompt")[2]
    return _OPEN in tail and _CLOSE not in tail

"""Shows the events of one reply as they come: text to stdout, what happened to it on stderr."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from localllama.cli import output
from localllama.engine.api import Done, Event, Prefill, Text, Timings, Truncated, Usage


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one request."""

    text: str
    done: Done
    truncated: Truncated | None = None

    @property
    def stopped(self) -> bool:
        """Whether the user ended it."""
        return self.done.reason == "cancelled"


class Silent:
    """Shows nothing, for replies that are printed as JSON."""

    def event(self, event: Event) -> None:
        """Ignore it."""

    def end(self) -> None:
        """Nothing to end."""


class Shown:
    """Shows a reply while it comes."""

    def __init__(self, context_length: int, *, wrap: bool = False) -> None:
        self._context = context_length
        self._wrap = Wrap(shutil.get_terminal_size().columns) if wrap else None
        self._status = sys.stderr.isatty() and sys.stdout.isatty()
        self._pending = False  # a status line is on the screen
        self._begun = False

    def event(self, event: Event) -> None:
        """Show what it says."""
        if isinstance(event, Prefill):
            # Short prompts are read before a person could see a status line.
            if self._status and event.total > 512 and event.done < event.total:
                self._line(f"reading the prompt: {event.done} of {event.total} tokens")
        elif isinstance(event, Truncated):
            self._line("")
            plural = "s" if event.messages != 1 else ""
            what = f"{event.messages} older message{plural} ({event.tokens} tokens) left out"
            if not event.messages:
                what = f"the oldest {event.tokens} tokens give way to the rest of the reply"
            output.say(f"[{what}: the context of {self._context} tokens is full]")
        elif isinstance(event, Text):
            self._line("")
            self._begun = True
            text = output.printable(event.text)
            text = self._wrap.feed(text) if self._wrap else text
            sys.stdout.write(text)
            sys.stdout.flush()

    def end(self) -> None:
        """Finish the last line; a terminal may be behind the ^C that the user typed."""
        self._line("")
        if self._wrap:
            sys.stdout.write(self._wrap.flush())
        if self._begun or sys.stdout.isatty():
            sys.stdout.write("\n")
        sys.stdout.flush()

    def _line(self, text: str) -> None:
        """Show ``text`` on one line that the next call replaces; empty takes it away."""
        if text or self._pending:
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()
        self._pending = bool(text)


def follow(events: Iterator[Event], screen: Silent | Shown, *, cancel: Callable[[], None]) -> Reply:
    """Run a reply to its end. The first Ctrl-C calls ``cancel``, a second one interrupts."""
    parts: list[str] = []
    truncated: Truncated | None = None
    done = Done("cancelled", Usage(), Timings())
    try:
        with _first_interrupt(cancel):
            for event in events:
                screen.event(event)
                if isinstance(event, Text):
                    parts.append(event.text)
                elif isinstance(event, Truncated):
                    truncated = event
                elif isinstance(event, Done):
                    done = event
    finally:
        screen.end()
    return Reply("".join(parts), done, truncated)


@contextmanager
def _first_interrupt(cancel: Callable[[], None]) -> Iterator[None]:
    # A KeyboardInterrupt in the middle of a message from the worker would lose its other half.
    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cancel()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def cut_note(done: Done, context_length: int) -> str:
    """Return a sentence when the reply was cut before the model ended it, else nothing."""
    if done.reason == "context":
        return (
            f"[the reply was cut: the context of {context_length} tokens is full; "
            "--ctx or /set parameter num_ctx opens a larger one]"
        )
    if done.reason == "length":
        return f"[the reply was cut at {done.usage.completion_tokens} tokens, as max_tokens says]"
    return ""


def timings(done: Done) -> str:
    """Return the figures of a reply, as ``ollama run --verbose`` prints them."""
    usage, times = done.usage, done.timings
    evaluated = usage.prompt_tokens - usage.cached_tokens
    rows = [
        ("total duration", output.duration(times.load_seconds + times.total_seconds)),
        ("load duration", output.duration(times.load_seconds)),
        ("prompt eval count", f"{usage.prompt_tokens} token(s)"),
        ("prompt cached", f"{usage.cached_tokens} token(s)"),
        ("prompt eval duration", output.duration(times.prefill_seconds)),
        ("prompt eval rate", _rate(evaluated, times.prefill_seconds)),
        ("eval count", f"{usage.completion_tokens} token(s)"),
        ("eval duration", output.duration(times.decode_seconds)),
        ("eval rate", _rate(usage.completion_tokens, times.decode_seconds)),
    ]
    return "\n".join(f"{label + ':':<22}{value}" for label, value in rows)


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.2f} tokens/s" if seconds > 0 else "0 tokens/s"


class Wrap:
    """Breaks streamed text between words at the terminal's width; holds back one word at most."""

    def __init__(self, width: int) -> None:
        self._width = max(20, width)
        self._column = 0
        self._word = ""
        self._inside = False  # the beginning of this word is on the screen already

    def feed(self, text: str) -> str:
        """Return what can be shown by now."""
        shown: list[str] = []
        for char in text:
            if char == "\n":
                shown.append(self.flush() + char)
                self._column = 0
                self._inside = False
            elif char == " ":
                shown.append(self.flush())
                self._inside = False
                if self._column < self._width:  # at the border the break takes its place
                    shown.append(char)
                    self._column += 1
            else:
                self._word += char
                if len(self._word) >= self._width:
                    shown.append(self.flush())
        return "".join(shown)

    def flush(self) -> str:
        """Return the word held back, on a line of its own if it would cross the border."""
        if not self._word:
            return ""
        width = _cells(self._word)
        crosses = self._column > 0 and self._column + width > self._width
        broken = "\n" if crosses and not self._inside else ""
        self._column = (0 if broken else self._column) + width
        if self._column > self._width:  # a word longer than a line, broken by the terminal
            self._column %= self._width
        word, self._word = self._word, ""
        self._inside = True
        return broken + word


def _cells(text: str) -> int:
    """Return the width of ``text`` in terminal cells."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth

    return max(0, wcswidth(text))

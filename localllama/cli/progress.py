"""Shows the Progress of long work on stderr: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from typing import TypeVar

from localllama.cli import output
from localllama.progress import Progress

T = TypeVar("T")
Show = Callable[[Progress], None]

_LINE_SECONDS = 10.0
_WORDS = {
    "resolve": "looking up",
    "download": "pulling",
    "verify": "verifying",
    "extract": "unpacking",
    "convert": "converting",
    "install": "writing manifest of",
    "wait": "waiting for",
}


def follow(work: Generator[Progress, None, T], *, json_events: bool = False) -> T:
    """Run ``work`` to its end, show its progress and return its result."""
    if json_events:
        return _drive(work, _event)
    if sys.stderr.isatty():
        return _bars(work)
    return _drive(work, _Lines().show)


def _drive(work: Generator[Progress, None, T], show: Show) -> T:
    try:
        while True:
            show(next(work))
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        work.close()


def _event(progress: Progress) -> None:
    event = {
        "event": "progress",
        "phase": progress.phase,
        "item": progress.item,
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
        "bytes_per_second": round(progress.bytes_per_second),
        "seconds_left": progress.seconds_left,
    }
    if progress.note:
        event["note"] = progress.note
    if progress.detail:
        event["detail"] = progress.detail
    output.as_json(event, pretty=False)


class _Lines:
    """For logs: a line when a phase begins and ends, when there is news, and every ten seconds."""

    def __init__(self) -> None:
        self._key: tuple[str, str] = ("", "")
        self._due = 0.0
        self._complete = False

    def show(self, progress: Progress) -> None:
        key = (progress.phase, progress.item)
        begins = key != self._key
        done = progress.total_bytes > 0 and progress.done_bytes >= progress.total_bytes
        ends = done and not (self._complete and not begins)
        if progress.note:
            output.say(progress.note)
        if begins or ends or time.monotonic() >= self._due:
            output.say(describe(progress))
            self._due = time.monotonic() + _LINE_SECONDS
        self._key, self._complete = key, done


def describe(progress: Progress) -> str:
    """Return one line that says where the work is."""
    text = f"{_WORDS.get(progress.phase, progress.phase)} {progress.item}".strip()
    if progress.total_bytes > 0:
        part = 100 * progress.done_bytes // progress.total_bytes
        text += f": {part}% of {output.size(progress.total_bytes)}"
    elif progress.done_bytes:
        text += f": {output.size(progress.done_bytes)}"
    if progress.bytes_per_second > 0:
        text += f", {output.size(int(progress.bytes_per_second))}/s"
        if progress.seconds_left:
            text += f", {clock(progress.seconds_left)} left"
    return text


def clock(seconds: float) -> str:
    """Return a span of time in its two largest units.

    >>> clock(3725), clock(41)
    ('1h02m', '41s')
    """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def _bars(work: Generator[Progress, None, T]) -> T:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    console = Console(stderr=True)
    with Bars(*columns, console=console, refresh_per_second=10, expand=True) as bars:
        tasks = {}

        def show(progress: Progress) -> None:
            if progress.note:
                console.print(progress.note, markup=False, highlight=False)
            key = (progress.phase, progress.item)
            word = f"{_WORDS.get(progress.phase, progress.phase)} {_short(progress.item)}"
            if key not in tasks:
                tasks[key] = bars.add_task(word, total=None, figures="")
            bars.update(
                tasks[key],
                completed=progress.done_bytes,
                total=progress.total_bytes or None,
                figures=_figures(progress),
            )

        value = _drive(work, show)
        for task in bars.tasks:
            if task.total is None:  # a step without a size is over when the work is
                bars.update(task.id, total=1, completed=1)
        return value


def _figures(progress: Progress) -> str:
    if not progress.total_bytes:
        return output.size(progress.done_bytes) if progress.done_bytes else ""
    text = f"{output.size(progress.done_bytes)}/{output.size(progress.total_bytes)}"
    if progress.bytes_per_second > 0 and progress.done_bytes < progress.total_bytes:
        text += f"  {output.size(int(progress.bytes_per_second))}/s"
        if progress.seconds_left is not None:
            text += f"  {clock(progress.seconds_left)}"
        if progress.detail:
            text += f"  {progress.detail}"
    return text


def _short(item: str) -> str:
    return item if len(item) <= 40 else f"{item[:18]}…{item[-21:]}"

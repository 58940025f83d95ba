"""The one place that prints: results to stdout, talk to stderr, people's forms and JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import click

from localllama.amounts import ago as ago
from localllama.amounts import count as count
from localllama.amounts import duration as duration
from localllama.amounts import size as size
from localllama.errors import LocalLlamaError
from localllama.harmless import printable as printable

INTERRUPTED = 130  # exit code after Ctrl-C


def result(text: str, *, newline: bool = True) -> None:
    """Print a result."""
    click.echo(text, nl=newline)


def as_json(value: Any, *, pretty: bool = True) -> None:
    """Print a result for programs."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2 if pretty else None))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns, padded to their widest cell, as wide as they need to be."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("    ".join(cells).rstrip())


def say(text: str) -> None:
    """Tell the user something that is not a result."""
    click.echo(text, err=True)


def fail(error: LocalLlamaError) -> None:
    """Tell what went wrong and what to do about it."""
    click.echo(f"{paint('Error:', 'red', sys.stderr)} {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)


def bug(error: Exception) -> int:
    """Write the traceback of a bug to the log, tell where it is, and return exit code 1."""
    import traceback

    from localllama.paths import locate

    text = "".join(traceback.format_exception(error))
    log = locate().log / "crash.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text)
        where = f"the details are in {log}"
    except OSError:
        where = "LOCALLLAMA_DEBUG=1 shows the details"
    summary = f"{type(error).__name__}: {error}"
    click.echo(f"{paint('Error:', 'red', sys.stderr)} a bug in localllama: {summary}", err=True)
    click.echo(f"  {where}; please report them", err=True)
    return 1


def confirm(question: str, *, yes: bool, default: bool = True) -> bool:
    """Ask on the terminal; ``yes`` answers for the user; without a terminal the answer is no."""
    if yes:
        return True
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        return False
    return click.confirm(question, default=default, err=True)


def agreed(question: str, *, yes: bool) -> bool:
    """Ask on the terminal before something that was asked for; elsewhere that is agreement."""
    at_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    return yes or not at_terminal or click.confirm(question, default=True, err=True)


def paint(text: str, colour: str, stream: TextIO) -> str:
    """Return ``text`` in a colour, where the stream is a terminal and the user wants colours."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return click.style(text, fg=colour, bold=colour == "red")

"""Writes docs/cli.md from the commands: ``python -m localllama.cli.reference --write FILE``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from localllama.cli.main import COMMANDS, EXIT_CODES, cli
from localllama.cli.output import INTERRUPTED


def reference() -> str:
    """Return the page."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield "# Commands"
    yield ""
    yield "Written by `python -m localllama.cli.reference --write docs/cli.md`; do not edit."
    yield ""
    yield "Results go to stdout, everything else to stderr. `--json` prints JSON for programs."
    yield "`NO_COLOR` turns colours off, `LOCALLLAMA_DEBUG=1` shows the traceback of a bug."
    yield ""
    yield "| exit code | meaning |"
    yield "| --- | --- |"
    codes = {0: "done", INTERRUPTED: "interrupted"} | {code: text for _, code, text in EXIT_CODES}
    yield from (f"| {code} | {codes[code]} |" for code in sorted(codes))
    yield ""
    with click.Context(cli, info_name="localllama", max_content_width=90, terminal_width=90) as top:
        for name in COMMANDS:
            command = cli.get_command(top, name)
            assert command is not None  # the table names commands that exist; a test imports each
            with click.Context(command, info_name=name, parent=top) as ctx:
                yield f"## localllama {name}"
                yield ""
                yield "```text"
                yield command.get_help(ctx)
                yield "```"
                yield ""
                if isinstance(command, click.Group):
                    yield from _subcommands(command, ctx)


def _subcommands(group: click.Group, parent: click.Context) -> Iterator[str]:
    for name, command in group.commands.items():
        with click.Context(command, info_name=name, parent=parent) as ctx:
            yield f"### {ctx.command_path}"
            yield ""
            yield "```text"
            yield command.get_help(ctx)
            yield "```"
            yield ""


def main() -> int:
    """Write the page, or check that it is the one in the repository."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--check", type=Path, metavar="FILE")
    options = parser.parse_args()
    page = reference()
    if options.write:
        options.write.write_text(page)
    elif options.check and options.check.read_text() != page:
        sys.stderr.write(f"{options.check} is old: write it anew with --write\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

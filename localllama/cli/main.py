"""The ``localllama`` command: imports one command at a time, turns errors into exit codes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from localllama import __version__, errors
from localllama.cli import output
from localllama.cli.output import INTERRUPTED

# name -> (module, one line of help). The help stands here so that `localllama --help` and
# completion import no command.
COMMANDS = {
    "run": ("run", "Chat with a model, or get one reply"),
    "pull": ("pull", "Download a model"),
    "search": ("search", "Search the catalog and Hugging Face"),
    "list": ("list", "List installed models"),
    "show": ("show", "Show what a model is"),
    "plan": ("plan", "Show what of a model fits where"),
    "doctor": ("doctor", "Look for trouble with this machine"),
    "path": ("path", "Print where a model's GGUF is"),
    "create": ("create", "Make a model of your own"),
    "convert": ("convert", "Make a GGUF file of original weights"),
    "quantize": ("convert", "Make a smaller GGUF file of a GGUF file"),
    "cp": ("manage", "Give a model a second name"),
    "rm": ("manage", "Remove models"),
    "outdated": ("update", "List models whose source has changed"),
    "update": ("update", "Fetch the new version of changed models"),
    "verify": ("verify", "Hash installed models again"),
    "prune": ("verify", "Remove files that no model uses"),
    "bench": ("bench", "Measure the speed and memory of a model"),
    "history": ("history", "List, search, show and take along saved chats"),
    "serve": ("serve", "Serve models to programs that know Ollama or OpenAI"),
    "ps": ("ps", "List loaded models"),
    "stop": ("stop", "Unload models"),
    "login": ("login", "Save a Hugging Face token"),
    "logout": ("login", "Forget the Hugging Face token"),
    "completion": ("completion", "Print the completion script of a shell"),
}
_ALIASES = {"ls": "list", "remove": "rm", "delete": "rm", "copy": "cp", "chat": "run"}

EXIT_CODES: tuple[tuple[type[errors.LocalLlamaError], int, str], ...] = (
    (errors.UsageProblem, 2, "the command was not understood"),
    (errors.NotFound, 3, "no such model, repository or file"),
    (errors.NetworkError, 4, "network: unreachable, refused, gated or offline"),
    (errors.BadFile, 5, "a corrupt or unsupported file"),
    (errors.DoesNotFit, 6, "does not fit into memory or on the disk"),
    (errors.LocalLlamaError, 1, "failed"),
)

_EPILOG = """\b
Examples:
  localllama run smollm2:135m
  localllama pull llama3.2:1b
  cat notes.txt | localllama run llama3.2:1b "summarise"

\b
Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 network,
5 corrupt or unsupported file, 6 does not fit, 130 interrupted.
"""


class Commands(click.Group):
    """A group that imports a command's module when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = _ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"localllama.cli.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, f"{name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in COMMANDS and name not in _ALIASES:
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"there is no command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader (head, less) has left, which is no failure; what Python still holds back
            # must go somewhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=Commands,
    epilog=_EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="localllama", message="%(prog)s %(version)s")
@click.option("--offline", is_flag=True, help="Refuse all network.")
@click.option("--no-history", is_flag=True, help="The app keeps nothing of its chats on the disk.")
@click.pass_context
def cli(ctx: click.Context, offline: bool, no_history: bool) -> int:
    """Download, keep and chat with Llama-family models: offline, private, in the terminal.

    Without a command, the app opens.
    """
    if offline:
        # The environment carries it, so that every command reads it the same way.
        os.environ["LOCALLLAMA_OFFLINE"] = "1"
    if ctx.invoked_subcommand is None:
        if sys.stdin.isatty() and sys.stdout.isatty():
            from localllama.cli.tui import start

            return start(keep=not no_history)
        click.echo(ctx.get_help())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        result: Any = cli.main(
            args=None if argv is None else list(argv), prog_name="localllama", standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except errors.LocalLlamaError as error:
        output.fail(error)
        return exit_code(error)
    except click.Abort:
        output.say("")
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        output.say("interrupted")
        return INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF):
            return output.bug(error)
        output.say(f"Error: cannot write the output: {error.strerror}")
        return 1
    except Exception as error:  # a bug: say so once, keep the traceback for the report
        if os.environ.get("LOCALLLAMA_DEBUG"):
            raise
        return output.bug(error)


def console() -> NoReturn:
    """The console script: run the command line and leave.

    Without taking the interpreter apart: that is 15 of the 110 ms of ``localllama list``, and
    nothing here waits for it (files are closed, locks released, workers ended by then).
    """
    if not sys.warnoptions:  # for who writes programs, as of a coroutine that Ctrl-C left unawaited
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without Unicode still gets the rest
            stream.reconfigure(errors="replace")
    # Bytes that are no text cannot travel as such; a file of that name is out of reach.
    code = main([argument.encode(errors="replace").decode() for argument in sys.argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # None: closed by the shell (>&-)
            stream.flush()
    os._exit(code)


def exit_code(error: errors.LocalLlamaError) -> int:
    """Return the exit code that stands for this error."""
    return next(code for kind, code, _ in EXIT_CODES if isinstance(error, kind))

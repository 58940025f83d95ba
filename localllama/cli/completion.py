"""``localllama completion``: the script that lets a shell complete commands, options and models."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from localllama.cli import output


@click.command("completion", epilog='\b\nExample:\n  eval "$(localllama completion bash)"')
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion_command(shell: str) -> None:
    """Print the completion script of SHELL."""
    from localllama.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None  # click knows the three shells above
    if shell == "bash":
        # bash takes ':' for a border of words, and model names are full of it.
        output.result("COMP_WORDBREAKS=${COMP_WORDBREAKS//:}")
    output.result(kind(cli, {}, "localllama", "_LOCALLLAMA_COMPLETE").source())

"""``localllama cp`` and ``localllama rm``: names come and go, bytes only with their last name."""

from __future__ import annotations

import click

from localllama import names
from localllama.cli import output
from localllama.cli.app import App, complete_installed
from localllama.errors import UsageProblem


@click.command("cp", epilog="\b\nExample:\n  localllama cp smollm2:135m my-assistant")
@click.argument("source", shell_complete=complete_installed)
@click.argument("target")
def cp_command(source: str, target: str) -> None:
    """Give the model SOURCE the second name TARGET. No bytes are copied."""
    app = App.start()
    name = names.own(target)
    if name == app.name(source):
        raise UsageProblem(f"'{name}' is its own name already", "give it another one")
    app.store.copy(app.name(source), name)
    output.say(f"copied '{source}' to '{name}'")


@click.command("rm", epilog="\b\nExample:\n  localllama rm smollm2:135m")
@click.argument("models", nargs=-1, required=True, shell_complete=complete_installed)
def rm_command(models: tuple[str, ...]) -> None:
    """Remove MODELS, and their data unless another name uses it."""
    app = App.start()
    for text in models:
        name = app.name(text)
        freed = app.store.remove(name)
        output.say(f"deleted '{name}', {output.size(freed)} freed")

"""``localllama login`` and ``logout``: the Hugging Face token for gated models."""

from __future__ import annotations

import sys

import click

from localllama.cli import output
from localllama.cli.app import App, offline_option
from localllama.files import storing


@click.command("login", epilog="\b\nExample:\n  localllama login < token.txt")
@click.option("--token", help="The token; without it, it is asked for or read from stdin.")
@offline_option
def login_command(token: str | None) -> None:
    """Save a Hugging Face token, after asking the hub whom it belongs to.

    Make one with read access at https://huggingface.co/settings/tokens.
    """
    from localllama.sources import huggingface

    app = App.start()
    if token is None:
        if sys.stdin.isatty():
            token = click.prompt("Token", hide_input=True, err=True)
        else:
            token = sys.stdin.readline()
    user = huggingface.whoami(str(token).strip(), app.network())
    huggingface.save_token(app.paths, str(token).strip())
    output.say(f"logged in as {user}; the token is in {app.paths.token_file}")


@click.command("logout", epilog="\b\nExample:\n  localllama logout")
def logout_command() -> None:
    """Forget the token that ``login`` saved."""
    app = App.start()
    known = app.paths.token_file.exists()
    if known:
        with storing(app.paths.token_file):
            app.paths.token_file.unlink()
    output.say("logged out" if known else "there was no saved token")

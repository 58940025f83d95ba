"""``localllama list``: the installed models, from their manifests alone."""

from __future__ import annotations

import click

from localllama.cli import output
from localllama.cli.app import App, json_option


@click.command("list", epilog="\b\nExample:\n  localllama list --json")
@click.argument("prefix", default="")
@json_option
def list_command(prefix: str, as_json: bool) -> None:
    """List installed models, newest first; PREFIX keeps the names that begin with it."""
    found, damaged = App.start().store.scan()
    models = [model for model in found if model.name.lower().startswith(prefix.lower())]
    if as_json:
        output.as_json({"models": [model.summary() for model in models]})
    else:
        output.table(
            ("NAME", "ID", "SIZE", "MODIFIED"),
            (
                (m.name, m.digest[:12], output.size(m.size_bytes), output.ago(m.modified_at))
                for m in models
            ),
        )
    for problem in damaged:
        output.say(f"Warning: {problem.message}")

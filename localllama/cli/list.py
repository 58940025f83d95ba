"""``localllama list``: the installed models, from their manifests alone."""

from __future__ import annotations

import click

from localllama import endpoints
from localllama.cli import output
from localllama.cli.app import App, json_option
from localllama.store import Installed


@click.command("list", epilog="\b\nExample:\n  localllama list --json")
@click.argument("prefix", default="")
@json_option
def list_command(prefix: str, as_json: bool) -> None:
    """List installed models, newest first; PREFIX keeps the names that begin with it.

    Then come the models of endpoints, as far as config.toml names them.
    """
    app = App.start()
    found, damaged = app.store.scan()
    models = [model for model in found if model.name.lower().startswith(prefix.lower())]
    remote = [m for m in endpoints.models(app.config) if m.name.startswith(prefix)]
    if as_json:
        named = [{"name": model.name, "url": model.source} for model in remote]
        output.as_json({"models": [model.summary() for model in models], "endpoints": named})
    else:
        output.table(("NAME", "ID", "SIZE", "MODIFIED"), map(_row, [*models, *remote]))
    for problem in damaged:
        output.say(f"Warning: {problem.message}")


def _row(model: Installed) -> tuple[str, str, str, str]:
    if model.remote:
        return model.name, "-", model.variant, "-"
    size, age = output.size(model.size_bytes), output.ago(model.modified_at)
    return model.name, model.digest[:12], size, age

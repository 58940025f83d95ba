"""``localllama path``: where a model's GGUF is, for other programs."""

from __future__ import annotations

import click

from localllama.cli import output
from localllama.cli.app import App, complete_installed, json_option


@click.command("path", epilog='\b\nExample:\n  llama-cli -m "$(localllama path smollm2:135m)"')
@click.argument("model", shell_complete=complete_installed)
@click.option("--all", "every", is_flag=True, help="Every part of a split model, a line each.")
@json_option
def path_command(model: str, every: bool, as_json: bool) -> None:
    """Print where the GGUF of MODEL is; of a split model the first part, as llama.cpp wants it."""
    app = App.start()
    paths = [str(path) for path in app.store.linked(app.installed(model))]
    if as_json:
        output.as_json({"paths": paths})
    else:
        output.result("\n".join(paths if every else paths[:1]))

"""``localllama stop``: gives the memory of loaded models back."""

from __future__ import annotations

import click

from localllama.cli import output
from localllama.cli.app import App, complete_installed
from localllama.errors import InvalidParameter, ModelNotFound
from localllama.runner import Runner, Running

_EXAMPLES = "\b\nExamples:\n  localllama stop smollm2:135m\n  localllama stop --all"


@click.command("stop", epilog=_EXAMPLES)
@click.argument("models", nargs=-1, shell_complete=complete_installed)
@click.option("--all", "everything", is_flag=True, help="Unload all models.")
def stop_command(models: tuple[str, ...], everything: bool) -> None:
    """Unload MODELS at once; replies under way are cut."""
    if everything == bool(models):
        raise InvalidParameter("which model?", "give names, or --all")
    app = App.start()
    runner = Runner(app.store, app.config, app.paths)
    loaded = runner.running()
    chosen = loaded if everything else [one for text in models for one in _find(app, loaded, text)]
    for running in chosen:
        runner.stop(running.record)
        output.say(f"unloaded '{running.record.label.name}'")


def _find(app: App, loaded: list[Running], text: str) -> list[Running]:
    """Return the workers that hold the model ``text``, whatever name it was loaded under."""
    name = app.name(text)
    model = app.store.find(name)
    digests = {model.digest} if model else set()
    found = [
        running
        for running in loaded
        if running.record.label.name in (str(name), text) or running.record.label.digest in digests
    ]
    if not found:
        raise ModelNotFound(f"{name} is not loaded", "localllama ps lists what is")
    return found

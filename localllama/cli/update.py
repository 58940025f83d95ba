"""``localllama outdated`` and ``localllama update``: does the source have other bytes by now."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from localllama import names
from localllama.cli import output
from localllama.cli.app import App, complete_installed, json_option, offline_option, yes_option
from localllama.cli.progress import follow
from localllama.errors import LocalLlamaError, UsageProblem
from localllama.store import Installed

if TYPE_CHECKING:
    from localllama.pull import Offer


@click.command("outdated", epilog="\b\nExample:\n  localllama outdated")
@offline_option
@json_option
def outdated_command(as_json: bool) -> None:
    """Ask each model's source whether it has changed. Downloads nothing."""
    from localllama import pull

    app = App.start()
    rows = []
    troubles: list[LocalLlamaError] = []
    for model in app.store.models():
        status, detail = "local", ""
        try:
            if offer := _look(app, model, weigh=False):
                status = "outdated" if pull.changed(model, offer) else "current"
        except LocalLlamaError as error:
            status, detail = "unknown", error.message
            troubles.append(error)
        rows.append({"name": model.name, "status": status, "detail": detail})
    if as_json:
        output.as_json({"models": rows})
    else:
        output.table(
            ("NAME", "STATUS", "DETAIL"), ((r["name"], r["status"], r["detail"]) for r in rows)
        )
    if troubles and len(troubles) == len(rows):
        raise troubles[0]


@click.command("update", epilog="\b\nExample:\n  localllama update --all")
@click.argument("models", nargs=-1, shell_complete=complete_installed)
@click.option("--all", "every", is_flag=True, help="Every installed model.")
@yes_option
@offline_option
def update_command(models: tuple[str, ...], every: bool, yes: bool) -> None:
    """Fetch the new version of MODELS whose source has changed."""
    app = App.start()
    if not models and not every:
        raise UsageProblem("which model?", "name some, or say --all")
    chosen = app.store.models() if every else [app.installed(text) for text in models]
    first: LocalLlamaError | None = None
    for model in chosen:
        try:
            output.say(f"{model.name}: {_update(app, model, yes=yes)}")
        except LocalLlamaError as error:
            # One unreachable source must not keep the others from being updated.
            output.say(f"{model.name}: {error.message}")
            first = first or error
    if first is not None:
        raise first


def _update(app: App, model: Installed, *, yes: bool) -> str:
    """Fetch the new version of a model, if there is one, and say what was done."""
    from localllama import pull

    offer = _look(app, model, weigh=False)
    if offer is None:
        return "has no source to ask"
    if not pull.changed(model, offer):
        return "up to date"
    if offer.converts:
        offer = _look(app, model) or offer
    trouble = pull.judge(offer, app.paths)
    if trouble and not output.confirm(f"{trouble.message}. Go on?", yes=yes, default=False):
        raise trouble
    follow(pull.pull(offer, store=app.store, network=app.network(), keep=model))
    return "updated"


def _look(app: App, model: Installed, *, weigh: bool = True) -> Offer | None:
    """Ask the source of ``model`` what it has now; None for models without a source."""
    from localllama import pull

    if not model.requested:
        return None
    name = names.parse(model.requested)
    offer = pull.look(
        name,
        known=app.catalog,
        store=app.store,
        network=app.network(),
        quant=model.quant,
        origin=model.conversion.get("origin", ""),
        weigh=weigh,
    )
    return replace(offer, name=names.parse(model.name))

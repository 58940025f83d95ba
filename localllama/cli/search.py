"""``localllama search``: what can be pulled, in the catalog and on Hugging Face."""

from __future__ import annotations

import click

from localllama.cli import output
from localllama.cli.app import App, json_option, offline_option
from localllama.errors import NetworkError


@click.command("search", epilog="\b\nExample:\n  localllama search llama 3.2")
@click.argument("words", nargs=-1)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="At most so many repositories.",
)
@offline_option
@json_option
def search_command(words: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List models that match WORDS: first the catalog's, then repositories with GGUF files."""
    from localllama import catalog
    from localllama.sources import huggingface

    app = App.start()
    network = app.network()
    entries = [
        entry
        for entry in app.catalog.entries()
        if all(
            word.lower() in f"{entry.name} {' '.join(entry.aliases)} {entry.description}".lower()
            for word in words
        )
    ]
    trouble: NetworkError | None = None
    found: list[huggingface.Found] = []
    if words:
        try:
            found = huggingface.search(" ".join(words), network, app.paths, limit)
        except NetworkError as error:
            trouble = error
    if as_json:
        output.as_json(
            {
                "catalog": [
                    {
                        "name": entry.name,
                        "parameters": entry.parameters,
                        "context_length": entry.context_length,
                        "size_bytes": catalog.estimate(entry, entry.default_quant),
                        "licence": entry.licence.name,
                        "gated": entry.gated,
                    }
                    for entry in entries
                ],
                "huggingface": [
                    {
                        "name": f"hf.co/{item.repo}",
                        "smallest_bytes": item.smallest_bytes,
                        "largest_bytes": item.largest_bytes,
                        "downloads": item.downloads,
                        "gated": item.gated,
                    }
                    for item in found
                ],
            }
        )
    else:
        rows = [
            (
                entry.name,
                output.size(catalog.estimate(entry, entry.default_quant)),
                output.count(entry.parameters),
                entry.licence.name,
            )
            for entry in entries
        ]
        rows += [
            (
                f"hf.co/{item.repo}",
                _sizes(item.smallest_bytes, item.largest_bytes),
                "",
                item.licence,
            )
            for item in found
        ]
        output.table(("NAME", "SIZE", "PARAMETERS", "LICENCE"), rows)
    if trouble is not None:
        if not entries:
            raise trouble
        output.say(f"Hugging Face was not searched: {trouble.message}")


def _sizes(smallest: int, largest: int) -> str:
    if smallest == largest:
        return output.size(smallest) if smallest else ""
    return f"{output.size(smallest)} - {output.size(largest)}"

"""``localllama create``: a model of one's own from a Modelfile, a file, a checkpoint or a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from localllama import hardware, names
from localllama.cli import output
from localllama.cli.app import App, json_option, offline_option, yes_option
from localllama.cli.convert import conversion_options, recipe_of
from localllama.cli.progress import follow
from localllama.errors import ModelNotFound, NotFound, UsageProblem
from localllama.store import Installed

if TYPE_CHECKING:
    from localllama.create import Wishes
    from localllama.modelfile import Modelfile

_EXAMPLES = """\b
Examples:
  localllama create pirate -f Modelfile
  localllama create my-llama --from ./Llama-2-7b-chat-hf --quantize Q4_K_M
  localllama create smaller --from llama2:7b-chat-q8_0 --quantize Q4_0
"""
_MODELFILE_BYTES = 4 << 20


@click.command("create", epilog=_EXAMPLES)
@click.argument("name")
@click.option("-f", "--file", "modelfile", type=click.Path(path_type=Path), help="A Modelfile.")
@click.option("--from", "base", default="", help="A checkpoint's folder, a GGUF file or a model.")
@click.option("-q", "--quantize", "quant", default="", help="Quantization type of the result.")
@conversion_options
@yes_option
@offline_option
@json_option
def create_command(
    name: str,
    modelfile: Path | None,
    base: str,
    quant: str,
    imatrix: Path | None,
    overrides: tuple[str, ...],
    allow_requantize: bool,
    threads: int | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Make the model NAME of a base and what a Modelfile says.

    Without -f and --from, the Modelfile of this folder is read. --from takes the place of FROM.
    """
    from localllama import create

    if (imatrix or overrides or allow_requantize) and not quant:
        raise UsageProblem("these options are for a conversion", "say --quantize TYPE as well")
    recipe = recipe_of(quant, imatrix, overrides, allow_requantize) if quant else None
    wishes = create.Wishes(recipe, threads or hardware.usable_threads())
    wanted, folder = _read(modelfile, base)
    wanted = create.check(wanted)
    app = App.start()
    model = _base(app, wanted, folder, names.own(name), wishes, yes=yes, as_json=as_json)
    model = create.with_settings(model, wanted, app.store)
    if as_json:
        output.as_json({"event": "done", "model": model.summary()}, pretty=False)
    else:
        output.say(f"{model.name}: {output.size(model.size_bytes)}, from {wanted.base}")


def _read(path: Path | None, base: str) -> tuple[Modelfile, Path]:
    """What is wanted, and the folder that its paths are meant from."""
    from localllama.modelfile import Modelfile, decode, parse

    if path is None and base:
        return Modelfile(base), Path()
    path = path or Path("Modelfile")
    try:
        with path.open("rb") as file:
            text = decode(file.read(_MODELFILE_BYTES))
    except FileNotFoundError:
        raise NotFound(f"there is no {path}", "say -f MODELFILE, or --from MODEL") from None
    except OSError as error:
        raise UsageProblem(f"cannot read {path}: {error.strerror}") from error
    wanted = parse(text)
    return (replace(wanted, base=base), Path()) if base else (wanted, path.parent)


def _base(
    app: App,
    wanted: Modelfile,
    folder: Path,
    name: names.ModelName,
    wishes: Wishes,
    *,
    yes: bool,
    as_json: bool,
) -> Installed:
    from localllama import create

    if create.is_path(wanted.base, folder):
        path = folder / Path(wanted.base).expanduser()
        work = create.from_path(
            path, name, wishes, known=app.catalog, store=app.store, network=app.network()
        )
        return follow(work, json_events=as_json)
    try:
        base = app.installed(wanted.base)
    except ModelNotFound:
        from localllama.cli.pull import fetch

        base = fetch(app, wanted.base, app.network(), yes=yes, json_events=as_json)
    work = create.from_installed(base, name, wishes, store=app.store)
    return follow(work, json_events=as_json)

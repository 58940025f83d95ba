"""``localllama convert`` and ``localllama quantize``: weights to a GGUF file of a chosen type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import click

from localllama import hardware
from localllama.cli import output
from localllama.cli.app import json_option, yes_option
from localllama.cli.progress import clock, follow
from localllama.errors import UsageProblem

if TYPE_CHECKING:
    from localllama.convert.layout import Recipe
    from localllama.convert.model import Model
    from localllama.convert.provenance import Origin

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path)
_CONVERT_EXAMPLES = """\b
Examples:
  localllama convert ./Llama-2-7b-chat-hf llama2-7b-chat.gguf --quant Q4_K_M
  localllama convert ./Llama-2-7b-chat-hf --dry-run
"""
_QUANTIZE_EXAMPLES = """\b
Examples:
  localllama quantize model-F16.gguf model-Q5_K_M.gguf Q5_K_M
  localllama quantize model-F16.gguf --dry-run
"""


def conversion_options(command: F) -> F:
    """Add what ``convert``, ``quantize`` and ``create`` share."""
    options = (
        click.option("--imatrix", type=_FILE, help="Importance matrix made by llama-imatrix."),
        click.option(
            "--tensor-type",
            "overrides",
            multiple=True,
            metavar="PATTERN=TYPE",
            help="Give the tensors whose name matches this type; may be repeated.",
        ),
        click.option(
            "--allow-requantize",
            is_flag=True,
            help="Accept weights that were quantized below Q8_0 before.",
        ),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default all."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("convert", epilog=_CONVERT_EXAMPLES)
@click.argument("source", type=_FILE)
@click.argument("out", type=_FILE, required=False)
@click.option("--quant", default="Q4_K_M", show_default=True, help="Quantization type of OUT.")
@conversion_options
@click.option(
    "--eps",
    type=click.FloatRange(0, 1, min_open=True),
    help="For an old GGML file: 1e-6 if it is a Llama 1; default 1e-5, Llama 2's.",
)
@click.option("--dry-run", is_flag=True, help="Show size and time for every type; write nothing.")
@yes_option
@json_option
def convert_command(source: Path, out: Path | None, quant: str, **options: Any) -> None:
    """Make the GGUF file OUT of original weights.

    SOURCE is the folder of a checkpoint (safetensors, PyTorch, Meta's own layout), an old GGML
    file, or a GGUF file. The file is written in one pass and is there whole or not at all.
    """
    _run(source, out, quant, **options)


@click.command("quantize", epilog=_QUANTIZE_EXAMPLES)
@click.argument("source", type=_FILE, metavar="IN")
@click.argument("out", type=_FILE, required=False)
@click.argument("quant", required=False, metavar="[TYPE]")
@conversion_options
@click.option("--dry-run", is_flag=True, help="Show size and time for every type; write nothing.")
@yes_option
@json_option
def quantize_command(source: Path, out: Path | None, quant: str | None, **options: Any) -> None:
    """Make the GGUF file OUT of the GGUF file IN, with the quantization type TYPE.

    IN should be F32, F16, BF16 or Q8_0. Of a split file, give the first part.
    """
    if quant is None and not options["dry_run"]:
        raise UsageProblem("quantize needs IN, OUT and TYPE", "like: in.gguf out.gguf Q4_K_M")
    _run(source, out, quant or "F16", **options)


def recipe_of(
    quant: str, imatrix: Path | None, overrides: tuple[str, ...], allow_requantize: bool
) -> Recipe:
    """Return what the options ask for; raises InvalidParameter, BadFile."""
    from localllama.convert import importance, types
    from localllama.convert.layout import Recipe

    return Recipe(
        quant=types.parse(quant),
        overrides=tuple(types.parse_override(text) for text in overrides),
        importance=importance.load(imatrix) if imatrix else None,
        requantize=allow_requantize,
    )


def _run(
    source: Path,
    out: Path | None,
    quant: str,
    *,
    imatrix: Path | None,
    overrides: tuple[str, ...],
    allow_requantize: bool,
    threads: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    eps: float | None = None,
) -> None:
    from localllama.convert import opening

    threads = threads or hardware.usable_threads()
    recipe = recipe_of(quant, imatrix, overrides, allow_requantize)
    model, origin = opening.open_path(source, eps)
    if dry_run:
        _estimate(model, recipe, origin, (out or source).parent, threads, as_json)
        return
    if out is None:
        raise UsageProblem("there is no name for the result", "give OUT, or --dry-run")
    if out.is_dir():
        raise UsageProblem(f"{out} is a folder", f"give a file: {out / 'model.gguf'}")
    if out.exists() and not output.confirm(f"{out} exists. Replace it?", yes=yes, default=False):
        raise UsageProblem(f"{out} exists", "choose another name, or replace it with --yes")
    _write(model, recipe, origin, out, threads, as_json)


def _write(
    model: Model, recipe: Recipe, origin: Origin, out: Path, threads: int, as_json: bool
) -> None:
    from localllama.convert import writer
    from localllama.convert.layout import lay_out

    began = monotonic()
    layout = lay_out(model, recipe, origin)
    written = follow(writer.write(layout, out, threads=threads), json_events=as_json)
    if as_json:
        facts = {
            "path": str(out),
            "sha256": written.sha256,
            "size_bytes": written.info.file_bytes,
            "quantization": written.info.quantization,
            "inputs": written.inputs,
            "seconds": round(monotonic() - began, 2),
        }
        output.as_json({"event": "done", **facts}, pretty=False)
        return
    size = output.size(written.info.file_bytes)
    output.say(
        f"{out}: {written.info.quantization}, {size}, in {clock(monotonic() - began)}, "
        f"sha256 {written.sha256}"
    )


def _estimate(
    model: Model, recipe: Recipe, origin: Origin, folder: Path, threads: int, as_json: bool
) -> None:
    from localllama.convert.estimate import estimates

    free = hardware.free_disk_bytes(folder.absolute())
    found = list(estimates(model, recipe, origin, threads=threads))
    if as_json:
        output.as_json({"free_disk_bytes": free, "types": [asdict(item) for item in found]})
        return
    rows = [
        (
            item.quant,
            output.size(item.size_bytes) + ("" if item.size_bytes <= free else "  (disk!)"),
            f"{item.bits_per_weight:.2f}",
            "" if item.seconds is None else clock(item.seconds),
            item.problem,
        )
        for item in found
    ]
    output.table(("TYPE", "SIZE", "BITS PER WEIGHT", "TIME", "NOTE"), rows)
    on = f"{threads} threads" if threads > 1 else "1 thread"
    output.say(f"{output.size(free)} are free; times are for {on}, measured here")

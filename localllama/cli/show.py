"""``localllama show``: what a model is, where it is from, and which parameters count for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from localllama import model_card, names
from localllama.cli import output
from localllama.cli.app import App, complete_installed, json_option
from localllama.engine import sampling
from localllama.errors import UsageProblem
from localllama.store import Installed
from localllama.wants import parameter_layers

_CONVERSION = ("recipe", "version", "inputs")  # what a person may want to know of it


@click.command("show", epilog="\b\nExample:\n  localllama show smollm2:135m --parameters")
@click.argument("model", shell_complete=complete_installed)
@click.option("--license", "parts", flag_value="license", multiple=True, help="The licence.")
@click.option(
    "--modelfile", "parts", flag_value="modelfile", multiple=True, help="The model as a Modelfile."
)
@click.option(
    "--parameters",
    "parts",
    flag_value="parameters",
    multiple=True,
    help="Parameters and their origin.",
)
@click.option("--system", "parts", flag_value="system", multiple=True, help="The system prompt.")
@click.option(
    "--template", "parts", flag_value="template", multiple=True, help="The chat template."
)
@click.option("-v", "--verbose", is_flag=True, help="Also every key and tensor of the GGUF.")
@json_option
def show_command(model: str, parts: tuple[str, ...], verbose: bool, as_json: bool) -> None:
    """Show MODEL: an installed one, or a GGUF file by its path."""
    if len(parts) > 1:
        asked = " and ".join(f"--{part}" for part in parts)
        raise UsageProblem(f"{asked} together are too much", "ask for one at a time")
    app = App.start()
    found = find(app, model)
    if parts:
        (part,) = parts
        text = describe(app, found, part)
        output.as_json({part: text}) if as_json else output.result(output.printable(text))
    elif as_json:
        output.as_json(_facts(app, found, verbose=verbose))
    else:
        output.result(output.printable(describe(app, found, "info")))
        if verbose and not found.remote:
            for line in _everything(app, found):
                output.result(output.printable(line))


def find(app: App, text: str) -> Installed:
    """Return the installed model called ``text``, or the GGUF file at that path as a model.

    An endpoint is asked for its models where the name leaves them open.
    """
    name = names.parse(text)
    if name.source is names.Source.LOCAL:
        from localllama import pull

        return pull.describe(name)
    if name.source is names.Source.ENDPOINT:
        from localllama.engine import remote

        return remote.find(name, app.config)
    return app.installed(text)


def describe(
    app: App, model: Installed, part: str, *, chat: Mapping[str, object] | None = None
) -> str:
    """Return one aspect of a model as text; ``part`` is an option of ``show``, or info.

    ``chat`` are parameters of a conversation that come before the model's.
    """
    if model.remote and part in ("license", "modelfile", "template"):
        raise UsageProblem(f"{model.name} is not local: only its server knows its {part}")
    if part == "info":
        return "\n".join(_remote_info(model) if model.remote else _info(app, model))
    if part == "license":
        return model_card.licence(app.store, model)
    if part == "modelfile":
        return model_card.modelfile(app.store, app.config, model)
    if part == "parameters":
        return "\n".join(_parameters(app, model, chat or {}))
    if part == "system":
        return model.system
    if part == "template":
        return model_card.template(app.store, model)
    raise UsageProblem(
        f"there is no {part!r} to show", "info, license, modelfile, parameters, system or template"
    )


def _remote_info(model: Installed) -> Iterator[str]:
    yield from _section("Model", [("runs at", model.source), ("kept here", "nothing of it")])


def _info(app: App, model: Installed) -> Iterator[str]:
    info = model.info
    rows: list[tuple[str, Any]] = [
        ("architecture", info.get("architecture")),
        ("parameters", output.count(int(info.get("parameters") or 0))),
        ("context length", info.get("context_length")),
        ("embedding length", info.get("embedding_length")),
        ("layers", info.get("block_count")),
        ("quantization", info.get("quantization")),
    ]
    yield from _section("Model", rows)
    checked = all(file.promised for file in model.weights)
    origin: list[tuple[str, Any]] = [
        ("source", model.source),
        ("revision", model.revision),
        ("digest", model.digest[:12] if model.weights[0].sha256 else ""),
        ("size", output.size(model.size_bytes)),
        ("parts", len(model.weights) if len(model.weights) > 1 else ""),
        ("converted", _conversion(model)),
        ("checked", "sha256 given by the source" if checked else "structure only; digest recorded"),
        ("modified", output.ago(model.modified_at)),
    ]
    needless = () if model.weights[0].sha256 else ("checked", "modified")
    needless = (*needless, "checked") if model.conversion else needless
    origin = [row for row in origin if row[0] not in needless]
    yield from _section("Origin", origin)
    resolved = sampling.resolve(parameter_layers(model, app.config))
    rows = [
        (name, f"{getattr(resolved.sampling, name)}    ({layer})")
        for name, layer in resolved.origins.items()
        if layer != sampling.DEFAULT
    ]
    yield from _section("Parameters", rows)
    yield from _section("System", [("", line) for line in model.system.splitlines()[:8]])
    terms = model_card.licence(app.store, model).splitlines()
    yield from _section("License", [("", line) for line in terms[:2]])


def _conversion(model: Installed) -> str:
    if not model.conversion:
        return ""
    made = model.conversion
    return f"{made['recipe']} of {len(made['inputs'])} files, by localllama {made['version']}"


def _section(title: str, rows: list[tuple[str, Any]]) -> Iterator[str]:
    rows = [(key, value) for key, value in rows if value not in (None, "", 0)]
    if rows:
        width = max(len(key) for key, _ in rows)
        yield f"  {title}"
        yield from (f"    {key.ljust(width)}    {value}".rstrip() for key, value in rows)
        yield ""


def _parameters(app: App, model: Installed, chat: Mapping[str, object]) -> Iterator[str]:
    resolved = sampling.resolve([("chat", chat), *parameter_layers(model, app.config)])
    width = max(len(name) for name in resolved.origins)
    for name, origin in resolved.origins.items():
        value = getattr(resolved.sampling, name)
        shown = "random" if value is None else value
        shown = json.dumps(list(value)) if isinstance(value, tuple) else shown
        yield f"{name.ljust(width)}  {shown!s:<12}  {origin}"
    for name, value in model.parameters.items():
        if not sampling.known({name: value}):
            yield f"{name.ljust(width)}  {value!s:<12}  model"


def _facts(app: App, model: Installed, *, verbose: bool) -> dict[str, Any]:
    facts = {
        **model.summary(),
        "revision": model.revision,
        "licence": model.licence,
        "info": model.info,
        "system": model.system,
        "template": model.template,
        "parameters_set": model.parameters,
        "conversion": {key: model.conversion[key] for key in _CONVERSION if model.conversion},
        "files": [
            {"name": f.name, "sha256": f.sha256, "size_bytes": f.size_bytes, "role": f.role}
            | {"sha256_given_by_source": f.promised}
            for f in model.files
        ],
    }
    if verbose and not model.remote:
        facts["metadata"] = model_card.header(app.store, model).metadata
    return facts


def _everything(app: App, model: Installed) -> Iterator[str]:
    header = model_card.header(app.store, model)
    yield "  Metadata"
    for key, value in header.metadata.items():
        yield f"    {key} = {str(value)[:200]}"
    yield ""
    yield "  Tensors"
    for tensor in header.tensors:
        shape = " x ".join(str(length) for length in tensor.shape)
        yield f"    {tensor.name}    {tensor.type}    [{shape}]"

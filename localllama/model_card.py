"""What an installed model says of itself: header, chat template, licence, Modelfile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from localllama import gguf_file
from localllama.config import Config
from localllama.engine import sampling
from localllama.gguf_file import ModelInfo
from localllama.store import Installed, Store
from localllama.wants import parameter_layers


def header(store: Store, model: Installed) -> ModelInfo:
    """Return what the GGUF header says; raises BadFile where the file is gone or damaged."""
    if not model.weights[0].sha256:
        paths: list[Path] = [Path(file.name) for file in model.weights]
    else:
        paths = list(store.weights(model))
    return gguf_file.read_split_info(paths) if len(paths) > 1 else gguf_file.read_info(paths[0])


def template(store: Store, model: Installed) -> str:
    """Return the chat template: Jinja, a Go template, or the name of a built-in one."""
    return model.template or header(store, model).chat_template or model.fallback_template


def licence(store: Store, model: Installed) -> str:
    """Return the licence's text where we have it, else its name and link."""
    text = store.text(model, "license") or str(model.licence.get("text", ""))
    terms = [str(model.licence[key]) for key in ("name", "link") if model.licence.get(key)]
    notice = str(model.licence.get("notice", ""))
    return "\n\n".join(filter(None, (notice, text or "\n".join(terms))))


def parameters(config: Config, model: Installed) -> list[tuple[str, object]]:
    """Return the parameters that somebody set, as a Modelfile names them; texts one by one."""
    resolved = sampling.resolve(parameter_layers(model, config))
    chosen = {
        n: getattr(resolved.sampling, n) for n, o in resolved.origins.items() if o != "default"
    }
    others = {n: v for n, v in model.parameters.items() if not sampling.known({n: v})}
    found: list[tuple[str, object]] = []
    for name, value in (chosen | others).items():
        name = "num_predict" if name == "max_tokens" else name  # as Ollama spells it
        values = value if isinstance(value, list | tuple) else [value]
        found += [(name, item) for item in values]
    return found


def modelfile(store: Store, config: Config, model: Installed) -> str:
    """Return the model as a Modelfile."""
    return "\n".join(_modelfile(store, config, model))


def _modelfile(store: Store, config: Config, model: Installed) -> Iterator[str]:
    yield f"# Modelfile of {model.name}, written by localllama show"
    weights = store.linked(model) if model.weights[0].sha256 else (model.weights[0].name,)
    yield f"FROM {weights[0]}"
    if model.template:
        yield f'TEMPLATE """{model.template}"""'
    if model.system:
        yield f'SYSTEM """{model.system}"""'
    for name, value in parameters(config, model):
        yield f"PARAMETER {name} {json.dumps(value, ensure_ascii=False)}"
    for message in model.messages:
        yield f'MESSAGE {message["role"]} """{message["content"]}"""'
    if text := licence(store, model):
        yield f'LICENSE """{text}"""'

"""Opens installed models: decides context and template, starts the worker that holds the model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from localllama import hardware, plan
from localllama.config import Config
from localllama.engine import sampling
from localllama.engine.api import LoadOptions
from localllama.engine.client import Engine
from localllama.errors import DoesNotFit
from localllama.paths import Paths
from localllama.store import Installed, Store


@dataclass(frozen=True, slots=True)
class Want:
    """What a front end asks for beyond the model; 0 and -1 leave the choice to the program."""

    context_length: int = 0
    gpu_layers: int = -1
    threads: int = 0
    template: str = ""  # Jinja source, or the name of a built-in one
    force: bool = False  # load although the estimate says that it does not fit


def parameter_layers(model: Installed, config: Config) -> list[tuple[str, dict[str, object]]]:
    """Return the sampling parameters below a chat's own, the most important layer first."""
    return [
        ("model", sampling.known(model.parameters)),
        ("config.toml", dict(config.parameters)),
        ("GGUF", sampling.known(model.info.get("sampling") or {})),
        ("catalog", sampling.known(model.catalog_parameters)),
    ]


class Runner:
    """Starts engines for the models of one store."""

    def __init__(self, store: Store, config: Config, paths: Paths) -> None:
        self.store = store
        self.config = config
        self.paths = paths

    def open(
        self, model: Installed, want: Want, *, on_progress: Callable[[float], None] | None = None
    ) -> Engine:
        """Load ``model`` in a worker of its own; ``on_progress`` gets fractions from 0 to 1.

        Raises DoesNotFit before anything is loaded, BadFile for a damaged model, EngineError when
        llama.cpp refuses it.
        """
        in_store = bool(model.weights and model.weights[0].sha256)
        paths = (
            tuple(str(path) for path in self.store.linked(model))
            if in_store
            else tuple(file.name for file in model.weights)
        )
        own = model.parameters.get("num_ctx")
        asked = (
            want.context_length
            or (own if isinstance(own, int) and own > 0 else 0)
            or self.config.run.context_length
        )
        options = LoadOptions(
            paths=paths,
            context_length=self._context(model, asked, force=want.force),
            template=want.template or model.template,
            fallback_template=model.fallback_template,
            gpu_layers=want.gpu_layers,
            # More threads than the machine runs at once wait for each other at every step.
            threads=min(want.threads or self.config.run.threads, os.cpu_count() or 1),
        )
        return Engine.start(
            options,
            log_dir=self.paths.log,
            on_progress=lambda loading: on_progress(loading.fraction) if on_progress else None,
        )

    def _context(self, model: Installed, asked: int, *, force: bool) -> int:
        weights = sum(file.size_bytes for file in model.weights)
        available = hardware.probe().memory_bytes
        try:
            return plan.context_length(model.info, weights, available, asked)
        except DoesNotFit:
            if not force:
                raise
            return asked or plan.SMALLEST_USEFUL_CONTEXT

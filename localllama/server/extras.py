"""This program's own additions to the APIs: tokens, plans, health."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from localllama import hardware, plan
from localllama.server import options
from localllama.server.asking import Asker
from localllama.server.bridge import Models
from localllama.wants import planned


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """``content`` is accepted for ``text``, as llama-server calls it."""

    model: str
    text: str | None = None
    content: str | None = None
    keep_alive: str | float | None = None


class TokenizeReply(msgspec.Struct, kw_only=True):
    model: str
    tokens: list[int]


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    model: str
    tokens: list[int]
    keep_alive: str | float | None = None


class DetokenizeReply(msgspec.Struct, kw_only=True):
    model: str
    text: str


class PlanRequest(msgspec.Struct, kw_only=True):
    model: str
    num_ctx: int = 0
    num_gpu: int = -1


class DevicePlan(msgspec.Struct, kw_only=True):
    device: str
    layers: int
    total_bytes: int
    available_bytes: int


class PlanReply(msgspec.Struct, kw_only=True):
    model: str
    text: str
    fits: bool
    context_length: int
    parallel: int
    kv_cells: int
    gpu_layers: int
    layers: int
    total_bytes: int
    devices: list[DevicePlan]


class Health(msgspec.Struct, kw_only=True):
    status: str


class Extras:
    """Answers requests that no other API knows."""

    def __init__(self, asker: Asker, models: Models) -> None:
        self._asker = asker
        self._models = models

    async def health(self) -> Health:
        """Tell that the server answers."""
        return Health(status="ok")

    async def tokenize(self, request: TokenizeRequest) -> TokenizeReply:
        """Split a text into the model's tokens, without BOS."""
        model = self._asker.find(request.model, "embeddings")
        want = self._asker.want({}, request.keep_alive)
        text = request.text if request.text is not None else request.content or ""
        tokens = await self._models.call(model, want, lambda lane: lane.engine.tokenize(text))
        return TokenizeReply(model=request.model, tokens=list(tokens))

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeReply:
        """Return the text of tokens."""
        model = self._asker.find(request.model, "embeddings")
        want = self._asker.want({}, request.keep_alive)
        data = await self._models.call(
            model, want, lambda lane: lane.engine.detokenize(request.tokens)
        )
        return DetokenizeReply(model=request.model, text=data.decode(errors="replace"))

    async def plan(self, request: PlanRequest) -> PlanReply:
        """Tell how a model would be loaded on this machine."""
        model = self._asker.find(request.model, "embeddings")
        _, loading = options.options({"num_ctx": request.num_ctx, "num_gpu": request.num_gpu})
        want = replace(self._asker.want(loading, None), force=True)
        header, config = self._asker.library.header(model), self._models.runner.config
        found = await self._models.run(
            lambda: plan.fit(header, hardware.probe(), planned(want, header, config))
        )
        return PlanReply(
            model=request.model,
            text=plan.sentence(found),
            fits=found.fits,
            context_length=found.context_length,
            parallel=found.slots,
            kv_cells=found.cells,
            gpu_layers=found.gpu_layers,
            layers=found.layers,
            total_bytes=found.total_bytes,
            devices=[
                DevicePlan(
                    device=use.device,
                    layers=use.layers,
                    total_bytes=use.total_bytes,
                    available_bytes=use.available_bytes,
                )
                for use in found.uses
            ],
        )

"""The ASGI app: which path leads where, behind the guard."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from localllama import __version__
from localllama.config import Config
from localllama.runner import Runner
from localllama.server import anthropic, extras, openai
from localllama.server import ollama_types as wire
from localllama.server.asking import Asker
from localllama.server.bridge import Models
from localllama.server.errors import NoSuchPage, WrongMethod
from localllama.server.guard import Guard, Rules
from localllama.server.http import Lines, endpoint, failure, pieces, reply
from localllama.server.library import Library
from localllama.server.ollama import Ollama
from localllama.server.ollama_create import Creator
from localllama.server.ollama_models import Shelf
from localllama.server.operations import Operation, document
from localllama.store import Store

_LOG = logging.getLogger("localllama.server")


@dataclass(frozen=True, slots=True)
class Policy:
    """What this server allows: ``pulls`` is ``any`` (and to change models), ``catalog`` (names of
    the catalog only) or ``none``."""

    rules: Rules = field(default_factory=Rules)
    pulls: str = "any"


def create_app(
    runner: Runner, store: Store, config: Config, policy: Policy | None = None
) -> ASGIApp:
    """Return the server's app."""
    policy = policy or Policy()
    models = Models(runner, most_waiting=config.serve.max_queue)
    library = Library(store)
    asker = Asker(library, config)
    creator = Creator(library, models, allowed=policy.pulls == "any")
    shelf = Shelf(library, models, creator, pulls=policy.pulls)
    operations = [
        *_ollama(Ollama(asker, models), shelf, creator),
        *openai.operations(asker, models),
        *anthropic.operations(asker, models),
        *_extras(extras.Extras(asker, models)),
    ]
    described = document(operations, __version__)

    async def openapi(request: Request) -> Response:
        return reply(described)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await guard.finish()
        await models.close()

    app = Starlette(
        routes=[
            Route("/", _alive, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
            *_blobs(creator),
            *(operation.route(policy.rules.body_bytes) for operation in operations),
        ],
        exception_handlers={HTTPException: _http_failure},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    guard = Guard(app, policy.rules)
    return guard


def _ollama(ollama: Ollama, shelf: Shelf, creator: Creator) -> list[Operation]:
    lines = Lines()
    return [
        Operation(
            "POST",
            "/api/chat",
            ollama.chat,
            wire.Chatted,
            wire.ChatRequest,
            wire.Chatted,
            lines,
        ),
        Operation(
            "POST",
            "/api/generate",
            ollama.generate,
            wire.Generated,
            wire.GenerateRequest,
            wire.Generated,
            lines,
        ),
        Operation("POST", "/api/embed", ollama.embed, wire.Embedded, wire.EmbedRequest),
        Operation(
            "POST", "/api/embeddings", ollama.embeddings, wire.EmbeddedOne, wire.EmbeddingsRequest
        ),
        Operation("GET", "/api/tags", shelf.tags, wire.Tags),
        Operation("GET", "/api/ps", shelf.ps, wire.Processes),
        Operation("GET", "/api/version", shelf.version, wire.Version),
        Operation("POST", "/api/show", shelf.show, wire.Shown, wire.ShowRequest),
        Operation("POST", "/api/copy", shelf.copy, None, wire.CopyRequest),
        Operation("DELETE", "/api/delete", shelf.delete, None, wire.DeleteRequest),
        Operation(
            "POST", "/api/pull", shelf.pull, wire.Status, wire.PullRequest, wire.Status, lines
        ),
        Operation("POST", "/api/push", shelf.push, wire.Status, wire.PushRequest),
        Operation(
            "POST",
            "/api/create",
            creator.create,
            wire.Status,
            wire.CreateRequest,
            wire.Status,
            lines,
        ),
    ]


def _extras(own: extras.Extras) -> list[Operation]:
    return [
        Operation("GET", "/health", own.health, extras.Health),
        Operation(
            "POST", "/api/tokenize", own.tokenize, extras.TokenizeReply, extras.TokenizeRequest
        ),
        Operation(
            "POST",
            "/api/detokenize",
            own.detokenize,
            extras.DetokenizeReply,
            extras.DetokenizeRequest,
        ),
        Operation("POST", "/api/plan", own.plan, extras.PlanReply, extras.PlanRequest),
    ]


def _blobs(creator: Creator) -> list[Route]:
    """The one pair of routes whose bodies are not JSON."""

    async def look(request: Request) -> Response:
        there = await creator.has_blob(request.path_params["digest"])
        return Response(status_code=200 if there else 404)

    async def take(request: Request) -> Response:
        length = request.headers.get("content-length", "0")
        new = await creator.take_blob(request.path_params["digest"], pieces(request), int(length))
        return Response(status_code=201 if new else 200)

    path = "/api/blobs/{digest}"
    return [
        Route(path, endpoint(look), methods=["HEAD"]),
        Route(path, endpoint(take), methods=["POST"]),
    ]


async def _alive(request: Request) -> Response:
    return PlainTextResponse("Ollama is running")


async def _http_failure(request: Request, error: Exception) -> Response:
    """Say 404 and 405 in the words of the API."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        answer = failure(WrongMethod("method not allowed"), path)
        answer.headers["Allow"] = (error.headers or {}).get("Allow", "")
        return answer
    return failure(NoSuchPage("404 page not found"), path)

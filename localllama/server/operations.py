"""An operation: method, path, types and the function behind them; the routes and the document."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from localllama.server.http import (
    Encoding,
    Streaming,
    decode,
    endpoint,
    gone,
    reply,
    unless_left,
)

_REF = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that the server does.

    ``handle`` gets the decoded request where there is one (``takes``), and the text of ``{name}``
    in the path; it returns a value (``gives``), or yields the pieces of a stream (``streams``).
    """

    method: str
    path: str
    handle: Callable[..., Awaitable[Any]]
    gives: type | None = None
    takes: type | None = None
    streams: type | None = None
    encoding: Encoding | None = None

    @property
    def summary(self) -> str:
        """The first line of what the function says of itself."""
        return (self.handle.__doc__ or "").strip().splitlines()[0].rstrip(".")

    def route(self, body_bytes: int) -> Route:
        """Return it as Starlette's route."""

        async def answer(request: Request) -> Response:
            arguments: list[Any] = list(request.path_params.values())
            if self.takes is not None:
                arguments.append(await decode(request, self.takes, body_bytes))
            work = self._answer(request, arguments)
            return await unless_left(request.receive, work) or gone()

        methods = [self.method, "HEAD"] if self.method == "GET" else [self.method]
        return Route(self.path, endpoint(answer), methods=methods)

    async def _answer(self, request: Request, arguments: list[Any]) -> Response:
        found = await self.handle(*arguments)
        if isinstance(found, AsyncGenerator):
            assert self.encoding is not None
            return Streaming(found, self.encoding, request.url.path)
        return reply(found)


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """Return the OpenAPI document of these operations."""
    kinds = {
        kind for op in operations for kind in (op.takes, op.gives, op.streams) if kind is not None
    }
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(ordered, ref_template=_REF)
    by_kind = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = operation.path.replace(":path}", "}")
        paths.setdefault(path, {})[operation.method.lower()] = _described(operation, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "localllama", "version": version},
        "paths": paths,
        "components": {"schemas": components},
    }


def _described(operation: Operation, by_kind: dict[type, dict[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.gives is not None:
        content["application/json"] = {"schema": by_kind[operation.gives]}
    if operation.streams is not None and operation.encoding is not None:
        content[operation.encoding.media_type] = {"schema": by_kind[operation.streams]}
    ok: dict[str, Any] = {"description": "done"}
    if content:
        ok["content"] = content
    failed = {"description": "refused or failed", "content": {"application/json": {}}}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method.lower()}{operation.path}",
        "responses": {"200": ok, "4XX": failed, "5XX": failed},
    }
    if operation.takes is not None:
        body = {"application/json": {"schema": by_kind[operation.takes]}}
        described["requestBody"] = {"required": True, "content": body}
    if "{" in operation.path:
        name = operation.path.partition("{")[2].partition("}")[0].partition(":")[0]
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return described

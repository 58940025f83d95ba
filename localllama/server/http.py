"""Requests in, replies out: bodies decoded by type, streams that end when their client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from localllama.engine.api import Truncated
from localllama.errors import InvalidParameter, LocalLlamaError
from localllama.server import errors
from localllama.server.errors import Ending, TooLarge, TooSlow

T = TypeVar("T")

TRUNCATED_HEADER = "X-Localllama-Truncated"
_CLIENT_LEFT = 499  # nginx's; nobody reads it but the log
_BODY_SECONDS = 30.0  # without one more byte of a request
_WHOLE_BODY_SECONDS = 300.0
_DRAIN_SECONDS = 5.0
_DEEPEST = 64  # levels of what clients may nest freely: schemas, tools, options
_JSON = "application/json"
_LOG = logging.getLogger("localllama.server")


class LeftOut(msgspec.Struct):
    """What did not fit into the context; ``truncated`` in every reply."""

    messages: int
    tokens: int


def left_out(truncated: Truncated | None) -> LeftOut | None:
    """Return it as replies have it."""
    return LeftOut(truncated.messages, truncated.tokens) if truncated else None


async def decode(request: Request, kind: type[T], limit_bytes: int) -> T:
    """Return the body as ``kind``; raises InvalidParameter, TooLarge, TooSlow."""
    data = await read(request, limit_bytes)
    if not data.strip():
        raise InvalidParameter("missing request body")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"invalid request: {error}") from error
    except RecursionError as error:
        raise InvalidParameter("invalid request: nested too deeply") from error


async def read(request: Request, limit_bytes: int) -> bytes:
    """Return the body as it is; raises TooLarge, TooSlow."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(_WHOLE_BODY_SECONDS):
            async for part in pieces(request):
                size += len(part)
                if size > limit_bytes:
                    await drain(request.receive)
                    raise TooLarge(f"the request has more than {limit_bytes >> 20} MiB")
                parts.append(part)
    except TimeoutError as error:
        raise TooSlow("the request did not arrive in time") from error
    return b"".join(parts)


async def drain(receive: Receive) -> None:
    """Let the rest of a body go by for a while: who still sends does not hear the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while (await receive()).get("more_body"):
                pass


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; raises TooSlow when nothing comes for long."""
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                part = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise TooSlow("the request did not arrive in time") from error
        yield part


def require_shallow(value: object, what: str) -> None:
    """Raise InvalidParameter for JSON that is nested too deeply for those who walk through it."""
    level: list[object] = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list | tuple)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise InvalidParameter(f"invalid request: {what} is nested too deeply")


class Encoding(Protocol):
    """How an API writes the pieces of a stream."""

    media_type: str

    def piece(self, item: Any) -> bytes:
        """One piece."""
        ...

    def error(self, error: LocalLlamaError, path: str) -> bytes:
        """What goes out instead of the rest."""
        ...

    def end(self) -> bytes:
        """What comes last."""
        ...


class Lines:
    """NDJSON, as Ollama streams."""

    media_type = "application/x-ndjson"

    def piece(self, item: Any) -> bytes:
        """One line."""
        return msgspec.json.encode(item) + b"\n"

    def error(self, error: LocalLlamaError, path: str) -> bytes:
        """An ``error`` line."""
        return self.piece(errors.body(error, path))

    def end(self) -> bytes:
        """Nothing."""
        return b""


class ServerSentEvents:
    """``data:`` lines, as OpenAI streams; with ``named``, ``event:`` lines too, as Anthropic."""

    media_type = "text/event-stream"

    def __init__(self, *, named: bool = False) -> None:
        self._named = named

    def piece(self, item: Any) -> bytes:
        """One event; its name is the item's ``type``."""
        name = b"event: " + item.type.encode() + b"\n" if self._named else b""
        return name + b"data: " + msgspec.json.encode(item) + b"\n\n"

    def error(self, error: LocalLlamaError, path: str) -> bytes:
        """An error event."""
        name = b"event: error\n" if self._named else b""
        return name + b"data: " + msgspec.json.encode(errors.body(error, path)) + b"\n\n"

    def end(self) -> bytes:
        """``[DONE]``, where clients wait for it."""
        return b"" if self._named else b"data: [DONE]\n\n"


class Streaming(Response):
    """Sends what an async generator yields, one piece at a time.

    Its status is decided with the first piece: an error before that is a plain reply, one after it
    a last piece. A Truncated becomes a header. When the client leaves, the generator is closed.
    """

    def __init__(self, items: AsyncGenerator[Any, None], encoding: Encoding, path: str) -> None:
        self._items = items
        self._encoding = encoding
        self._path = path
        self.status_code = 200
        self.background = None
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        try:
            await unless_left(receive, self._answer(scope, receive, send))
        except Ending as error:
            if not self._begun:
                await failure(error, self._path)(scope, receive, send)
            else:
                await self._send(send, self._encoding.error(error, self._path))
                await send({"type": "http.response.body", "body": b""})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[str, str] = {}
        async with aclosing(self._items) as items:
            try:
                first = await anext(items)
                if isinstance(first, Truncated):
                    headers = truncated_header(first)
                    first = await anext(items)
            except LocalLlamaError as error:
                await failure(error, self._path)(scope, receive, send)
                return
            await self._start(send, headers)
            await self._send(send, self._encoding.piece(first))
            try:
                async for item in items:
                    if not isinstance(item, Truncated):  # too late for a header
                        await self._send(send, self._encoding.piece(item))
            except LocalLlamaError as error:
                _LOG.warning("%s: a reply broke off: %s", self._path, error.code)
                await self._send(send, self._encoding.error(error, self._path))
            else:
                await self._send(send, self._encoding.end())
            await send({"type": "http.response.body", "body": b""})

    async def _start(self, send: Send, headers: dict[str, str]) -> None:
        self._begun = True
        listed = {"Content-Type": self._encoding.media_type, "Cache-Control": "no-cache", **headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in listed.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _send(self, send: Send, data: bytes) -> None:
        if data:
            await send({"type": "http.response.body", "body": data, "more_body": True})


def reply(item: Any) -> Response:
    """Return a value as JSON; None is an empty body."""
    if item is None:
        return Response(status_code=200)
    truncated = getattr(item, "truncated", None)
    headers = truncated_header(truncated) if truncated else {}
    return Response(msgspec.json.encode(item), media_type=_JSON, headers=headers)


def failure(error: LocalLlamaError, path: str) -> Response:
    """Return an error in the words of the API that ``path`` belongs to."""
    return Response(
        msgspec.json.encode(errors.body(error, path)),
        errors.status(error),
        errors.headers(error),
        _JSON,
    )


def truncated_header(truncated: Truncated | LeftOut) -> dict[str, str]:
    """Return the header that tells what was left out."""
    return {TRUNCATED_HEADER: f"messages={truncated.messages}, tokens={truncated.tokens}"}


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what ``work`` returns; None, and the work is cancelled, when the client leaves first.

    The request's body must have been read. Raises Ending where the server cancels it.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    except asyncio.CancelledError as error:
        raise Ending from error
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def gone() -> Response:
    """The reply to a client that has left."""
    return Response(status_code=_CLIENT_LEFT)


def endpoint(
    handle: Callable[[Request], Coroutine[Any, Any, Response]],
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """Return ``handle`` with its errors turned into replies."""

    async def answer(request: Request) -> Response:
        try:
            return await handle(request)
        except LocalLlamaError as error:
            return failure(error, request.url.path)
        except ClientDisconnect:
            return gone()

    return answer

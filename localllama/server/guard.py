"""Who may ask: the Host and Origin of a request, API keys, sizes and times. ASGI middleware.

A web page in the user's browser can send requests to this machine. It must not get through under
another name (DNS rebinding: the Host header shows it), nor from another page (Origin).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localllama.errors import LocalLlamaError
from localllama.server import turns
from localllama.server.errors import KeyNeeded, Refused, TooLarge
from localllama.server.http import TRUNCATED_HEADER, drain, failure

# Pages of this machine, and programs that are web pages inside.
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]", "0.0.0.0")
_PROGRAMS = ("app", "file", "tauri", "vscode-webview", "vscode-file")
_OPEN_PATHS = ("/", "/health")  # tell only that a server is here
_METHODS = "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
_LAST_WORDS_SECONDS = 2.0
_STALLED_SECONDS = 120.0  # in which a client takes nothing of its reply

_LOG = logging.getLogger("localllama.server")


@dataclass(frozen=True, slots=True)
class Rules:
    """What is let in.

    ``hosts`` are further names of this machine, ``origins`` patterns of further pages (``*`` stands
    for anything). ``keys`` are the API keys, none = everybody may ask. ``body_bytes`` bounds
    requests, uploads of models aside.
    """

    hosts: frozenset[str] = frozenset()
    origins: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    body_bytes: int = 16 << 20


class Guard:
    """Lets requests through to ``app`` that keep the rules."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules
        self._keys = [_digest(key) for key in rules.keys]
        self._origin = _pattern(rules.origins)
        self._answering: set[asyncio.Task[Any]] = set()
        self._hosts = {"localhost", socket.gethostname().lower(), *rules.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        try:
            self._check_host(headers)
            self._check_origin(headers, scope["scheme"])
        except LocalLlamaError as error:
            await failure(error, scope["path"])(scope, receive, send)
            return
        self._note_task()
        answer = _Answer(send, origin, f"{scope['method']} {scope['path'][:200]!a}")
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight(headers)(scope, receive, answer.send)
            return
        try:
            self._check_key(headers, scope["path"])
            self._check_length(headers, scope["path"])
        except LocalLlamaError as error:
            if isinstance(error, TooLarge):
                await drain(receive)
            await failure(error, scope["path"])(scope, receive, answer.send)
            return
        turns.client.set(self._client(headers, scope))
        await self._app(scope, receive, answer.send)

    async def finish(self) -> None:
        """Give requests that were cancelled the moment that they need to say so."""
        if self._answering:
            await asyncio.wait(self._answering, timeout=_LAST_WORDS_SECONDS)

    def _note_task(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def _check_host(self, headers: Headers) -> None:
        host = headers.getlist("host")
        if len(host) != 1 or not self._is_ours(host[0]):
            raise Refused(
                f"the Host {', '.join(host)[:100]!r} is not this server",
                "localllama serve --allow-host NAME lets a name through",
            )

    def _is_ours(self, host: str) -> bool:
        """Whether a name cannot be that of somebody else's page; addresses never are."""
        name = re.sub(r":\d{1,5}$", "", host).strip("[]").lower().rstrip(".")
        if name in self._hosts or name.endswith((".localhost", ".internal")):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _check_origin(self, headers: Headers, scheme: str) -> None:
        origin = headers.get("origin")
        if (
            not origin
            or origin == f"{scheme}://{headers['host']}"
            or self._origin.fullmatch(origin)
        ):
            return
        raise Refused(
            f"the page {origin[:100]!r} may not ask this server",
            "OLLAMA_ORIGINS lists pages that may",
        )

    def _check_key(self, headers: Headers, path: str) -> None:
        if not self._keys or path in _OPEN_PATHS:
            return
        given = _key(headers)
        if not given:
            raise KeyNeeded("this server wants an API key", "send Authorization: Bearer KEY")
        digest = _digest(given)
        # All are compared, so that the time tells nothing.
        if not sum(hmac.compare_digest(digest, known) for known in self._keys):
            raise KeyNeeded("the API key is wrong")

    def _client(self, headers: Headers, scope: Scope) -> str:
        """Who asks; keys count only where they are checked, else everybody had a thousand names."""
        address = (scope.get("client") or ("",))[0]
        return _key(headers) or address if self._keys else address

    def _check_length(self, headers: Headers, path: str) -> None:
        length = headers.get("content-length", "0")
        if path.startswith("/api/blobs/"):
            return
        if length.isdecimal() and int(length) > self._rules.body_bytes:
            raise TooLarge(f"the request has more than {self._rules.body_bytes >> 20} MiB")


class _Answer:
    """Sends a reply with the headers that a browser wants, to a client that takes it."""

    def __init__(self, send: Send, origin: str, asked: str) -> None:
        self._send = send
        self._origin = origin
        self._asked = asked
        self._begun = monotonic()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            waited_ms = 1000 * (monotonic() - self._begun)
            _LOG.info("%s: %s after %.0f ms", self._asked, message["status"], waited_ms)
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            if self._origin:
                headers["Access-Control-Allow-Origin"] = self._origin
                headers["Access-Control-Expose-Headers"] = TRUNCATED_HEADER
                headers.add_vary_header("Origin")
        async with asyncio.timeout(_STALLED_SECONDS):
            await self._send(message)


def _preflight(headers: Headers) -> Response:
    """Return what lets a page, whose Origin was checked, send its real request."""
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "*"),
            "Access-Control-Max-Age": "600",
        },
    )


def _key(headers: Mapping[str, Any]) -> str:
    """Return the key in the places where clients put it."""
    scheme, _, token = str(headers.get("authorization", "")).partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return str(headers.get("x-api-key", ""))


def _digest(key: str) -> bytes:
    """Digests have one length, so that comparing them does not tell that of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _pattern(origins: Iterable[str]) -> re.Pattern[str]:
    local = [rf"https?://{re.escape(host)}(:\d+)?" for host in _LOCAL_HOSTS]
    programs = [rf"{scheme}://.*" for scheme in _PROGRAMS]
    own = [re.escape(origin).replace(r"\*", ".*") for origin in origins]
    return re.compile("|".join((*local, *programs, *own)), re.IGNORECASE)

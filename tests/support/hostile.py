"""Requests that nobody means well with, made at random: what a server must answer and survive."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.support.servers import MODEL, Server

_PATHS = (
    *("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show", "/api/copy"),
    *("/api/delete", "/api/pull", "/api/push", "/api/create", "/api/tokenize", "/api/detokenize"),
    *("/api/plan", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages"),
    *(
        "/v1/responses",
        "/v1/messages/count_tokens",
        "/v1/models/../../x",
        "/api/blobs/sha256:..",
        "/api//chat",
        "/",
    ),
)
_NAMES = (
    *(
        MODEL,
        MODEL,
        "nope",
        "",
        "../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "~",
        "a:b:c",
    ),
    *("\x00", "x" * 5000, "hf.co/../..", "pypi:x==1#../y.gguf", "http://127.0.0.1:1/x.gguf", "con"),
)
_KEYS = (
    *("model", "messages", "prompt", "stream", "format", "options", "tools", "tool_choice", "stop"),
    *("keep_alive", "think", "context", "suffix", "template", "system", "input", "dimensions", "n"),
    *("logprobs", "top_logprobs", "logit_bias", "max_tokens", "response_format", "seed", "files"),
    *(
        "from",
        "parameters",
        "license",
        "tokens",
        "num_ctx",
        "raw",
        "images",
        "role",
        "content",
        "instructions",
        "tool_choice",
        "text",
        "reasoning",
        "include",
        "metadata",
        "x",
    ),
)


@dataclass(frozen=True)
class Refusal:
    """What became of a request: its status, 0 where the connection was closed without one."""

    request: bytes
    status: int


def send(server: Server, random: Random) -> Refusal:
    """Send one hostile request and return what came of it."""
    data = _request(random)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
        try:
            sock.sendall(data)
            if not data.startswith(_WHOLE):  # else it would wait for the rest
                sock.shutdown(socket.SHUT_WR)
            answer = sock.recv(64)
        except OSError:  # closed before all was sent
            answer = b""
    parts = answer.split()
    status = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0
    return Refusal(data[:2000], status)


def _request(random: Random) -> bytes:
    path = random.choice(_PATHS)
    kind = random.randrange(10)
    if kind == 0:
        return random.randbytes(random.randrange(1, 300))
    if kind == 1:
        return _smuggled(random, path)
    if kind == 2:
        return _post(path, _deep(random))
    if kind == 3:
        return _post(path, random.randbytes(random.randrange(200)))
    if kind == 4:
        return _post(path, json.dumps(_body(random)).encode()[: random.randrange(1, 100)])
    if kind == 5:
        return _post(path, json.dumps(_body(random)).encode(), method=random.choice(_METHODS))
    return _post(path, json.dumps(_body(random)).encode())


_WHOLE = (b"POST /", b"GET /", b"PUT /", b"DELETE /", b"PATCH /", b"OPTIONS /", b"HEAD /")
_METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "POST ", "X" * 100)


def _post(path: str, data: bytes, *, method: str = "POST", more: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n{more}"
    return f"{head}Connection: close\r\n\r\n".encode() + data


def _smuggled(random: Random, path: str) -> bytes:
    """Headers over which two programs might disagree."""
    data = b"0\r\n\r\nGET /api/tags HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    more = random.choice(
        (
            "Transfer-Encoding: chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Content-Length: 3\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -1\r\n",
            "Host: evil.example\r\n",
            "X: a\r\n b\r\n",
            "X: \x00\r\n",
            "Origin: https://evil.example\r\n",
            f"X: {'y' * 100_000}\r\n",
            "Content-Type: text/plain; charset=utf-7\r\n",
            "Expect: 100-continue\r\n",
        )
    )
    return _post(path, data, more=more)


def _deep(random: Random) -> bytes:
    """JSON that is nested in a field, far beyond what anybody means."""
    depth = random.choice((60, 100, 900, 5_000, 100_000))
    opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
    inner = opening * depth + "1" + closing * depth
    field = random.choice(("format", "tools", "options", "messages", "x", "input"))
    value = f"[{inner}]" if field == "tools" else inner
    return f'{{"model": "{MODEL}", "prompt": "x", "{field}": {value}}}'.encode()


def _body(random: Random) -> Any:
    """A body with some fields right and others of any kind."""
    body: dict[str, Any] = {"model": random.choice(_NAMES), "stream": random.random() < 0.5}
    body |= {"options": {"num_predict": 1}, "max_tokens": 1}  # what is valid ends soon
    body["messages"] = [{"role": random.choice(("user", "tool", "x")), "content": "hi"}]
    for _ in range(random.randrange(4)):
        body[random.choice(_KEYS)] = _value(random, 3)
    return body if random.random() < 0.95 else _value(random, 3)


def _value(random: Random, depth: int) -> Any:
    kind = random.randrange(9 if depth else 7)
    if kind == 7:
        return [_value(random, depth - 1) for _ in range(random.randrange(4))]
    if kind == 8:
        return {random.choice(_KEYS): _value(random, depth - 1) for _ in range(random.randrange(4))}
    return (
        None,
        random.random() < 0.5,
        random.choice((0, -1, 1, 2**31, 2**63, 10**30, -(2**63))),
        random.choice((0.5, -1.5, 1e308, 1e-9)),
        random.choice(_NAMES),
        random.choice(("json", "user", "\ud800", "\u202e", "%s%n", "{{ 7*7 }}", "a" * 10_000)),
        "".join(chr(random.randrange(0x20, 0xD000)) for _ in range(random.randrange(20))),
    )[kind]

"""Small questions to a server: how large is it, these bytes of it, this short text."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

from localllama.config import Network
from localllama.download.web import Retry, Web, length_of
from localllama.errors import ServerFailed

T = TypeVar("T")

_MAX_ATTEMPTS = 3  # a person waits in front of these without seeing anything move


@dataclass(frozen=True, slots=True)
class RemoteHead:
    """What a server says about a file; ``size`` in bytes, -1 = it does not say."""

    size: int
    etag: str
    final_url: str
    accepts_ranges: bool


def content_range(response: httpx2.Response) -> tuple[int, int]:
    """Return (first byte, size of the whole file) of a partial answer; -1 where it is not said."""
    span, _, total = response.headers.get("content-range", "").partition("/")
    first = span.removeprefix("bytes").strip().partition("-")[0]
    return (int(first) if first.isdecimal() else -1, int(total) if total.isdecimal() else -1)


def validator(response: httpx2.Response) -> str:
    """Return what changes when the file does: its ETag, else its date, else nothing."""
    return response.headers.get("etag", "") or response.headers.get("last-modified", "")


def probe(url: str, network: Network, token: str = "") -> RemoteHead:
    """Return what the server says about ``url``, without downloading it; raises NetworkError."""

    # A GET of one byte: HEAD is refused by signed addresses and often wrong about the length.
    def attempt(web: Web) -> RemoteHead:
        with web.get(url, token, {"Range": "bytes=0-0"}) as response:
            whole = response.status_code == 200
            size = length_of(response) if whole else content_range(response)[1]
            return RemoteHead(size, validator(response), str(response.url), not whole)

    return _ask(network, attempt)


def read_range(url: str, start: int, length: int, network: Network, token: str = "") -> bytes:
    """Return ``length`` bytes of ``url`` from ``start``, fewer at its end; raises NetworkError.

    A server that sends no parts is read from the beginning up to there.
    """

    def attempt(web: Web) -> bytes:
        with web.get(url, token, {"Range": f"bytes={start}-{start + length - 1}"}) as response:
            if response.status_code == 416:
                return b""
            skip = start if response.status_code == 200 else 0
            return _read(response, skip + length)[skip : skip + length]

    return _ask(network, attempt) if length > 0 else b""


def get_bytes(
    url: str,
    network: Network,
    token: str = "",
    *,
    headers: Mapping[str, str] | None = None,
    limit_bytes: int = 16 << 20,
) -> bytes:
    """Return the whole short answer to a GET; raises NetworkError, also above ``limit_bytes``."""

    def attempt(web: Web) -> bytes:
        with web.get(url, token, headers) as response:
            body = _read(response, limit_bytes + 1)
            if len(body) > limit_bytes:
                raise ServerFailed(f"{response.url.host} sends far more than was asked for")
            return body

    return _ask(network, attempt)


def get_json(
    url: str, network: Network, token: str = "", *, headers: Mapping[str, str] | None = None
) -> Any:
    """Return the JSON value behind ``url``; raises NetworkError."""
    try:
        return json.loads(get_bytes(url, network, token, headers=headers))
    except ValueError as error:
        raise ServerFailed(
            f"{httpx2.URL(url).host} answered with something that is not JSON",
            "a proxy or a log-in page may stand in between",
        ) from error


def _read(response: httpx2.Response, limit: int) -> bytes:
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) >= limit:
            break
    return bytes(body)


def _ask(network: Network, attempt: Callable[[Web], T]) -> T:
    waiting = threading.Event()
    with Web(network) as web:
        failures = 0
        while True:
            try:
                return attempt(web)
            except Retry as again:
                failures += 1
                if failures >= min(network.retries, _MAX_ATTEMPTS):
                    raise again.error from again
                waiting.wait(again.delay(failures))

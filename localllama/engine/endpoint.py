"""A server with OpenAI's API: which models it has, what it streams, its refusals in plain words.

Knows nothing of events and engines; remote.py makes one of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from localllama.config import Endpoint, Network
from localllama.errors import (
    AccessDenied,
    ConnectionLost,
    ContextFull,
    EngineError,
    InvalidConfig,
    LocalLlamaError,
    Offline,
    RateLimited,
    RemoteNotFound,
    ServerFailed,
)

if TYPE_CHECKING:  # the HTTP client costs 60 ms that local models need not spend
    import httpx2

    from localllama.download.web import Web

_KEYRING_SERVICE = "localllama"
_LISTING_SECONDS = 15.0  # a person waits in front of it
_SILENCE_SECONDS = 600.0  # the other side may have to load a large model before its first token
_MOST_BYTES = 16 << 20  # of an answer that is no stream, and of one event
_SHOWN_CHARACTERS = 300  # of what a server says of a failure
_FULL = re.compile(r"context[ _](length|size|window)|exceed_context|maximum context|context holds")
_LIMIT = re.compile(r"(?:context length is|context holds|context size of)\D{0,3}(\d+)")


class Served(msgspec.Struct, frozen=True):
    """One entry of ``GET /models``; servers tell the context length in one of three places."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = None  # vLLM
    context_length: int | None = None  # hosted ones
    meta: dict[str, Any] | None = None  # llama-server and localllama

    @property
    def context(self) -> int:
        """Its context length in tokens, 0 where it is not told."""
        told = (self.meta or {}).get("n_ctx")
        return self.max_model_len or self.context_length or (told if isinstance(told, int) else 0)


class Delta(msgspec.Struct, frozen=True):
    """What is new; thinking goes by two names."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct, frozen=True):
    """The one reply that was asked for."""

    delta: Delta | None = None
    finish_reason: str | None = None


class Counts(msgspec.Struct, frozen=True):
    """Tokens of the request."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: dict[str, Any] | None = None


class Chunk(msgspec.Struct, frozen=True):
    """One event of a streamed reply."""

    choices: list[Choice] | None = None
    usage: Counts | None = None
    error: Any = None


class _Listing(msgspec.Struct):
    data: list[Served]


class Server:
    """The endpoint ``name`` under its settings; every request has a Web of its own.

    Raises Offline, and InvalidConfig or AccessDenied for a key that cannot be had.
    """

    def __init__(self, name: str, settings: Endpoint, network: Network) -> None:
        if network.offline:
            raise Offline(
                f"@{name} is not on this machine, and the network is switched off",
                "leave out --offline, or choose a local model",
            )
        self.name = name
        self.settings = settings
        self._network = network
        self._key = _key(name, settings, os.environ)

    def web(self) -> Web:
        """Return what a request is made with; raises InvalidConfig."""
        from localllama.download.web import Web

        return Web(self._network)

    def models(self) -> list[Served]:
        """Ask which models it has; [] where it does not tell. Raises NetworkError."""
        url = f"{self.settings.url}/models"
        with (
            self.web() as web,
            web.ask("GET", url, self._key, patience_seconds=_LISTING_SECONDS) as response,
        ):
            body = _read(response)
            if response.status_code in (404, 405):
                return []
            if not response.is_success:
                raise self._refusal(response, body)
        try:
            return msgspec.json.decode(body, type=_Listing).data
        except msgspec.DecodeError as error:
            raise self._senseless() from error

    def chat(self, web: Web, body: Mapping[str, Any]) -> Iterator[Chunk]:
        """Yield a reply as it comes; ``web.abort()`` in another thread breaks it off.

        Raises NetworkError, RemoteNotFound, ContextFull and EngineError.
        """
        url, request = f"{self.settings.url}/chat/completions", msgspec.json.encode(body)
        with web.ask(
            "POST", url, self._key, request, patience_seconds=_SILENCE_SECONDS
        ) as response:
            if not response.is_success:
                raise self._refusal(response, _read(response))
            if "event-stream" not in response.headers.get("content-type", ""):
                raise self._senseless()
            over = False
            for line in _lines(response):
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                chunk = self._chunk(data)
                over = over or any(choice.finish_reason for choice in chunk.choices or ())
                yield chunk
            if not over:
                raise ConnectionLost(
                    f"@{self.name} ended the reply in the middle", "what came of it is kept"
                )

    def _chunk(self, data: bytes) -> Chunk:
        try:
            chunk = msgspec.json.decode(data, type=Chunk)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._senseless() from error
        if chunk.error is not None:
            told = {"error": chunk.error}
            raise self._failure(_number(_said(told)[1].get("code")) or 500, told)
        return chunk

    def _senseless(self) -> ServerFailed:
        return ServerFailed(
            f"@{self.name} answered with something that is not OpenAI's API",
            f"check its url in config.toml, which often ends in /v1: {self.settings.url}",
        )

    def _refusal(self, response: httpx2.Response, body: bytes) -> LocalLlamaError:
        """Return what an answer other than 2xx means to the user."""
        if response.is_redirect:
            place = _printable(response.headers.get("location", "another place"))
            return ServerFailed(
                f"@{self.name} leads to {place}", "write that into its url in config.toml"
            )
        try:
            told = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            told = None
        wait = _printable(response.headers.get("retry-after", ""))
        return self._failure(response.status_code, told, wait)

    def _failure(self, status: int, told: Any, wait: str = "") -> LocalLlamaError:
        said, facts = _said(told)
        # Some servers repeat the key they were given.
        said = said.replace(self._key, "***") if self._key else said
        where, because = f"@{self.name}", f": {said}" if said else f" ({status})"
        if status in (401, 403):
            return self._denied(because)
        if status == 429:
            again = f" for {wait} s" if wait.isdecimal() else ""
            return RateLimited(f"{where} refuses more requests{again}{because}", "try again later")
        kinds = f"{facts.get('code')} {facts.get('type')}"
        if status in (400, 413, 422, 500) and _FULL.search(f"{kinds} {said}"):
            limit = _LIMIT.search(said)
            return ContextFull(
                f"the prompt is longer than the context of {where}{because}",
                "shorten it, or begin a new chat",
                needed_tokens=_number(facts.get("n_prompt_tokens")),
                available_tokens=_number(facts.get("n_ctx")) or int(limit[1] if limit else 0),
            )
        if status == 404:
            return RemoteNotFound(
                f"{where} does not have it{because}",
                f"localllama run @{self.name} asks for its models; its url often ends in /v1",
            )
        if status >= 500:
            return ServerFailed(f"{where} failed{because}", "try again later, or look at its log")
        return EngineError(
            f"{where} refuses the request{because}", "a parameter may be one it does not take"
        )

    def _denied(self, because: str) -> AccessDenied:
        if self._key:
            source = self.settings.key_env or "the keyring"
            return AccessDenied(
                f"@{self.name} does not accept the key{because}", f"correct the one in {source}"
            )
        return AccessDenied(
            f"@{self.name} wants a key{because}",
            f"name the variable that holds it: key_env in [endpoints.{self.name}]",
        )


def _key(name: str, settings: Endpoint, environ: Mapping[str, str]) -> str:
    """Return the key, "" for none."""
    if settings.key_env:
        key = environ.get(settings.key_env, "").strip()
        missing = f"the environment variable {settings.key_env} is not set"
        hint = f"it should hold the key of @{name}, as config.toml says"
    elif settings.keyring:
        key, missing = _from_keyring(name)
        hint = f"put it there: keyring set {_KEYRING_SERVICE} {name}"
    else:
        return ""
    if not key:
        raise AccessDenied(missing, hint)
    if not (key.isascii() and key.isprintable()):
        raise InvalidConfig(f"the key of @{name} holds characters that no key has", hint)
    return key


def _from_keyring(name: str) -> tuple[str, str]:
    """Return the key in the system's keyring, and what to say when it is empty."""
    try:
        import keyring
        import keyring.errors
    except ImportError:
        return "", f"the key of @{name} is in the keyring, and the package keyring is not installed"
    try:
        key = keyring.get_password(_KEYRING_SERVICE, name) or ""
    except keyring.errors.KeyringError as error:
        return "", f"the keyring cannot be read: {error}"
    return key.strip(), f"the keyring has no key of @{name}"


def _said(told: Any) -> tuple[str, dict[str, Any]]:
    """Return a server's words for a failure, and the object around them."""
    facts = told.get("error", told) if isinstance(told, dict) else {}
    if isinstance(facts, str):
        return _printable(facts), {}
    if not isinstance(facts, dict):
        return "", {}
    words = facts.get("message") or facts.get("detail")
    return (_printable(words) if isinstance(words, str) else ""), facts


def _printable(text: str) -> str:
    shown = "".join(c if c.isprintable() else " " for c in text).strip()
    return shown[:_SHOWN_CHARACTERS].rstrip(". ")


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _read(response: httpx2.Response) -> bytes:
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if len(body) > _MOST_BYTES:
            break
    return bytes(body)


def _lines(response: httpx2.Response) -> Iterator[bytes]:
    """Yield lines; httpx's own also end at characters that may stand within JSON."""
    held = b""
    for piece in response.iter_raw():
        *lines, held = (held + piece).split(b"\n")
        yield from lines
        if len(held) > _MOST_BYTES:
            raise ServerFailed("the endpoint sends far more than a reply", "look at its log")
    yield held

"""One way to talk HTTP: redirects by hand, tokens for one host only, refusals in plain words."""

from __future__ import annotations

import netrc
import os
import random
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakSet

import httpx2

from localllama import __version__
from localllama.config import Network
from localllama.errors import (
    AccessDenied,
    ConnectionLost,
    Gated,
    InvalidConfig,
    LocalLlamaError,
    NetworkError,
    Offline,
    RateLimited,
    RemoteNotFound,
    ServerFailed,
)

_MAX_REDIRECTS = 10
_MAX_BACKOFF_SECONDS = 30.0
_MAX_RETRY_AFTER_SECONDS = 120.0
_SMALL_BODY = 64 * 1024
_LATER = "try again later"
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class Retry(Exception):
    """An attempt failed in a way that may pass; ``error`` is what to raise when patience ends."""

    def __init__(self, error: NetworkError, wait_seconds: float = 0.0) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait_seconds = wait_seconds  # what the server asked for, 0 = nothing

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after the ``attempt``-th failure in a row, from 1.

        Raises ``error`` when the server asks for more patience than we have.
        """
        if self.wait_seconds > _MAX_RETRY_AFTER_SECONDS:
            raise self.error from self
        # Jitter keeps the connections of one file, and many clients, from coming back together.
        backoff = min(_MAX_BACKOFF_SECONDS, 0.5 * 2.0 ** (attempt - 1))
        return max(self.wait_seconds, backoff * random.uniform(0.75, 1.25))


class Web:
    """An HTTP client under the user's proxies, certificates and limits; safe for many threads.

    Raises Offline where the network is forbidden, InvalidConfig for a proxy or certificate setting
    that cannot be used.
    """

    def __init__(self, network: Network) -> None:
        if network.offline:
            raise Offline(
                "this needs the network, which is switched off",
                "leave out --offline, or unset HF_HUB_OFFLINE and LOCALLLAMA_OFFLINE",
            )
        try:
            self._client = httpx2.Client(
                verify=_certificates(),
                timeout=network.timeout_seconds,
                limits=httpx2.Limits(max_keepalive_connections=max(1, network.connections)),
                headers={
                    "User-Agent": f"localllama/{__version__}",
                    "Accept-Encoding": "identity",
                },
            )
        except (ValueError, ImportError, httpx2.InvalidURL) as error:
            raise InvalidConfig(
                f"the proxy setting cannot be used: {error}",
                "check the environment variables HTTP_PROXY, HTTPS_PROXY and ALL_PROXY",
            ) from error
        self._timeout_seconds = network.timeout_seconds
        self._logins = _logins()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._lock = threading.Lock()
        self._aborted = False

    def __enter__(self) -> Web:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; nobody may be using them any more."""
        self._client.close()

    def abort(self) -> None:
        """Break all connections, now and from now on: blocked readers return at once."""
        with self._lock:
            self._aborted = True
            sockets = list(self._sockets)
        for each in sockets:
            _break(each)

    @contextmanager
    def get(
        self, url: str, token: str = "", headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx2.Response]:
        """Yield the streamed answer (2xx or 416) to a GET of ``url`` after all redirects.

        ``token``, or what ~/.netrc says, goes to the scheme, host and port of ``url`` alone.
        Raises Retry for what may pass, inside the block too, else a LocalLlamaError.
        """
        host = urlsplit(url).netloc
        try:
            with closing(self._follow(url, token, dict(headers or {}))) as response:
                if problem := _refusal(response, url, token):
                    raise problem
                yield response
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise ServerFailed(
                f"{host} leads to an address that cannot be used: {error}"
            ) from error
        except httpx2.TransportError as error:
            raise self._lost(error, host, self._timeout_seconds) from error

    @contextmanager
    def ask(
        self, method: str, url: str, token: str = "", body: bytes = b"", *, patience_seconds: float
    ) -> Iterator[httpx2.Response]:
        """Yield the streamed answer of any status, redirects too, to a request made once.

        ``body`` is JSON. The other side may be silent for ``patience_seconds`` while it works.
        Raises NetworkError, inside the block too.
        """
        host = urlsplit(url).netloc
        try:
            address = httpx2.URL(url)
            request = self._client.build_request(
                method,
                address,
                content=body,
                headers={"Content-Type": "application/json", **self._authorization(address, token)},
                extensions={"trace": self._trace},
                timeout=httpx2.Timeout(self._timeout_seconds, read=patience_seconds),
            )
            with closing(self._client.send(request, stream=True)) as response:
                yield response
        except httpx2.InvalidURL as error:
            raise ServerFailed(f"{host} is an address that cannot be used: {error}") from error
        except httpx2.TransportError as error:
            lost = self._lost(error, host, patience_seconds)
            raise (lost.error if isinstance(lost, Retry) else lost) from error

    def _follow(self, url: str, token: str, headers: dict[str, str]) -> httpx2.Response:
        address = home = httpx2.URL(url)
        for _ in range(_MAX_REDIRECTS + 1):
            at_home = _origin(address) == _origin(home)
            login = self._authorization(address, token) if at_home else {}
            request = self._client.build_request(
                "GET", address, headers={**headers, **login}, extensions={"trace": self._trace}
            )
            response = self._client.send(request, stream=True)
            if not response.has_redirect_location:
                return response
            with closing(response):
                if 0 <= length_of(response) <= _SMALL_BODY:
                    response.read()  # a read answer leaves its connection fit for the next request
                address = response.url.join(response.headers["location"])
        raise ServerFailed(
            f"{home.host} redirects in a circle", "report it to the owner of that address"
        )

    def _authorization(self, address: httpx2.URL, token: str) -> dict[str, str]:
        if token:
            return {"Authorization": f"Bearer {token}"}
        if self._logins is not None and address.host in self._logins.hosts:
            name, _, password = self._logins.hosts[address.host]
            basic = httpx2.BasicAuth(name, password or "")
            request = next(basic.auth_flow(httpx2.Request("GET", address)))
            return {"Authorization": request.headers["Authorization"]}
        return {}

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Note every socket that is opened: httpx offers no other way to reach a busy one."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            opened = info["return_value"].get_extra_info("socket")
            with self._lock:
                self._sockets.add(opened)
                aborted = self._aborted
            if aborted:
                _break(opened)

    def _lost(
        self, error: httpx2.TransportError, host: str, patience_seconds: float
    ) -> NetworkError | Retry:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            return ConnectionLost(
                f"the certificate of {host} cannot be trusted: {cause.verify_message}",
                "behind a company proxy, set SSL_CERT_FILE to a file with its certificate",
            )
        if isinstance(error, httpx2.ProxyError):
            reason = f"the proxy does not let us reach {host} ({plainly(error)})"
        elif isinstance(error, httpx2.ConnectTimeout):
            reason = f"{host} does not answer"
        elif isinstance(error, httpx2.TimeoutException):
            reason = f"{host} sent nothing for {patience_seconds:g} seconds"
        elif isinstance(error, httpx2.ConnectError):
            reason = f"cannot reach {host} ({plainly(error)})"
        else:
            reason = f"the connection to {host} was lost ({plainly(error)})"
        return Retry(ConnectionLost(reason, "check the network connection and try again"))


def plainly(error: Exception) -> str:
    """Return what a network error says, without the number that the system gives it."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__


def _break(opened: socket.socket) -> None:
    # shutdown, unlike close, wakes a thread that waits in recv. SSLSocket's own shutdown would
    # also drop its TLS state under the reader's feet.
    with suppress(OSError):
        socket.socket.shutdown(opened, socket.SHUT_RDWR)


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _certificates() -> ssl.SSLContext:
    for variable in _CA_VARIABLES:
        if place := os.environ.get(variable):
            folder = Path(place).is_dir()
            try:
                return ssl.create_default_context(
                    cafile=None if folder else place, capath=place if folder else None
                )
            except OSError as error:
                raise InvalidConfig(
                    f"the certificates in {place} cannot be used: {error.strerror or error}",
                    f"correct or unset the environment variable {variable}",
                ) from error
    return httpx2.create_ssl_context()


def _logins() -> netrc.netrc | None:
    try:
        return netrc.netrc(os.environ.get("NETRC"))
    except (OSError, UnicodeDecodeError):
        return None
    except netrc.NetrcParseError as error:
        raise InvalidConfig(f"{error.filename}, line {error.lineno}: {error.msg}") from error


def length_of(response: httpx2.Response) -> int:
    """Return the Content-Length of an answer in bytes, -1 where it has none."""
    text = response.headers.get("content-length", "")
    return int(text) if text.isdecimal() else -1


def _refusal(response: httpx2.Response, url: str, token: str) -> Exception | None:
    """Return what an answer other than 2xx and 416 means to the user."""
    status, parts = response.status_code, urlsplit(url)
    host, name = parts.netloc, parts.path.rpartition("/")[2] or url
    code = response.headers.get("x-error-code", "")
    if response.is_success or status == 416:
        return None
    if code == "RepoNotFound" or (status in (404, 410)):
        return _missing(host, parts.path, code, token)
    if code == "GatedRepo" or (status == 403 and _origin(response.url) == _origin(httpx2.URL(url))):
        page = url.split("?")[0].split("/resolve/")[0]
        return Gated(
            f"{host} does not let you have {name}: its owner must grant access first",
            f"ask for it at {page} and log in with the same account: localllama login",
            page=page,
        )
    if status == 401:
        if token:
            return AccessDenied(
                f"{host} does not accept the token", "save a valid one: localllama login"
            )
        return AccessDenied(
            f"{host} wants to know who you are before it sends {name}",
            "log in: localllama login (Hugging Face), or give a password for the host in ~/.netrc",
        )
    wait_seconds = _retry_after(response)
    if status == 429:
        again = f" for {wait_seconds:.0f} s" if wait_seconds else ""
        return Retry(
            RateLimited(
                f"{host} refuses more requests{again} (429)",
                "try again later; being logged in often raises the limit",
            ),
            wait_seconds,
        )
    failed = ServerFailed(f"{host} failed ({status} {response.reason_phrase})", _LATER)
    # 403 from where a redirect led: the signature in that address ran out, a new one will do.
    if status >= 500 or status in (403, 408, 425):
        return Retry(failed, wait_seconds)
    return ServerFailed(f"{host} answered {status} {response.reason_phrase} for {name}")


def _missing(host: str, path: str, code: str, token: str) -> LocalLlamaError:
    name = path.strip("/")
    if code == "RepoNotFound":
        hint = "check the name" if token else "check the name; if it is private: localllama login"
        return RemoteNotFound(f"{host} has no repository {name.split('/resolve/')[0]}", hint)
    if code == "RevisionNotFound":
        return RemoteNotFound(f"{host} has no such revision: {name}", "check the revision")
    return RemoteNotFound(f"{host} has no {name}", "check the name and its spelling")


def _retry_after(response: httpx2.Response) -> float:
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except ValueError:
        return 0.0

"""Runs the app under uvicorn: the address, who may ask there, and an end in good order."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from localllama.config import Config
from localllama.errors import EngineError, InvalidConfig, UsageProblem
from localllama.runner import Runner
from localllama.server.app import Policy, create_app
from localllama.server.guard import Rules
from localllama.store import Store

_LOG = logging.getLogger("localllama.server")
PORT = 11434
_BACKLOG = 512
_ANSWER_BYTES = 4096
_MOST_CONNECTIONS = 2048  # beyond, uvicorn answers 503 itself
_IDLE_SECONDS = 75  # of a connection that is kept; clients with pools expect about that


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; ``host`` is a name or an address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


def parse_address(text: str) -> Address:
    """Return what ``[scheme://]host[:port][/path]`` means, as OLLAMA_HOST has it.

    Raises InvalidConfig.
    """
    scheme, colon, rest = text.strip().rpartition("://")
    if scheme not in ("", "http"):
        raise InvalidConfig(f"cannot serve {scheme}{colon}", "only http:// can be served")
    rest = rest.partition("/")[0]
    host, port = rest, "80" if scheme else str(PORT)
    if rest.startswith("["):
        host, _, after = rest[1:].partition("]")
        port = after.removeprefix(":") or port
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    if not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise InvalidConfig(f"{port!r} is not a port", "write host:port, like 127.0.0.1:11434")
    return Address(host or "127.0.0.1", int(port))


def policy(
    address: Address,
    config: Config,
    *,
    keys: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
    pulls: str = "",
    is_open: bool = False,
) -> Policy:
    """Return what is let in at this address.

    ``is_open`` means that everybody in the network may ask. Raises UsageProblem where others than
    this machine could ask and there is no key.
    """
    if not address.is_loopback and not keys and not is_open:
        raise UsageProblem(
            f"others in the network could use the models at {address}",
            "set an API key (--api-key-file FILE or LOCALLLAMA_API_KEY), or let everybody in with "
            "--insecure-no-auth",
        )
    rules = Rules(
        hosts=frozenset({address.host.lower(), *(host.lower() for host in hosts)}),
        origins=tuple(filter(None, (one.strip() for one in config.serve.origins.split(",")))),
        keys=keys,
    )
    return Policy(rules, pulls or ("any" if address.is_loopback else "catalog"))


def listen(address: Address) -> socket.socket:
    """Return a socket that is bound there; raises EngineError with a clear word why not."""
    try:
        family, kind, proto, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise EngineError(f"cannot listen on {address}: {error.strerror or error}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise _taken(address) from error
        raise EngineError(f"cannot listen on {address}: {error.strerror or error}") from error
    return sock


def _taken(address: Address) -> EngineError:
    who, hint = "another program", "take another port: --host 127.0.0.1:11435"
    if (answer := _ask(address)) is not None:
        if "localllama" in answer:
            who, hint = "another localllama", "use that one, or take another port with --host"
        elif '"version"' in answer:
            who, hint = "Ollama", "stop it, or take another port: --host 127.0.0.1:11435"
    return EngineError(f"{who} is already listening on {address}", hint)


def _ask(address: Address) -> str | None:
    """Ask whoever listens there which version it is."""
    request = f"GET /api/version HTTP/1.0\r\nHost: 127.0.0.1:{address.port}\r\n\r\n"
    try:
        with socket.create_connection((address.host, address.port), timeout=1) as sock:
            sock.sendall(request.encode())
            with sock.makefile("rb") as answer:
                return answer.read(_ANSWER_BYTES).decode(errors="replace")
    except OSError:
        return None


def serve(
    runner: Runner,
    store: Store,
    config: Config,
    sock: socket.socket,
    rules: Policy,
    *,
    grace_seconds: int,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Answer until SIGINT or SIGTERM; what runs then has ``grace_seconds`` to finish.

    A second SIGINT ends it at once.
    """
    _log_to_stderr()
    server = _Server(
        uvicorn.Config(
            create_app(runner, store, config, rules),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=grace_seconds,
            h11_max_incomplete_event_size=64 << 10,
        ),
        on_ready,
    )
    server.run(sockets=[sock])


class _Server(uvicorn.Server):
    """Says when it answers and what its end waits for."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        if self._on_ready is not None and not self.should_exit:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what runs: at once where a second Ctrl-C came, else after its grace."""
        tasks = self.server_state.tasks
        if tasks and not self.force_exit:
            seconds = self.config.timeout_graceful_shutdown
            _LOG.info("%d running have %s s to finish; Ctrl-C again ends them", len(tasks), seconds)
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn drops both then, and logs the end of the app as a failure
            for task in tasks:
                task.cancel()
            await self.lifespan.shutdown()


def _log_to_stderr() -> None:
    """Log what goes wrong, never what was said."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("localllama.server", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(handler)

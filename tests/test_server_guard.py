"""Who gets in: names, pages, keys, sizes, and what a request can never reach."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest

from localllama.config import Config, Serve
from localllama.errors import InvalidConfig, UsageProblem
from localllama.server import serve
from tests.support import cli, servers
from tests.support.servers import Server

KEY = "correct horse"
ORIGIN = "Access-Control-Allow-Origin"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded") / "home"


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    env = {"OLLAMA_ORIGINS": "https://chat.example,https://*.trusted.example"}
    with servers.served(home, env=env) as running:
        yield running


@pytest.fixture(scope="module")
def shared(home: Path) -> Iterator[Server]:
    """A server in the network, with keys."""
    file = home.parent / "keys"
    file.write_text(f"\n{KEY}\nsecond key\n")
    with servers.served(home, "--host", "0.0.0.0", "--api-key-file", str(file)) as running:
        yield running


def status(server: Server, path: str = "/api/tags", **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.get(server.url + path, headers=named).status_code


def say(server: Server, text: str) -> bytes:
    """Send bytes as they are and return the beginning of what comes back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(text.encode("latin-1"))
        return sock.recv(4096)


def test_another_name_is_refused(server: Server) -> None:
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:11434", "x"):
        assert status(server, host=host) == 403, host
    for host in ("localhost", "localhost:1", "127.0.0.1", "[::1]:80", "host.docker.internal"):
        assert status(server, host=host) == 200, host
    twice = "GET /api/tags HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert say(server, twice).split()[1] in (b"400", b"403")
    assert say(server, "GET /api/tags HTTP/1.1\r\n\r\n").split()[1] in (b"400", b"403")
    assert say(server, "GET /api/tags HTTP/1.0\r\n\r\n").split()[1] == b"403"


def test_another_page_is_refused(server: Server) -> None:
    for origin in (
        *("https://evil.example", "null", "http://localhost.evil.example"),
        *("https://chat.example.evil.example", "http://chat.example", "https://trusted.example"),
    ):
        assert status(server, origin=origin) == 403, origin
        answer = httpx2.options(
            f"{server.url}/api/chat",
            headers={"Origin": origin, "Access-Control-Request-Method": "POST"},
        )
        assert answer.status_code == 403
        assert ORIGIN not in answer.headers
    for origin in (
        *("http://localhost:3000", "https://127.0.0.1", "app://obsidian.md", server.url),
        *("https://chat.example", "https://a.trusted.example", "vscode-webview://1"),
    ):
        answer = httpx2.options(
            f"{server.url}/api/chat",
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
        )
        assert (answer.status_code, answer.headers[ORIGIN]) == (204, origin)
        assert answer.headers["Access-Control-Allow-Headers"] == "content-type"
        answer = httpx2.get(f"{server.url}/api/version", headers={"Origin": origin})
        assert answer.headers[ORIGIN] == origin
    assert ORIGIN not in httpx2.get(f"{server.url}/api/version").headers


def test_a_key_is_needed_in_the_network(shared: Server) -> None:
    assert status(shared) == 401
    assert status(shared, authorization="Bearer wrong") == 401
    assert status(shared, authorization=f"Bearer {KEY}x") == 401
    assert status(shared, x_api_key="") == 401
    assert status(shared, "/openapi.json") == 401
    assert status(shared, authorization=f"Bearer {KEY}") == 200
    assert status(shared, authorization="bearer second key") == 200
    assert status(shared, x_api_key=KEY) == 200
    assert status(shared, "/") == status(shared, "/health") == 200
    refused = httpx2.get(f"{shared.url}/v1/models")
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert httpx2.post(f"{shared.url}/v1/messages").json()["error"]["type"] == (
        "authentication_error"
    )


def test_models_are_not_changed_from_the_network(shared: Server) -> None:
    with httpx2.Client(base_url=shared.url, headers={"x-api-key": KEY}) as client:
        for path, body in (
            ("/api/pull", {"model": "hf.co/owner/repo"}),
            ("/api/create", {"model": "x", "from": "y"}),
            ("/api/copy", {"source": "x", "destination": "y"}),
        ):
            assert client.post(path, json=body).status_code == 403, path
        assert client.request("DELETE", "/api/delete", json={"model": "x"}).status_code == 403
        assert client.post(f"/api/blobs/sha256:{'0' * 64}", content=b"x").status_code == 403
        named = client.post("/api/pull", json={"model": "smollm2:135m"})
        assert named.status_code == 502  # let through, but offline


def test_nobody_listens_in_the_network_without_a_key(home: Path) -> None:
    env = servers.environment(home)
    refused = cli.run("serve", "--host", "0.0.0.0:0", env=env)
    assert refused.returncode == 2
    assert "--insecure-no-auth" in refused.stderr
    open_to_all = ("--host", "0.0.0.0", "--insecure-no-auth", "--allow-host", "My.Machine")
    with servers.served(home, *open_to_all) as running:
        assert status(running) == 200
        assert status(running, host="evil.example") == 403
        assert status(running, host="my.machine:80") == 200


def test_large_requests_are_refused(server: Server) -> None:
    many = b" " * (17 << 20)
    assert httpx2.post(f"{server.url}/api/chat", content=many).status_code == 413
    pieces = (many[: 1 << 20] for _ in range(17))
    assert httpx2.post(f"{server.url}/api/chat", content=pieces).status_code == 413


def test_names_and_digests_reach_nothing_else(server: Server, home: Path) -> None:
    before = sorted(home.parent.rglob("*"))
    names = (
        *("../../etc/passwd", "/etc/passwd", "~/x.gguf", "./x.gguf", "C:\\x", "file:///etc/passwd"),
        *(
            "http://127.0.0.1:1/x.gguf",
            "pypi:x==1#y.gguf",
            "a/../b",
            "a:..",
            "a\x00b",
            "‮x",
            "",
            " ",
        ),
        *("con", "%2e%2e/x", "a" * 600, "a/b/c/d", "hf.co/../x"),
    )
    client = httpx2.Client(base_url=server.url)
    for name in names:
        for path, body in (
            ("/api/chat", {"model": name, "messages": []}),
            ("/api/show", {"model": name}),
            ("/api/pull", {"model": name}),
            ("/api/create", {"model": name, "from": "x", "stream": False}),
            ("/api/copy", {"source": name, "destination": name}),
            ("/v1/embeddings", {"model": name, "input": "x"}),
        ):
            assert client.post(path, json=body).status_code in (400, 404), (path, name)
    for digest in ("sha256:..", "sha256:" + "A" * 64, "sha256:" + "0" * 63, "..%2f..%2fx", "x"):
        answer = client.post(f"/api/blobs/{digest}", content=b"x")
        assert answer.status_code in (400, 404), digest
    wrong = client.post(f"/api/blobs/sha256:{'0' * 64}", content=b"x")
    assert wrong.status_code == 400
    assert "digest mismatch" in wrong.json()["error"]
    client.close()
    new = [path for path in home.parent.rglob("*") if path not in before]
    assert all(path.is_dir() and path.is_relative_to(home) for path in new)


def test_a_taken_port_is_explained(server: Server, home: Path) -> None:
    env = servers.environment(home)
    again = cli.run("serve", "--port", str(server.port), env=env)
    assert again.returncode == 1
    assert "another localllama is already listening" in again.stderr
    with HTTPServer(("127.0.0.1", 0), _Ollama) as fake:
        threading.Thread(target=fake.serve_forever, daemon=True).start()
        taken = cli.run("serve", "--port", str(fake.server_port), env=env)
        fake.shutdown()
    assert "Ollama is already listening" in taken.stderr


class _Ollama(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"version":"0.12.6"}')

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_addresses_are_ollamas() -> None:
    for text, host, port in (
        ("127.0.0.1", "127.0.0.1", 11434),
        ("0.0.0.0:80", "0.0.0.0", 80),
        (":8080", "127.0.0.1", 8080),
        ("", "127.0.0.1", 11434),
        ("http://localhost", "localhost", 80),
        ("http://localhost:11434/", "localhost", 11434),
        ("[::1]:1234", "::1", 1234),
        ("::1", "::1", 11434),
    ):
        assert serve.parse_address(text) == serve.Address(host, port), text
    for text in ("https://localhost", "localhost:x", "localhost:99999"):
        with pytest.raises(InvalidConfig):
            serve.parse_address(text)
    loopback = {"127.0.0.1": True, "127.8.8.8": True, "::1": True, "localhost": True}
    for host, is_loopback in (loopback | {"0.0.0.0": False, "::": False, "box": False}).items():
        assert serve.Address(host, 1).is_loopback is is_loopback
    with pytest.raises(UsageProblem):
        serve.policy(serve.Address("box", 1), Config(serve=Serve()))

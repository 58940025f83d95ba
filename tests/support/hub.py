"""A real HTTP server on loopback that stands in for Hugging Face, Ollama's registry and the web.

    with Hub() as hub:
        hub.add_repo("owner/name", {"model-Q4_K_M.gguf": b"...", "README.md": b"..."})
        hub.add_ollama("library/llama2", "7b", {"model": Path("x.gguf"), "template": b"..."})
        hub.add_file("x.gguf", Generated(200_000_000))          # hub.url + "/files/x.gguf"
        hub.fault("x.gguf", "truncate", after=1000)
        ...
        assert hub.bytes_sent("x.gguf") < 1.2 * size

Large files are answered, as by the real hubs, with a redirect to a second listener (``cdn_url``);
``hub.requests`` shows what reached which one and whether a token came along.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import random
import re
import socket
import ssl
import sys
import termios
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

_BLOCK = 64 * 1024
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_IMAGE_CONFIG = "application/vnd.docker.container.image.v1+json"
_LFS = (".gguf", ".safetensors", ".bin")


class Content:
    """Bytes to serve: a bytes object or a file, read piecewise."""

    def __init__(self, data: bytes | Path) -> None:
        self._data = data
        self.size = data.stat().st_size if isinstance(data, Path) else len(data)

    def read(self, start: int, length: int) -> bytes:
        if isinstance(self._data, Path):
            with self._data.open("rb") as file:
                file.seek(start)
                return file.read(length)
        return self._data[start : start + length]

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for start in range(0, self.size, 1 << 20):
            digest.update(self.read(start, 1 << 20))
        return digest.hexdigest()

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'


class Generated(Content):
    """``size`` deterministic bytes that are never held at once: ``head``, then noise of ``seed``.

    Every 64 KiB block carries its index, so a block in the wrong place is a wrong file.
    """

    def __init__(self, size: int, seed: int = 0, head: bytes = b"") -> None:
        self.size = size
        self._head = head
        self._noise = random.Random(seed).randbytes(_BLOCK - 8)

    def read(self, start: int, length: int) -> bytes:
        length = max(0, min(length, self.size - start))
        first, last = start // _BLOCK, (start + length + _BLOCK - 1) // _BLOCK
        blocks = b"".join(i.to_bytes(8, "little") + self._noise for i in range(first, last))
        data = blocks[start - first * _BLOCK :][:length]
        return self._head[start : start + length] + data[max(0, len(self._head) - start) :]


Data = bytes | Path | Content


def _content(data: Data) -> Content:
    return data if isinstance(data, Content) else Content(data)


@dataclass
class Seen:
    """One request as it arrived; ``sent`` counts the bytes of the body that went out."""

    host: str  # "hub" or "cdn"
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in lower case
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> str:
        return self.headers.get("range", "")

    @property
    def authorization(self) -> str:
        return self.headers.get("authorization", "")


@dataclass
class Fault:
    """Something that goes wrong with requests whose path contains ``path``."""

    path: str
    kind: str
    times: int | None = 1  # None = always
    skip: int = 0  # matching requests that are served well before
    host: str = ""  # "hub", "cdn" or either
    method: str = ""  # "" = any
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int = 0  # bytes of this body before it happens
    rate: float = 0.0  # bytes per second over all connections, for "slow"
    content: Content | None = None  # what the file becomes, for "changed"
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)  # ends a "stall"
    _free_at: float = 0.0

    def claim(self, seen: Seen) -> bool:
        """Whether this fault strikes ``seen``; counts it if so. Call under the hub's lock."""
        if self.path not in seen.path or self.times == 0:
            return False
        if (self.host and self.host != seen.host) or (self.method and self.method != seen.method):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        self.reached.set()
        return True

    def delay(self, count: int) -> float:
        """Return the seconds to wait before ``count`` more bytes; call under the hub's lock."""
        now = time.monotonic()
        start = max(now, self._free_at)
        self._free_at = start + count / self.rate
        return start - now


_ANSWER_FAULTS = ("status", "redirect-loop", "changed")
_BODY_FAULTS = ("truncate", "corrupt", "stall")


@dataclass
class Repo:
    """A Hugging Face model repository: its commits, newest last, each a full set of files."""

    name: str
    gated: str | bool
    private: bool
    license: str
    tags: tuple[str, ...]
    commits: list[tuple[str, dict[str, Content]]]

    def at(self, revision: str) -> tuple[str, dict[str, Content]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class Hub:
    """The servers; use it as a context manager. ``tokens`` maps valid tokens to user names.

    With ``certificate``, a PEM file that also holds its key, they speak HTTPS.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.requests: list[Seen] = []
        self.tokens: dict[str, str] = {"hf_valid": "tester"}
        self.page_size = 100
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._granted: set[tuple[str, str]] = set()
        self._repos: dict[str, Repo] = {}
        self._files: dict[str, Content] = {}  # path on either listener -> content
        self._manifests: dict[str, bytes] = {}  # "ns/model/manifests/tag" -> JSON
        self._faults: list[Fault] = []
        self._servers = {name: _Server(self, name, certificate) for name in ("hub", "cdn")}
        self._threads = [threading.Thread(target=s.run) for s in self._servers.values()]

    def __enter__(self) -> Hub:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for fault in self._faults:
            fault.release.set()
        for server in self._servers.values():
            server.stop()
        for thread in self._threads:
            thread.join()

    @property
    def url(self) -> str:
        return self._servers["hub"].url

    @property
    def cdn_url(self) -> str:
        return self._servers["cdn"].url

    # What is served

    def add_repo(
        self,
        name: str,
        files: Mapping[str, Data],
        *,
        gated: str | bool = False,
        private: bool = False,
        license: str = "apache-2.0",
        tags: Iterable[str] = (),
        commit: str = "",
    ) -> str:
        """Create a repository and return the hash of its commit."""
        kinds = ["gguf"] if any(f.lower().endswith(".gguf") for f in files) else []
        all_tags = (*kinds, *tags, f"license:{license}")
        self._repos[name] = Repo(
            name, "manual" if gated is True else gated, private, license, all_tags, []
        )
        return self.update_repo(name, files, commit=commit)

    def update_repo(self, name: str, files: Mapping[str, Data], *, commit: str = "") -> str:
        """Add a commit in which ``files`` are new or changed; return its hash."""
        repo = self._repos[name]
        before = repo.commits[-1][1] if repo.commits else {}
        after = {**before, **{file: _content(data) for file, data in files.items()}}
        state = [name, len(repo.commits), {f: c.sha256 for f, c in after.items()}]
        commit = commit or hashlib.sha1(json.dumps(state).encode()).hexdigest()
        for file, content in after.items():
            self._files[_lfs_path(name, content, file)] = content
        repo.commits.append((commit, after))
        return commit

    def grant(self, token: str, repo: str) -> None:
        """Let the user behind ``token`` download the gated ``repo``."""
        self._granted.add((token, repo))

    def add_ollama(
        self,
        model: str,
        tag: str,
        layers: Mapping[str, Data] | Iterable[tuple[str, Data]],
        config: Mapping[str, Any] | None = None,
    ) -> str:
        """Publish ``namespace/model:tag`` and return the digest of its manifest.

        A layer's kind is a media type, or short: ``model`` is application/vnd.ollama.image.model.
        """
        items = layers.items() if isinstance(layers, Mapping) else layers
        image = Content(json.dumps(dict(config or {})).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._layer(model, _IMAGE_CONFIG, image),
            "layers": [
                self._layer(
                    model,
                    kind if "/" in kind else f"application/vnd.ollama.image.{kind}",
                    _content(data),
                )
                for kind, data in items
            ],
        }
        body = json.dumps(manifest).encode()
        self._manifests[f"{model}/manifests/{tag}"] = body
        return hashlib.sha256(body).hexdigest()

    def _layer(self, model: str, kind: str, content: Content) -> dict[str, object]:
        digest = f"sha256:{content.sha256}"
        self._files[f"/v2/{model}/blobs/{digest}"] = content
        self._files[f"/blobs/{digest}"] = content
        return {"mediaType": kind, "digest": digest, "size": content.size}

    def add_file(self, path: str, data: Data) -> str:
        """Serve (or replace) a plain file and return its address."""
        self._files[f"/files/{path}"] = _content(data)
        return f"{self.url}/files/{quote(path)}"

    # What goes wrong, and what happened

    def fault(
        self,
        path: str,
        kind: str,
        times: int | None = 1,
        *,
        content: Data | None = None,
        **how: Any,
    ) -> Fault:
        """Break the next ``times`` requests whose path contains ``path`` (None = all of them).

        ``status`` (status=, headers=), ``redirect-loop`` and ``changed`` (content=) strike any
        request; ``truncate``, ``corrupt``, ``stall`` (after=), ``no-range`` and ``slow`` (rate=)
        only those that get bytes of a file. ``skip``, ``host`` and ``method`` narrow it down.
        """
        assert kind in (*_ANSWER_FAULTS, *_BODY_FAULTS, "no-range", "slow"), kind
        new = content if content is None else _content(content)
        fault = Fault(path, kind, times, content=new, **how)
        with self.lock:
            self._faults.append(fault)
        return fault

    def struck(self, seen: Seen, kinds: Iterable[str]) -> Fault | None:
        """Return the first fault of ``kinds`` that strikes ``seen``, counting it."""
        with self.lock:
            return next((f for f in self._faults if f.kind in kinds and f.claim(seen)), None)

    def bytes_sent(self, path: str = "") -> int:
        """Return the body bytes sent for requests whose path contains ``path``."""
        return sum(seen.sent for seen in list(self.requests) if path in seen.path)

    # Answers, as (status, headers, body or Content)

    def answer(self, seen: Seen) -> Answer:
        path = seen.path
        if seen.host == "hub":
            if path.startswith("/api/"):
                return self._api(seen, path.removeprefix("/api/"))
            if path.startswith("/v2/"):
                return self._registry(path)
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self._resolve(seen, match[1], unquote(match[2]), unquote(match[3]))
        content = self._files.get(unquote(path))
        if content is None:
            return Answer(404, {}, b"not found")
        return Answer(200, {"ETag": content.etag}, content)

    def change(self, path: str, content: Content) -> None:
        """Replace what ``path`` serves, whatever kind of path it is."""
        self._files[unquote(path)] = content

    def _registry(self, path: str) -> Answer:
        if body := self._manifests.get(path.removeprefix("/v2/")):
            digest = hashlib.sha256(body).hexdigest()
            return Answer(200, {"Content-Type": _MANIFEST, "Ollama-Content-Digest": digest}, body)
        if path in self._files:
            place = f"{self.cdn_url}/blobs/{path.rpartition('/')[2]}?X-Signature=abc"
            return Answer(307, {"Location": place})
        unknown = "BLOB_UNKNOWN" if "/blobs/" in path else "MANIFEST_UNKNOWN"
        message = unknown.lower().replace("_", " ")
        return _json(404, {"errors": [{"code": unknown, "message": message}]})

    def _resolve(self, seen: Seen, name: str, revision: str, file: str) -> Answer:
        repo = self._repos.get(name)
        if refused := self._refused(seen, repo, content=True):
            return refused
        assert repo is not None
        if (found := repo.at(revision)) is None:
            return _hub_error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit, files = found
        if (content := files.get(file)) is None:
            return _hub_error(404, "EntryNotFound", "Entry not found", commit)
        if not _is_lfs(file):
            return Answer(200, {"ETag": f'"{_blob_id(content)}"', "X-Repo-Commit": commit}, content)
        headers = {
            "Location": self.cdn_url + quote(_lfs_path(name, content, file)) + "?X-Signature=abc",
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(content.size),
            "X-Linked-ETag": content.etag,
            "ETag": content.etag,
        }
        return Answer(302, headers)

    def _refused(self, seen: Seen, repo: Repo | None, *, content: bool) -> Answer | None:
        token = seen.authorization.removeprefix("Bearer ").strip()
        if token and token not in self.tokens:
            return _hub_error(401, "", "Invalid credentials in Authorization header")
        if repo is None or (repo.private and not token):
            return _hub_error(404 if token else 401, "RepoNotFound", "Repository not found")
        if content and repo.gated and (token, repo.name) not in self._granted:
            message = f"Access to model {repo.name} is restricted."
            return _hub_error(403 if token else 401, "GatedRepo", message)
        return None

    def _api(self, seen: Seen, path: str) -> Answer:
        if path == "whoami-v2":
            token = seen.authorization.removeprefix("Bearer ").strip()
            if token not in self.tokens:
                return _hub_error(401, "", "Invalid credentials in Authorization header")
            return _json(200, {"type": "user", "name": self.tokens[token], "orgs": []})
        if path == "models":
            return self._search(seen)
        match = re.fullmatch(
            r"models/([^/]+/[^/]+)(?:/(revision|tree|auth-check)(?:/([^/]+)(?:/(.+))?)?)?", path
        )
        if match is None:
            return _hub_error(404, "", "no such page")
        name, what, revision, folder = match.groups()
        repo = self._repos.get(name)
        if refused := self._refused(seen, repo, content=what == "auth-check"):
            return refused
        assert repo is not None
        if what == "auth-check":
            return _json(200, {})
        if (found := repo.at(unquote(revision or "main"))) is None:
            return _hub_error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit, files = found
        if what == "tree":
            recursive = seen.query.get("recursive", ["false"])[0].lower() == "true"
            return _json(200, list(_tree(files, unquote(folder or ""), recursive)))
        return _json(200, _model(repo, commit, files, blobs="blobs" in seen.query, siblings=True))

    def _search(self, seen: Seen) -> Answer:
        query = {key: values for key, values in seen.query.items() if key != "cursor"}
        words = query.get("search", [""])[0].lower().split()
        wanted = {item for value in query.get("filter", []) for item in value.split(",")}
        author = query.get("author", [""])[0]
        found = [
            repo
            for repo in self._repos.values()
            if not repo.private
            and all(word in repo.name.lower() for word in words)
            and wanted <= set(repo.tags)
            and (not author or repo.name.split("/")[0] == author)
        ]
        start = int(seen.query.get("cursor", ["0"])[0])
        size = min(int(query.get("limit", [str(self.page_size)])[0]), self.page_size)
        siblings = "full" in query or "siblings" in query.get("expand", [])
        page = [
            _model(repo, *repo.commits[-1], blobs=False, siblings=siblings)
            for repo in found[start : start + size]
        ]
        answer = _json(200, page)
        if start + size < len(found):
            again = "&".join(f"{k}={quote(v)}" for k, values in query.items() for v in values)
            place = f"{self.url}/api/models?{again}&cursor={start + size}"
            answer.headers["Link"] = f'<{place}>; rel="next"'
        return answer


@dataclass
class Answer:
    """What to send: a short body, or a Content of which the client may ask a range."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Content = b""


def _json(status: int, value: object) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _hub_error(status: int, code: str, message: str, commit: str = "") -> Answer:
    answer = _json(status, {"error": message})
    answer.headers["X-Error-Message"] = message
    if code:
        answer.headers["X-Error-Code"] = code
    if commit:
        answer.headers["X-Repo-Commit"] = commit
    return answer


def _is_lfs(file: str) -> bool:
    return file.lower().endswith(_LFS)


def _lfs_path(repo: str, content: Content, file: str) -> str:
    return f"/lfs/{repo}/{content.sha256}/{file}"


def _blob_id(content: Content) -> str:
    return hashlib.sha1(content.sha256.encode()).hexdigest()


def _model(
    repo: Repo, commit: str, files: dict[str, Content], *, blobs: bool, siblings: bool
) -> dict[str, Any]:
    value: dict[str, Any] = {
        "id": repo.name,
        "modelId": repo.name,
        "author": repo.name.split("/")[0],
        "sha": commit,
        "lastModified": "2025-01-02T03:04:05.000Z",
        "createdAt": "2025-01-01T00:00:00.000Z",
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 1000,
        "likes": 10,
        "tags": list(repo.tags),
        "cardData": {"license": repo.license},
        "usedStorage": sum(content.size for content in files.values()),
    }
    if siblings:
        value["siblings"] = [
            {"rfilename": file, **(_sizes(file, content) if blobs else {})}
            for file, content in sorted(files.items())
        ]
    return value


def _sizes(file: str, content: Content) -> dict[str, Any]:
    sizes: dict[str, Any] = {"size": content.size, "blobId": _blob_id(content)}
    if _is_lfs(file):
        sizes["lfs"] = {"sha256": content.sha256, "size": content.size, "pointerSize": 135}
    return sizes


def _tree(files: dict[str, Content], folder: str, recursive: bool) -> Iterator[dict[str, Any]]:
    prefix = f"{folder.strip('/')}/" if folder else ""
    folders = set()
    for file, content in sorted(files.items()):
        if not file.startswith(prefix):
            continue
        head, _, rest = file[len(prefix) :].partition("/")
        if rest and head not in folders:
            folders.add(head)
            oid = hashlib.sha1(head.encode()).hexdigest()
            yield {"type": "directory", "path": prefix + head, "oid": oid, "size": 0}
        if not rest or recursive:
            entry: dict[str, Any] = {"type": "file", "path": file, "oid": _blob_id(content)}
            entry["size"] = content.size
            if _is_lfs(file):
                entry["lfs"] = {"oid": content.sha256, "size": content.size, "pointerSize": 135}
            yield entry


class _Server(ThreadingHTTPServer):
    """One listener; knows its open connections, so that closing ends them all."""

    daemon_threads = False  # server_close joins the handlers
    request_queue_size = 64

    def __init__(self, hub: Hub, name: str, certificate: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, hub, name))
        self.url = f"http://127.0.0.1:{self.server_port}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def run(self) -> None:
        self.serve_forever(poll_interval=0.02)

    def stop(self) -> None:
        self.shutdown()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that went away: most tests make them do just that."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _queued(connection: socket.socket) -> int:
    """Return how many sent bytes the other side has not acknowledged; 0 where that is hidden."""
    if sys.platform != "linux":
        return 0
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, hub: Hub, name: str, *args: Any) -> None:
        self.hub = hub
        self.name = name
        super().__init__(*args)

    def setup(self) -> None:
        # Small, so that little counts as sent that has not arrived; below 48 KiB, loopback crawls.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        super().setup()

    def log_message(self, *_: Any) -> None:
        """Tests read ``hub.requests`` instead."""

    def do_GET(self) -> None:
        # urlsplit also takes the absolute form in which a proxy is asked.
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = parse_qs(parts.query, keep_blank_values=True)
        seen = Seen(self.name, self.command, parts.path, query, headers)
        self.hub.requests.append(seen)
        fault = self.hub.struck(seen, _ANSWER_FAULTS)
        if fault and fault.kind == "changed":
            assert fault.content is not None
            self.hub.change(parts.path, fault.content)
        if fault and fault.kind == "status":
            answer = Answer(fault.status, dict(fault.headers), b"as the test wished")
        elif fault and fault.kind == "redirect-loop":
            answer = Answer(302, {"Location": self.path})
        else:
            answer = self.hub.answer(seen)
        if isinstance(answer.body, Content):
            self._send_content(seen, answer, answer.body)
        else:
            self._head(seen, answer.status, answer.headers, len(answer.body))
            if self.command != "HEAD":
                self._send(seen, answer.body)

    do_HEAD = do_GET
    do_POST = do_GET

    def _head(self, seen: Seen, status: int, headers: Mapping[str, str], length: int) -> None:
        seen.status = status
        self.send_response(status, HTTPStatus(status).phrase)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, seen: Seen, data: bytes) -> None:
        view, queued = memoryview(data), 0
        try:
            while view:
                count = self.request.send(view)
                seen.sent += count
                view = view[count:]
                queued = _queued(self.request)
        except OSError:
            seen.sent -= queued  # it never left this machine's buffers
            raise

    def _send_content(self, seen: Seen, answer: Answer, content: Content) -> None:
        head = self.command == "HEAD"
        fault = None if head else self.hub.struck(seen, _BODY_FAULTS)
        kind = fault.kind if fault else ""
        whole = not head and self.hub.struck(seen, ("no-range",)) is not None
        headers = dict(answer.headers)
        first, last, status = 0, content.size - 1, 200
        if not whole:
            headers["Accept-Ranges"] = "bytes"
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", seen.range)
            if match and seen.headers.get("if-range", answer.headers["ETag"]) == headers["ETag"]:
                first, last = int(match[1]), min(int(match[2] or last), last)
                if first > last:
                    self._head(seen, 416, {"Content-Range": f"bytes */{content.size}"}, 0)
                    return
                headers["Content-Range"] = f"bytes {first}-{last}/{content.size}"
                status = 206
        self._head(seen, status, headers, last - first + 1)
        if head:
            return
        slow = self.hub.struck(seen, ("slow",))
        stop = first + fault.after if fault and kind in ("truncate", "stall") else last + 1
        flip = first + fault.after if fault and kind == "corrupt" else -1
        at = first
        while at < min(stop, last + 1) and not self.hub.closing.is_set():
            data = content.read(at, min(_BLOCK if slow else 4 * _BLOCK, stop - at, last + 1 - at))
            if at <= flip < at + len(data):
                data = data[: flip - at] + bytes([data[flip - at] ^ 0xFF]) + data[flip - at + 1 :]
            if slow:
                with self.hub.lock:
                    delay = slow.delay(len(data))
                self.hub.closing.wait(delay)
            self._send(seen, data)
            at += len(data)
        if fault and kind == "stall":
            fault.release.wait()
        if at <= last:
            self.close_connection = True

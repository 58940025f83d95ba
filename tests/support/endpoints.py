"""A small server with OpenAI's API on loopback that answers as a test says, well or badly."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_PATIENCE_SECONDS = 30.0  # for a hang, not a measure


def chunk(content: str | None = None, **more: Any) -> str:
    """An event with a piece of a reply; ``more`` are fields of its delta."""
    return event(choices=[{"index": 0, "delta": {"content": content, **more}}])


def end(reason: str = "stop", prompt_tokens: int = 7, completion_tokens: int = 3) -> str:
    """The events that end a reply."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    last = event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])
    return last + event(choices=[], usage=usage) + "data: [DONE]\n\n"


def event(**fields: Any) -> str:
    """An event with these fields."""
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n"


@dataclass
class Endpoint:
    """What the server does: ``replies`` are texts to stream, the last one for all that follow.

    ``status`` other than 200 refuses chats with ``refusal`` and ``headers``, and so does 400 a
    prompt of more characters than ``longest``. ``listing`` answers GET /models, None = 404. After
    its text, a stream waits for ``pause`` if there is one, and breaks off if ``cut``; ``left`` is
    set when a client goes away during the wait.
    """

    url: str = ""
    listing: Any = field(default_factory=lambda: {"data": [{"id": "big"}]})
    replies: list[str] = field(default_factory=lambda: [chunk("Hello") + chunk(" there") + end()])
    kind: str = "text/event-stream"
    status: int = 200
    refusal: Any = None
    longest: int = 10**9
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    pause: threading.Event | None = None
    left: threading.Event = field(default_factory=threading.Event)
    keys: list[str | None] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def served(**how: Any) -> Iterator[Endpoint]:
    """Answer until the block ends."""
    endpoint = Endpoint(**how)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            endpoint.keys.append(self.headers.get("Authorization"))
            found = self.path.endswith("/models") and endpoint.listing is not None
            self._whole(200 if found else 404, endpoint.listing)

        def do_POST(self) -> None:
            endpoint.keys.append(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers["Content-Length"]))
            endpoint.asked.append(json.loads(body))
            prompt = "".join(one["content"] for one in endpoint.asked[-1]["messages"])
            status = 400 if len(prompt) > endpoint.longest else endpoint.status
            if status != 200:
                self._whole(status, endpoint.refusal)
                return
            self.send_response(200)
            self.send_header("Content-Type", endpoint.kind)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            reply = endpoint.replies[min(len(endpoint.asked), len(endpoint.replies)) - 1]
            with suppress(OSError):
                for byte in _pieces(reply.encode()):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(byte), byte))
                if endpoint.pause is not None:
                    self._wait(endpoint.pause)
                if not endpoint.cut:
                    self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

        def _wait(self, pause: threading.Event) -> None:
            self.connection.settimeout(0.01)
            for _ in range(int(_PATIENCE_SECONDS * 100)):
                with suppress(TimeoutError):
                    if not self.connection.recv(1):
                        endpoint.left.set()
                        return
                if pause.is_set():
                    return

        def _whole(self, status: int, data: Any) -> None:
            body = data.encode() if isinstance(data, str) else json.dumps(data).encode()
            self.send_response(status)
            for name, value in endpoint.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _pieces(data: bytes, length: int = 7) -> list[bytes]:
    """Cut in the middle of characters and lines, as networks do."""
    return [data[start : start + length] for start in range(0, len(data), length)]

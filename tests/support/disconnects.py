"""Clients that leave at random moments, half of them while their prompt is being read."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from random import Random

from tests.support.servers import MODEL, Server

_AT_ONCE = 8


def storm(server: Server, random: Random, count: int) -> None:
    """Send ``count`` requests whose clients leave, several at a time."""
    seeds = [random.randrange(1 << 30) for _ in range(count)]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(lambda seed: _leave(server, Random(seed)), seeds))


def _leave(server: Server, random: Random) -> None:
    in_prefill = random.random() < 0.5
    words = " ".join(str(random.randrange(1000)) for _ in range(150 if in_prefill else 5))
    options = {"num_predict": 400, "seed": random.randrange(1 << 30)}
    body = {"model": MODEL, "prompt": words, "raw": True, "options": options}
    body["stream"] = random.random() < 0.7
    data = json.dumps(body).encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        cut = len(data) if random.random() < 0.9 else random.randrange(len(data))
        sock.sendall(head.encode() + data[:cut])
        if cut < len(data):
            return
        if in_prefill or not body["stream"]:
            sock.settimeout(random.random() * 0.2)
        else:
            sock.settimeout(20)
        try:
            for _ in range(random.randrange(1, 4)):
                sock.recv(4096)
        except TimeoutError:
            return

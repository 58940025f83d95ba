"""The server under load: clients that leave, read slowly or come at once, workers that die."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import pytest

from tests.support import disconnects, hostile, servers
from tests.support.engines import wait_until
from tests.support.servers import MODEL, Server

HI = [{"role": "user", "content": "Say hello."}]
ENDLESS = {"temperature": 0, "num_predict": 900, "stop": ["~~~"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    home = tmp_path_factory.mktemp("loaded") / "home"
    servers.install(home, smollm2)
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with servers.served(home) as running:
        yield running


def ask(server: Server, count: int = 3, **more: Any) -> dict[str, Any]:
    options = {"temperature": 0, "num_predict": count}
    request = {"model": MODEL, "messages": HI, "stream": False, "options": options, **more}
    answer = httpx2.post(f"{server.url}/api/chat", json=request, timeout=100)
    reply: dict[str, Any] = answer.json()
    assert answer.status_code == 200, reply
    return reply


def begin(server: Server, *, raw_prompt: str = "1, 2, 3,") -> socket.socket:
    """Send a request for a long reply and return its connection."""
    body = {"model": MODEL, "prompt": raw_prompt, "raw": True, "options": ENDLESS}
    data = json.dumps(body).encode()
    sock = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    sock.sendall(head.encode() + data)
    return sock


def under_way(server: Server) -> socket.socket:
    """Return the connection of the only long reply, once the model gives it."""
    ask(server)
    sock = begin(server)
    wait_until(lambda: server.replies_under_way == 1)
    return sock


def test_ten_first_requests_load_the_model_once(server: Server) -> None:
    with ThreadPoolExecutor(10) as threads:
        replies = list(threads.map(lambda _: ask(server), range(10)))
    assert sum(reply["load_duration"] > 0 for reply in replies) == 1
    assert len(server.runner.running()) == 1


def test_a_client_that_leaves_frees_its_slot(server: Server) -> None:
    for prompt in ("1, 2, 3,", " ".join(map(str, range(200)))):  # in decode, in prefill
        sock = begin(server, raw_prompt=prompt)
        wait_until(lambda: server.replies_under_way == 1)
        sock.close()
        wait_until(lambda: server.replies_under_way == 0)
    assert ask(server)["done"]


def test_clients_that_leave_at_random_leave_nothing_behind(server: Server) -> None:
    disconnects.storm(server, Random(1), 100)
    wait_until(lambda: server.replies_under_way == 0)
    assert ask(server)["done"]


def test_who_reads_slowly_holds_up_nobody(server: Server) -> None:
    ask(server)
    slow = [begin(server) for _ in range(3)]
    wait_until(lambda: server.replies_under_way == 3)
    assert ask(server)["done"]  # beside them
    for sock in slow:
        sock.close()
    wait_until(lambda: server.replies_under_way == 0)


def test_a_worker_that_is_killed_costs_its_replies_only(server: Server) -> None:
    ask(server)
    (running,) = server.runner.running()
    streams = [begin(server) for _ in range(2)]
    wait_until(lambda: server.replies_under_way == 2)
    os.kill(running.record.pid, signal.SIGKILL)
    for sock in streams:
        with sock, sock.makefile("rb") as file:
            text = file.read1().decode()
            while "error" not in text:
                more = file.read1().decode()
                assert more
                text += more
            assert "is gone" in text
    assert ask(server)["done"]
    (replaced,) = server.runner.running()
    assert replaced.record.pid != running.record.pid
    server.runner.registry.log(running.record.id).unlink()  # that of a crash stays


def test_the_queue_has_an_end(home: Path) -> None:
    env = {"OLLAMA_MAX_QUEUE": "1", "OLLAMA_NUM_PARALLEL": "3"}
    with (
        servers.served(home, "--parallel", "1", env=env) as server,
        ThreadPoolExecutor(2) as threads,
    ):
        held = []
        for count in (1, 2):  # one speaks, one is prepared
            held.append(begin(server))
            wait_until(lambda count=count: server.replies_under_way == count)
        request = {"model": MODEL, "prompt": "x", "options": {"num_predict": 1}}
        post = partial(httpx2.post, f"{server.url}/api/generate", json=request, timeout=100)
        waiting = {threads.submit(post) for _ in range(2)}
        refused, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        answer = refused.pop().result()
        for sock in held:
            sock.close()
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        assert "maximum pending requests exceeded" in answer.json()["error"]
        assert waiting.pop().result().status_code == 200


def test_an_end_lets_replies_finish(home: Path) -> None:
    with servers.served(home, "--grace", "60") as server, ThreadPoolExecutor(1) as threads:
        ask(server)
        going = threads.submit(ask, server, 60)
        wait_until(lambda: server.replies_under_way == 1)
        server.process.send_signal(signal.SIGTERM)
        assert going.result()["eval_count"] > 3
        assert server.process.wait(30) == -signal.SIGTERM


def test_an_end_does_not_wait_for_ever(home: Path) -> None:
    with servers.served(home, "--grace", "1") as server:
        sock = under_way(server)
        server.process.send_signal(signal.SIGINT)
        with sock, sock.makefile("rb") as file:
            assert b"the server was stopped" in file.read()
        assert server.process.wait(30) is not None
        wait_until(lambda: server.replies_under_way == 0)


def test_a_second_interrupt_ends_replies_at_once(home: Path) -> None:
    with servers.served(home, "--grace", "600") as server:
        sock = under_way(server)
        server.process.send_signal(signal.SIGINT)
        wait_until(lambda: "1 running have 600 s" in server.log.read_text())
        server.process.send_signal(signal.SIGINT)
        with sock, sock.makefile("rb") as file:
            assert b"the server was stopped" in file.read()
        assert server.process.wait(60) is not None
        wait_until(lambda: server.replies_under_way == 0)


def test_prompts_are_not_logged(server: Server) -> None:
    secret = "xyzzy-secret"
    httpx2.post(f"{server.url}/api/chat", json={"model": secret, "messages": []})
    ask(server, messages=[{"role": "user", "content": secret}])
    bad = {"model": MODEL, "messages": [{"role": "user", "content": secret}], "format": 7}
    httpx2.post(f"{server.url}/api/chat", json=bad)
    assert secret not in server.log.read_text()


def test_hostile_requests_are_answered_and_forgotten(server: Server) -> None:
    random = Random(2)
    ask(server)
    for _ in range(400):
        answer = hostile.send(server, random)
        assert answer.status != 500, answer.request
    assert ask(server)["done"]

"""The server's long counts: clients that leave, hostile requests, schemas."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import jsonschema
import psutil
import pytest

from tests.support import disconnects, hostile, schemas, servers
from tests.support.engines import wait_until
from tests.support.servers import MODEL, Server

pytestmark = [pytest.mark.accept, pytest.mark.timeout(3600)]

DISCONNECTS, HOSTILE, SCHEMAS = 1000, 5000, 200
_MEMORY_BYTES = 64 << 20  # more than at the start: allocators keep some


@pytest.fixture
def server(tmp_path: Path, smollm2: Path) -> Iterator[Server]:
    home = tmp_path / "home"
    servers.install(home, smollm2)
    with servers.served(home) as running:
        yield running


def greet(server: Server) -> None:
    request = {"model": MODEL, "prompt": "Hi", "stream": False, "options": {"num_predict": 2}}
    assert httpx2.post(f"{server.url}/api/generate", json=request, timeout=100).json()["done"]


def test_clients_that_leave_at_random_leave_nothing_behind(server: Server) -> None:
    disconnects.storm(server, random.Random(7), DISCONNECTS)
    wait_until(lambda: server.replies_under_way == 0)
    greet(server)


def test_hostile_requests_are_answered_and_forgotten(server: Server) -> None:
    greet(server)
    process, moments = psutil.Process(server.process.pid), random.Random(11)
    for _ in range(HOSTILE // 10):  # the allocator's own growth
        assert hostile.send(server, moments).status != 500
    before = process.memory_info().rss
    for _ in range(HOSTILE - HOSTILE // 10):
        answer = hostile.send(server, moments)
        assert answer.status != 500, answer.request
    body = b'{"model": "' + b"x" * (50 << 20) + b'"}'
    for _ in range(5):
        assert httpx2.post(f"{server.url}/api/chat", content=body).status_code == 413
    assert process.memory_info().rss - before < _MEMORY_BYTES
    greet(server)


def test_schemathesis_finds_no_failure(server: Server, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("st")
    command = [str(program), "run", f"{server.url}/openapi.json"]
    command += ["--checks", "not_a_server_error", "--max-examples", "50"]
    # The longest reply fills the context, while others do too.
    command += ["--request-timeout", "300"]
    command += ["--exclude-path", "/api/pull"]  # offline here, which is a 502
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-5000:]


def test_replies_keep_to_generated_schemas(server: Server) -> None:
    moments, ended = random.Random(3), 0
    for _ in range(SCHEMAS):
        schema = schemas.schema(moments)
        request = {"model": MODEL, "prompt": "Answer in JSON.", "format": schema, "stream": False}
        request["options"] = {"num_predict": 200, "seed": moments.randrange(1000)}
        answer = httpx2.post(f"{server.url}/api/generate", json=request, timeout=300)
        reply = answer.json()
        if answer.status_code == 400:
            assert "schema" in reply["error"], reply
        else:
            assert answer.status_code == 200, reply
            if reply["done_reason"] == "stop":
                ended += 1
                jsonschema.validate(json.loads(reply["response"]), schema)
    assert ended > SCHEMAS // 2

"""The server's long counts: clients that leave, hostile requests, schemas, foreign clients."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import venv
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
_JAVASCRIPT = ("ollama", "ai", "@ai-sdk/openai-compatible")


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
    command += ["--checks", "not_a_server_error", "--max-examples", "50", "--request-timeout", "60"]
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


def test_langchain_talks(server: Server, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    venv.create(tmp_path / "venv", with_pip=True)
    packages = ["langchain-ollama", "langchain-openai"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    program = f"""
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field
class City(BaseModel):
    name: str = Field(max_length=10)
chat = ChatOllama(model={MODEL!r}, base_url={server.url!r}, num_predict=30, temperature=0)
assert chat.invoke("Say hello").content
assert "".join(chunk.content for chunk in chat.stream("Say hello"))
assert chat.with_structured_output(City, method="json_schema").invoke("Name a city").name
assert OllamaEmbeddings(model={MODEL!r}, base_url={server.url!r}).embed_query("x")
chat = ChatOpenAI(model={MODEL!r}, base_url={server.url!r} + "/v1", api_key="x", max_tokens=30)
assert chat.invoke("Say hello").content
assert "".join(chunk.content for chunk in chat.stream("Say hello"))
assert chat.bind_tools([City], tool_choice="City").invoke("Name a city").tool_calls
"""
    subprocess.run([python, "-c", program], check=True)


@pytest.mark.skipif(not shutil.which("npm"), reason="needs Node.js")
def test_javascript_talks(server: Server, tmp_path: Path) -> None:
    subprocess.run(["npm", "install", "--silent", *_JAVASCRIPT], check=True, cwd=tmp_path)
    program = f"""
import {{ Ollama }} from 'ollama'
import {{ generateText, streamText }} from 'ai'
import {{ createOpenAICompatible }} from '@ai-sdk/openai-compatible'
const host = '{server.url}', model = '{MODEL}', messages = [{{ role: 'user', content: 'Hello' }}]
const ollama = new Ollama({{ host }})
let text = ''
for await (const part of await ollama.chat({{ model, messages, stream: true,
  options: {{ num_predict: 8 }} }})) text += part.message.content
if (!text || !(await ollama.list()).models.length) throw new Error('ollama')
const provider = createOpenAICompatible({{ name: 'local', baseURL: host + '/v1' }})
const one = await generateText({{ model: provider(model), prompt: 'Hello', maxOutputTokens: 8 }})
if (!one.text) throw new Error('generateText')
text = ''
for await (const part of streamText({{ model: provider(model), prompt: 'Hello',
  maxOutputTokens: 8 }}).textStream) text += part
if (!text) throw new Error('streamText')
"""
    (tmp_path / "talk.mjs").write_text(program)
    subprocess.run(["node", "talk.mjs"], check=True, cwd=tmp_path)

"""Clients that are not installed here, unmodified, each in a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.engines import wait_until
from tests.support.servers import MODEL, Server

pytestmark = [pytest.mark.accept, pytest.mark.timeout(3600)]

_JAVASCRIPT = ("ollama", "openai", "ai", "zod", "@ai-sdk/openai-compatible", "@ai-sdk/openai")

_LANGCHAIN = """
import sys
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field
url, model = sys.argv[1:]
class City(BaseModel):
    '''A city.'''
    name: str = Field(min_length=1, max_length=10)
called = {"name": "City", "args": {"name": "Rome"}, "id": "1"}
history = [HumanMessage("Name a city"), AIMessage("", tool_calls=[called])]
history.append(ToolMessage("noted", tool_call_id="1"))
chat = ChatOllama(model=model, base_url=url, num_predict=30, temperature=0,
                  validate_model_on_init=True)
assert chat.invoke("Say hello").usage_metadata["output_tokens"] > 0
assert "".join(chunk.content for chunk in chat.stream("Say hello"))
assert chat.with_structured_output(City, method="json_schema").invoke("Name a city").name
assert chat.bind_tools([City]).invoke(history) is not None
assert OllamaLLM(model=model, base_url=url, num_predict=8).invoke("Hi")
assert len(OllamaEmbeddings(model=model, base_url=url).embed_documents(["x", "y"])) == 2
keys = {"model": model, "base_url": url + "/v1", "api_key": "x", "max_retries": 0}
chat = ChatOpenAI(**keys, max_tokens=60, temperature=0)
assert chat.invoke("Say hello").content
assert "".join(chunk.content for chunk in chat.stream("Say hello"))
assert chat.bind_tools([City], tool_choice="City").invoke("Name a city").tool_calls
assert chat.bind_tools([City], tool_choice="any").invoke("Name a city").tool_calls
assert chat.with_structured_output(City).invoke("Name a city").name
assert chat.bind_tools([City]).invoke(history) is not None
chat = ChatOpenAI(**keys, max_tokens=60, temperature=0, use_responses_api=True)
assert chat.invoke("Say hello").text
assert "".join(chunk.text for chunk in chat.stream("Say hello"))
assert chat.bind_tools([City], tool_choice="City").invoke("Name a city").tool_calls
assert chat.bind_tools([City]).invoke(history) is not None
assert OpenAI(**keys, max_tokens=8).invoke("Hi")
embeddings = OpenAIEmbeddings(**keys, check_embedding_ctx_length=False)
assert len(embeddings.embed_documents(["x", "y"])) == 2
"""

_NODE = """
import assert from 'node:assert'
import { Ollama } from 'ollama'
import OpenAI from 'openai'
import { embedMany, generateText, Output, streamText, tool } from 'ai'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { z } from 'zod'
const [host, model] = process.argv.slice(2)
const messages = [{ role: 'user', content: 'Say hello' }]
const options = { num_predict: 8 }
async function joined(parts, text) {
  let found = ''
  for await (const part of parts) found += text(part) ?? ''
  return found
}

const ollama = new Ollama({ host })
assert((await ollama.chat({ model, messages, options })).message.content)
let parts = await ollama.chat({ model, messages, options, stream: true })
assert(await joined(parts, part => part.message.content))
parts = await ollama.generate({ model, prompt: 'Hi', options, stream: true })
assert(await joined(parts, part => part.response))
assert.equal((await ollama.embed({ model, input: ['a', 'b'] })).embeddings.length, 2)
assert((await ollama.show({ model })).capabilities.includes('completion'))
assert.equal((await ollama.ps()).models.length, 1)
await ollama.create({ model: 'made', from: model, system: 'Be brief.' })
await ollama.copy({ source: 'made', destination: 'other' })
await ollama.delete({ model: 'made' })
await ollama.delete({ model: 'other' })
assert.equal((await ollama.list()).models.length, 1)
const endless = await ollama.chat({ model, messages, options: { num_predict: 500 }, stream: true })
await assert.rejects(async () => { for await (const part of endless) endless.abort() })

const gpt = new OpenAI({ baseURL: host + '/v1', apiKey: 'x', maxRetries: 0 })
parts = await gpt.chat.completions.create({ model, messages, max_tokens: 8, stream: true })
assert(await joined(parts, part => part.choices[0]?.delta?.content))
parts = await gpt.responses.create({ model, input: 'Say hello', stream: true })
assert(await joined(parts, part => part.delta))
assert((await gpt.embeddings.create({ model, input: 'a' })).data[0].embedding.length)

const person = z.object({ name: z.string().max(10), age: z.number().int().min(0).max(99) })
const weather = tool({ description: 'Weather of a city',
  inputSchema: z.object({ city: z.enum(['Paris', 'Rome']) }), execute: async () => 'sunny' })
const compatible = createOpenAICompatible({ name: 'local', baseURL: host + '/v1',
  supportsStructuredOutputs: true })
const openai = createOpenAI({ baseURL: host + '/v1', apiKey: 'x' })
for (const chosen of [compatible(model), openai.chat(model), openai(model)]) {
  const short = { model: chosen, prompt: 'Hello', maxOutputTokens: 8, maxRetries: 0,
    temperature: 0 }
  assert((await generateText(short)).text)
  assert(await joined(streamText(short).textStream, part => part))
  const long = { ...short, maxOutputTokens: 60 }
  const { output } = await generateText({ ...long, output: Output.object({ schema: person }) })
  assert(output.age >= 0)
  const tools = { ...long, tools: { weather }, toolChoice: 'required' }
  assert((await generateText(tools)).toolCalls[0].input.city)
  assert.equal(await streamText(tools).finishReason, 'tool-calls')
}
const vectors = await embedMany({ model: compatible.textEmbeddingModel(model), values: ['a', 'b'] })
assert.equal(vectors.embeddings.length, 2)
"""

# Presses the keys that a person would: a new chat, its model from the list, a message.
_OTERM = """
import asyncio
from textual.widgets import Button, Markdown, OptionList
from oterm.app.oterm import app
async def until(pilot, found):
    for _ in range(600):
        await pilot.pause(0.1)
        if found():
            return
    raise SystemExit("oterm did not come so far")
async def main():
    async with app.run_test(size=(120, 50)) as pilot:
        await pilot.press("ctrl+n")
        models = lambda: app.screen.query("#model-select-options")
        await until(pilot, lambda: models() and models().first(OptionList).option_count)
        models().first().focus()
        await pilot.press("down", "enter")
        save = lambda: app.screen.query("#save-btn").first(Button)
        await until(pilot, lambda: not save().disabled)
        save().press()
        await until(pilot, lambda: app.screen.query("ChatContainer"))
        await pilot.press(*"hello", "enter")
        replies = lambda: app.screen.query(".response").results(Markdown)
        await until(pilot, lambda: any(reply._markdown for reply in replies()))
        print("oterm holds a chat")
        app.exit()
asyncio.run(main())
"""


def install(folder: Path, *packages: str) -> Path:
    """Install packages into an environment of their own; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def test_langchain_talks(server: Server, tmp_path: Path) -> None:
    python = install(tmp_path / "venv", "langchain-ollama", "langchain-openai")
    subprocess.run([python, "-c", _LANGCHAIN, server.url, MODEL], check=True, timeout=600)


@pytest.mark.skipif(not shutil.which("npm"), reason="needs Node.js with npm")
def test_javascript_talks(server: Server, tmp_path: Path) -> None:
    npm = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
    subprocess.run([*npm, "--prefix", tmp_path, *_JAVASCRIPT], check=True, cwd=tmp_path)
    (tmp_path / "talk.mjs").write_text(_NODE)
    node = ["node", "talk.mjs", server.url, MODEL]
    subprocess.run(node, check=True, cwd=tmp_path, timeout=600)


def test_oterm_holds_a_chat(server: Server, tmp_path: Path) -> None:
    python = install(tmp_path / "venv", "oterm")
    data = tmp_path / "data"
    data.mkdir()
    (data / "config.json").write_text('{"splash-screen": false}')
    known = {"OLLAMA_URL": server.url, "OTERM_DATA_DIR": str(data), "HOME": str(tmp_path)}
    command = [python, "-c", _OTERM]
    subprocess.run(command, check=True, env=os.environ | known, cwd=tmp_path, timeout=600)


# Some 7 GB and ten minutes: it is tested where somebody has installed it.
_WEBUI = os.environ.get("OPEN_WEBUI") or shutil.which("open-webui")
_WEBUI_SECONDS = 300.0  # it imports torch


@pytest.fixture
def webui(server: Server, tmp_path: Path) -> Iterator[httpx2.Client]:
    """A client that is signed in at an Open WebUI of the server's models."""
    assert _WEBUI
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {
        **{"DATA_DIR": str(tmp_path), "HOME": str(tmp_path), "WEBUI_AUTH": "False"},
        **{"HF_HUB_OFFLINE": "1", "OFFLINE_MODE": "True", "WEBUI_SECRET_KEY": "x"},
        **{"OLLAMA_BASE_URL": server.url, "RAG_EMBEDDING_ENGINE": "ollama"},
        **{"OPENAI_API_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "x"},
    }
    command = [_WEBUI, "serve", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx2.get(f"{url}/health").status_code == 200
        except httpx2.TransportError:
            return False

    log = tmp_path / "webui.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, env=os.environ | known, cwd=tmp_path, stdout=output, stderr=output
        ) as process,
    ):
        try:
            wait_until(answers, patience_seconds=_WEBUI_SECONDS)
            with httpx2.Client(base_url=url, timeout=300) as http:
                asked = {"email": "", "password": ""}
                user = http.post("/api/v1/auths/signin", json=asked).json()
                http.headers["Authorization"] = f"Bearer {user['token']}"
                yield http
        finally:
            process.terminate()


@pytest.mark.skipif(not _WEBUI, reason="needs open-webui on PATH, or its path in OPEN_WEBUI")
def test_open_webui_holds_a_chat(webui: httpx2.Client) -> None:
    name = f"{MODEL}:latest"
    assert [model["id"] for model in webui.get("/api/models").json()["data"]] == [name]
    assert [one["model"] for one in webui.get("/ollama/api/tags").json()["models"]] == [name]
    assert [one["id"] for one in webui.get("/openai/models").json()["data"]] == [name]
    asked = {"model": name, "messages": [{"role": "user", "content": "Say hello"}]}
    short = {**asked, "stream": False, "params": {"max_tokens": 8}}
    whole = webui.post("/api/chat/completions", json=short).json()
    said = whole["choices"][0]["message"]
    assert said["content"]
    later = [*asked["messages"], said, {"role": "user", "content": "And now goodbye"}]
    streamed = webui.post(
        "/api/chat/completions", json={**short, "messages": later, "stream": True}
    )
    pieces = [line for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert len(pieces) > 2
    ollama = webui.post("/ollama/api/chat", json={**asked, "options": {"num_predict": 5}})
    assert ollama.text.rstrip().splitlines()[-1].count('"done":true') == 1
    v1 = webui.post("/openai/chat/completions", json={**asked, "max_tokens": 5, "stream": False})
    assert v1.json()["choices"][0]["message"]["content"]

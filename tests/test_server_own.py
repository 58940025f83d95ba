"""What no other API has: tokens, plans, the document."""

from __future__ import annotations

import httpx2

from tests.support.servers import MODEL, Server


def test_tokens_plans_and_the_document(server: Server) -> None:
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        tokens = http.post("/api/tokenize", json={"model": MODEL, "text": "Hello there"}).json()
        assert len(tokens["tokens"]) == 2
        text = http.post("/api/detokenize", json={"model": MODEL, "tokens": tokens["tokens"]})
        assert text.json()["text"] == "Hello there"
        found = http.post("/api/plan", json={"model": MODEL, "num_ctx": 512}).json()
        assert found["context_length"] == 512
        assert found["devices"]
        assert found["parallel"] == 4
        (loaded,) = http.get("/api/ps").json()["models"]
        assert loaded["parallel"] == 4
        assert "4 replies at once" in loaded["explanation"]
        assert "4 replies at once" in server.log.read_text()
        assert http.get("/health").json() == {"status": "ok"}
        paths = http.get("/openapi.json").json()["paths"]
        assert {"/api/chat", "/v1/chat/completions", "/v1/messages"} <= set(paths)


def test_numbers_of_any_size_are_answered(server: Server) -> None:
    huge = 2**64
    function = {"name": "f", "parameters": {"type": "object", "maxProperties": huge}}
    requests = {
        "/api/detokenize": {"tokens": [huge]},
        "/api/generate": {"prompt": "x", "context": [huge]},
        "/api/chat": {
            "messages": [{"role": "user", "content": "x"}],
            "tools": [{"type": "function", "function": function}],
        },
        "/v1/embeddings": {"input": [huge]},
    }
    for path, request in requests.items():
        answer = httpx2.post(server.url + path, json={"model": MODEL, **request}, timeout=60)
        assert answer.status_code == 400, path
        assert "64 bits" in answer.text

"""``localllama bench`` and replies that follow a schema's file, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import cli


@pytest.fixture
def model(home: Path, smollm2: Path) -> str:
    result = cli.run("pull", str(smollm2), "--as", "smol")
    assert result.returncode == 0, result.stderr
    return "smol"


def test_bench_measures_a_model(model: str) -> None:
    sizes = ("--prompt-tokens", "48", "--tokens", "8", "--rounds", "1")
    figures = cli.data("bench", model, *sizes, "--ctx", "256", "--threads", "1")
    for name in ("prefill_tokens_per_second", "decode_tokens_per_second"):
        assert figures[name] > 0
    assert figures["time_to_first_token_seconds"] > 0
    assert figures["load_seconds"] > 0
    assert figures["peak_memory_bytes"] > 98_000_000  # the weights at least
    assert [held["device"] for held in figures["devices"]] == ["CPU"]
    assert figures["devices"][0]["weights_bytes"] > 96_000_000
    assert (figures["prompt_tokens"], figures["context_length"]) == (48, 256)
    # As people read it, and a context that cannot hold the prompt.
    result = cli.run("bench", model, *sizes, "--ctx", "256", "--threads", "1")
    assert "prompt evaluation (48)" in result.stdout
    assert cli.run("bench", model, "--ctx", "64").returncode == 1
    assert cli.run("bench", "nothing-of-that-name").returncode == 3


def test_a_reply_follows_a_schema_in_a_file(model: str, tmp_path: Path) -> None:
    schema = tmp_path / "answer.json"
    schema.write_text('{"properties": {"sum": {"enum": [3, 4]}}, "required": ["sum"]}')
    ask = ("run", model, "2 + 2?", "--temperature", "0", "--threads", "1")
    answer = cli.data(*ask, "--format", str(schema))
    assert json.loads(answer["text"])["sum"] in (3, 4)
    schema.write_text('{"not": {}}')
    refused = cli.run(*ask, "--format", str(schema))
    assert (refused.returncode, "'not' at #" in refused.stderr) == (2, True)
    missing = cli.run(*ask, "--format", str(tmp_path / "none.json"))
    assert (missing.returncode, "cannot read the schema" in missing.stderr) == (2, True)

"""From a name to an installed model, through real servers, real clients and real processes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localllama import paths
from localllama.names import parse
from localllama.store import Store
from tests.support import cli, kills, models
from tests.support.gguf_maker import write_tiny_llama
from tests.support.hub import Generated, Hub

REPO = "owner/tiny-GGUF"
FILE = "tiny-Q8_0.gguf"
NAME = f"hf.co/{REPO}:Q8_0"
OLLAMA = "ollama.com/tiny:1b"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def env(hub: Hub, home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "LOCALLLAMA_OLLAMA_REGISTRY": hub.url,
        "LOCALLLAMA_TIMEOUT": "1",
        "LOCALLLAMA_RETRIES": "2",
        "NO_PROXY": "*",
    }


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / FILE)[0]


class Huge(Generated):
    """Larger than any disk, and nobody hashes it."""

    sha256 = "0" * 64


def listed(env: dict[str, str]) -> list[str]:
    return [model.name for model in Store(paths.locate(env["LOCALLLAMA_HOME"])).models()]


def test_a_model_from_the_hub_is_verified_and_listed(
    hub: Hub, env: dict[str, str], tiny: Path
) -> None:
    commit = hub.add_repo(REPO, {FILE: tiny}, license="mit")
    result = cli.run("pull", NAME, env=env)
    assert result.returncode == 0, result.stderr
    assert "sha256 verified" in result.stderr
    shown = cli.data("show", NAME, env=env)
    assert shown["revision"] == commit
    assert shown["source"] == f"hf.co/{REPO}"
    assert shown["size_bytes"] == tiny.stat().st_size
    assert shown["licence"]["name"] == "mit"
    before = hub.bytes_sent()
    assert cli.run("pull", NAME, env=env).returncode == 0
    assert hub.bytes_sent() - before < tiny.stat().st_size / 10


def test_events_for_programs(hub: Hub, env: dict[str, str], tiny: Path) -> None:
    hub.add_repo(REPO, {FILE: tiny})
    result = cli.run("pull", NAME, "--json", env=env)
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert events[-1]["event"] == "done"
    assert events[-1]["model"]["name"] == NAME
    done = [event["done_bytes"] for event in events if event.get("phase") == "download"]
    assert done == sorted(done)
    assert done[-1] == tiny.stat().st_size


def test_split_models_are_one_model(hub: Hub, env: dict[str, str], tmp_path: Path) -> None:
    parts = write_tiny_llama(tmp_path / "big-Q8_0.gguf", tensors_per_part=8)
    assert len(parts) > 1
    hub.add_repo(REPO, {part.name: part for part in parts})
    assert cli.run("pull", NAME, env=env).returncode == 0
    assert listed(env) == [NAME]
    links = [Path(path) for path in cli.data("path", NAME, env=env)["paths"]]
    assert [link.name for link in links] == [part.name for part in parts]
    assert [link.read_bytes() for link in links] == [part.read_bytes() for part in parts]


def test_ollama_layers_are_all_used(hub: Hub, env: dict[str, str], tiny: Path) -> None:
    layers = {
        "model": tiny,
        "template": b"{{ if .System }}<|im_start|>system {{ .System }}<|im_end|>{{ end }}",
        "system": b"You are terse.",
        "params": json.dumps({"temperature": 0.25, "stop": ["<|im_end|>"]}).encode(),
        "license": b"Do as you like.",
    }
    hub.add_ollama("library/tiny", "1b", layers)
    result = cli.run("pull", OLLAMA, env=env)
    assert result.returncode == 0, result.stderr
    assert cli.run("show", OLLAMA, "--system", env=env).stdout == "You are terse.\n"
    assert cli.run("show", OLLAMA, "--license", env=env).stdout == "Do as you like.\n"
    parameters = cli.run("show", OLLAMA, "--parameters", env=env).stdout
    assert ["temperature", "0.25", "model"] in [line.split() for line in parameters.splitlines()]
    assert "im_start" in cli.run("show", OLLAMA, "--template", env=env).stdout


@pytest.mark.parametrize("name", [NAME, OLLAMA])
def test_a_killed_pull_goes_on_where_it_was(
    hub: Hub, env: dict[str, str], tmp_path: Path, name: str
) -> None:
    large = kills.large_model(tmp_path, 20_000_000)
    hub.add_repo(REPO, {FILE: large})
    hub.add_ollama("library/tiny", "1b", {"model": large})
    hub.fault("", "slow", times=None, rate=20_000_000)
    size = large.stat().st_size
    sent = kills.pull_with_kills(hub, name, env, kills=2, size_bytes=size, seed=1)
    assert sent < 1.2 * size
    assert cli.data("verify", env=env)["problems"] == []
    assert listed(env) == [name]


def test_two_pulls_at_once_download_once(hub: Hub, env: dict[str, str], tmp_path: Path) -> None:
    large = kills.large_model(tmp_path, 8_000_000)
    hub.add_repo(REPO, {FILE: large})
    hub.fault("", "slow", times=None, rate=8_000_000)
    command = [*cli.COMMAND, "pull", NAME]
    both = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    talk = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], talk
    assert hub.bytes_sent() < 1.05 * large.stat().st_size
    assert listed(env) == [NAME]


def test_two_pulls_at_once_of_a_model_in_several_files(
    hub: Hub, env: dict[str, str], tmp_path: Path
) -> None:
    large = kills.large_model(tmp_path, 4_000_000)
    hub.add_ollama("library/tiny", "1b", {"model": large, "system": b"x", "license": b"y"})
    hub.fault("", "slow", times=None, rate=8_000_000)
    both = [subprocess.Popen([*cli.COMMAND, "pull", OLLAMA], env=env) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert hub.bytes_sent() < 1.05 * large.stat().st_size
    assert listed(env) == [OLLAMA]


def test_update_keeps_what_the_user_saved(
    hub: Hub, env: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    hub.add_repo(REPO, {FILE: tiny})
    assert cli.run("pull", NAME, env=env).returncode == 0
    store = Store(paths.locate(env["LOCALLLAMA_HOME"]))
    own = replace(store.models()[0], name="mine:latest", system="Be kind.", saved=True)
    before = store.save(own)
    hub.update_repo(REPO, {FILE: write_tiny_llama(tmp_path / "newer.gguf", seed=7)[0]})
    assert cli.run("update", "mine", env=env).returncode == 0
    after = store.get(parse("mine:latest"))
    assert after.system == "Be kind."
    assert after.files != before.files


def test_a_pull_mends_a_damaged_blob(hub: Hub, env: dict[str, str], tiny: Path) -> None:
    hub.add_repo(REPO, {FILE: tiny})
    assert cli.run("pull", NAME, env=env).returncode == 0
    store = Store(paths.locate(env["LOCALLLAMA_HOME"]))
    (blob,) = store.weights(store.models()[0])
    blob.write_bytes(b"GGUF" + bytes(tiny.stat().st_size - 4))
    assert cli.run("verify", env=env).returncode == 5
    assert cli.run("pull", NAME, env=env).returncode == 0
    assert blob.read_bytes() == tiny.read_bytes()


FAULTS = [
    ("status", {"status": 401}, 4, "login"),
    ("status", {"status": 403}, 4, ""),
    ("status", {"status": 404}, 3, ""),
    ("status", {"status": 429, "headers": {"Retry-After": "0"}}, 4, ""),
    ("status", {"status": 500}, 4, ""),
    ("corrupt", {"after": 100}, 5, "sha256"),
    ("truncate", {"after": 0}, 4, ""),
    ("stall", {"after": 0}, 4, ""),
    ("redirect-loop", {}, 4, ""),
]


@pytest.mark.parametrize("name", [NAME, OLLAMA])
@pytest.mark.parametrize(("kind", "how", "code", "word"), FAULTS)
def test_each_failure_has_its_message_and_exit_code_and_lists_nothing(
    hub: Hub,
    env: dict[str, str],
    tiny: Path,
    name: str,
    kind: str,
    how: dict[str, object],
    code: int,
    word: str,
) -> None:
    hub.add_repo(REPO, {FILE: tiny})
    hub.add_ollama("library/tiny", "1b", {"model": tiny})
    where = "resolve" if name == NAME else "blobs"
    if kind in ("corrupt", "truncate", "stall"):
        where = ""
    hub.fault(where, kind, times=None, **how)
    result = cli.run("pull", name, env=env)
    assert result.returncode == code, result.stderr
    assert result.stderr.count("Error:") == 1
    assert word in result.stderr
    assert "Traceback" not in result.stderr
    assert listed(env) == []


def test_gated_and_missing_repositories_are_told_apart(
    hub: Hub, env: dict[str, str], tiny: Path
) -> None:
    hub.add_repo("owner/gated", {FILE: tiny}, gated=True)
    result = cli.run("pull", "hf.co/owner/gated:Q8_0", env={**env, "HF_TOKEN": "hf_valid"})
    assert result.returncode == 4
    assert "owner/gated" in result.stderr
    assert "access" in result.stderr
    missing = cli.run("pull", "hf.co/owner/nothing:Q8_0", env=env)
    assert missing.returncode == 3
    hub.grant("hf_valid", "owner/gated")
    granted = cli.run("pull", "hf.co/owner/gated:Q8_0", env={**env, "HF_TOKEN": "hf_valid"})
    assert granted.returncode == 0, granted.stderr
    assert not any(seen.authorization for seen in hub.requests if seen.host == "cdn")


def test_a_file_that_is_no_model_is_refused_and_leaves_nothing(
    hub: Hub, env: dict[str, str], tiny: Path, home: Path
) -> None:
    hub.add_repo(REPO, {FILE: tiny.read_bytes()[:-1000]})
    result = cli.run("pull", NAME, env=env)
    assert result.returncode == 5, result.stderr
    assert "cut" in result.stderr
    assert listed(env) == []
    assert cli.data("prune", "--partials", env=env)["size_bytes"] == 0


def test_a_url_without_a_digest_is_checked_by_structure_and_says_so(
    hub: Hub, env: dict[str, str], tiny: Path
) -> None:
    url = hub.add_file("models/tiny.gguf", tiny)
    result = cli.run("pull", url, env=env)
    assert result.returncode == 0, result.stderr
    assert "structure verified" in result.stderr
    assert "structure only" in cli.run("show", url, env=env).stdout
    before = hub.bytes_sent()
    assert cli.run("pull", url, env=env).returncode == 0
    assert hub.bytes_sent() - before < 1000  # the same ETag: the same file


def test_outdated_and_update_follow_the_source(
    hub: Hub, env: dict[str, str], tiny: Path, tmp_path: Path
) -> None:
    hub.add_repo(REPO, {FILE: tiny})
    assert cli.run("pull", NAME, env=env).returncode == 0
    assert cli.data("outdated", env=env)["models"][0]["status"] == "current"
    newer = write_tiny_llama(tmp_path / "newer.gguf", seed=7)[0]
    hub.update_repo(REPO, {FILE: newer})
    assert cli.data("outdated", env=env)["models"][0]["status"] == "outdated"
    digest = cli.data("list", env=env)["models"][0]["digest"]
    assert cli.run("update", "--all", env=env).returncode == 0
    assert cli.data("list", env=env)["models"][0]["digest"] != digest
    assert cli.data("outdated", env=env)["models"][0]["status"] == "current"


def test_offline_refuses_all_network(hub: Hub, env: dict[str, str], tiny: Path) -> None:
    hub.add_repo(REPO, {FILE: tiny})
    for name in (NAME, OLLAMA, "smollm2:135m", "https://example.com/x.gguf"):
        result = cli.run("pull", name, "--offline", env=env)
        assert result.returncode == 4, (name, result.stderr)
        assert "offline" in result.stderr
    assert hub.requests == []


def test_a_file_of_this_machine_is_taken_in_and_stays_where_it_is(
    env: dict[str, str], tiny: Path
) -> None:
    before = tiny.read_bytes()
    assert cli.run("pull", str(tiny), "--as", "mine", env=env).returncode == 0
    assert listed(env) == ["mine:latest"]
    assert tiny.read_bytes() == before
    assert cli.run("rm", "mine", env=env).returncode == 0
    assert tiny.read_bytes() == before


def test_a_wheel_through_the_users_pip_settings(env: dict[str, str]) -> None:
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(models.wheelhouse())}
    result = cli.run("pull", "smollm2:135m", env={**env, **pip})
    assert result.returncode == 0, result.stderr
    shown = cli.data("show", "smollm2", env=env)
    assert shown["files"][0]["sha256"] == models.SHA256
    assert shown["quantization"] == "Q4_1"
    for other in ("smollm2:135m-q4_1", "SmolLM2:135M-Instruct", "smollm2:latest"):
        assert cli.data("show", other, env=env)["name"] == "smollm2:135m"


def test_a_model_that_cannot_fit_is_refused_before_anything_is_fetched(
    hub: Hub, env: dict[str, str]
) -> None:
    hub.add_repo(REPO, {FILE: Huge(10**15)})
    result = cli.run("pull", NAME, env=env)
    assert result.returncode == 6, result.stderr
    assert "disk" in result.stderr
    assert hub.bytes_sent() < 10_000
    assert listed(env) == []

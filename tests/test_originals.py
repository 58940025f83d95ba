"""Pulls of original weights: converted while they arrive, through real servers and processes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localllama import catalog, gguf_file, paths, pull
from localllama.config import Network
from localllama.convert import opening, types, writer
from localllama.convert.layout import Recipe, lay_out
from localllama.errors import (
    AccessDenied,
    BadFile,
    ChecksumMismatch,
    DiskFull,
    Gated,
    InvalidParameter,
    NotEnoughDisk,
    RemoteNotFound,
    UnsupportedFile,
    UsageProblem,
)
from localllama.names import parse
from localllama.progress import finish
from localllama.pull import Offer
from localllama.store import Installed, Store
from tests.support import cli, kills, origins, reference
from tests.support.checkpoints import write_checkpoint, write_json
from tests.support.hub import Hub
from tests.support.torch_files import write_torch

REPO = "owner/small-hf"
NAME = f"hf.co/{REPO}:Q4_K_M"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture
def env(hub: Hub, home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "LOCALLLAMA_TIMEOUT": "2",
        "LOCALLLAMA_RETRIES": "2",
        "NO_PROXY": "*",
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return origins.write_hugging_face(tmp_path_factory.mktemp("small") / "small-hf")


class Puller:
    """Pulls in this process, where every step can be looked at."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.network = Network(hf_endpoint=hub.url, timeout_seconds=2, retries=2)
        self.store = Store(paths.locate(home))
        self.partials = self.store.paths.partials

    def look(self, name: str = NAME, **how: str | bool) -> Offer:
        return pull.look(
            parse(name), known=catalog.load(), store=self.store, network=self.network, **how
        )

    def pull(self, offer: Offer) -> Installed:
        return finish(pull.pull(offer, store=self.store, network=self.network))


@pytest.fixture
def puller(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> Puller:
    monkeypatch.setenv("NO_PROXY", "*")
    return Puller(hub, home)


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    return reference.tensors(path)


def stored(name: str = NAME) -> Installed:
    """What the store has under this name, after a command in another process."""
    return Store(paths.locate()).get(parse(name))


def blob(name: str) -> Path:
    (path,) = Store(paths.locate()).weights(stored(name))
    return path


def converted(folder: Path, out: Path, quant: str = "Q4_K_M") -> Path:
    model, origin = opening.open_path(folder)
    finish(writer.write(lay_out(model, Recipe(types.parse(quant)), origin), out, threads=1))
    return out


def test_a_repository_of_shards(
    hub: Hub, env: dict[str, str], checkpoint: Path, tmp_path: Path
) -> None:
    commit = origins.publish(hub, REPO, checkpoint)
    result = cli.run("pull", f"hf.co/{REPO}", env=env)
    assert result.returncode == 0, result.stderr
    assert "they become Q4_K_M" in result.stderr
    facts = cli.data("show", f"hf.co/{REPO}", env=env)
    assert facts["quantization"] == "Q4_K_M" and facts["revision"] == commit
    assert facts["conversion"]["recipe"] == "Q4_K_M"
    assert len(facts["conversion"]["inputs"]) == 8
    assert "converted" in cli.run("show", f"hf.co/{REPO}", env=env).stdout
    assert cli.run("show", f"hf.co/{REPO}", "--license", env=env).stdout.startswith(
        "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta"
    )
    path = blob(f"hf.co/{REPO}")
    assert tensors(path) == tensors(converted(checkpoint, tmp_path / "same.gguf"))
    keys = gguf_file.read_info(path).metadata
    assert keys["localllama.source.repository"] == f"hf.co/{REPO}"
    assert keys["localllama.source.revision"] == commit
    # Of the weights, nothing was sent twice but the headers; nothing of them is left.
    weights = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    assert hub.bytes_sent(".safetensors") < 1.02 * weights
    assert list(Store(paths.locate()).paths.partials.iterdir()) == []


def test_two_shards_at_most_take_disk(hub: Hub, puller: Puller, checkpoint: Path) -> None:
    origins.publish(hub, REPO, checkpoint)
    hub.fault(".safetensors", "slow", times=None, rate=4_000_000)
    offer = puller.look()
    assert offer.work is not None
    shards = sorted(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert offer.missing_bytes == offer.work.result_bytes + sum(shards[-2:])
    most, events = 0, []
    for progress in pull.pull(offer, store=puller.store, network=puller.network):
        events.append(progress)
        here = [path for path in puller.partials.iterdir() if path.suffix != ".lock"]
        keys = {path.stem for path in here if path.suffix in (".part", ".done")}
        coming = keys - {offer.work.key}
        whole = [path for path in here if path.suffix == ".safetensors"]
        assert len(whole) + len(coming) <= 2, here
        used = sum(path.stat().st_blocks * 512 for path in here)
        most = max(most, used)
    assert most <= offer.missing_bytes + 500_000  # the journals, and whole blocks of the disk
    moved = [event for event in events if event.phase == "convert"]
    assert [event.done_bytes for event in moved] == sorted(event.done_bytes for event in moved)
    assert moved[-1].done_bytes == moved[-1].total_bytes
    assert any("MB/s" in event.detail for event in moved)
    (model,) = puller.store.models()
    assert model.size_bytes == offer.work.result_bytes


def test_killed_pulls_go_on(hub: Hub, env: dict[str, str], checkpoint: Path) -> None:
    origins.publish(hub, REPO, checkpoint)
    assert cli.run("pull", NAME, env=env).returncode == 0
    undisturbed = stored().files
    Store(paths.locate()).remove(parse(NAME))
    size = hub.bytes_sent(".safetensors")
    hub.fault(".safetensors", "slow", times=None, rate=6_000_000)
    sent = kills.pull_with_kills(hub, NAME, env, kills=1, size_bytes=size, seed=3) - size
    assert sent < 1.5 * size  # and not twice
    assert stored().files == undisturbed
    assert cli.data("verify", env=env)["problems"] == []
    assert list(Store(paths.locate()).paths.partials.iterdir()) == []


def test_finished_tensors_are_not_fetched_again(hub: Hub, puller: Puller, checkpoint: Path) -> None:
    origins.publish(hub, REPO, checkpoint)
    last = "model-00004-of-00004.safetensors"
    stall = hub.fault(f"/{last}", "stall", host="cdn", times=None, skip=2)
    offer = puller.look()
    assert offer.work is not None
    part = puller.partials / f"{offer.work.key}.part"
    work = pull.pull(offer, store=puller.store, network=puller.network)
    while not stall.reached.is_set():
        next(work)
    while len(list(puller.partials.glob(f"{offer.work.key}.*.safetensors"))):
        next(work)  # until all that came is converted and gone
    work.close()
    stall.times = 0
    before = {n: hub.bytes_sent(f"model-0000{n}-of") for n in (1, 2, 3)}
    # What a power cut spoils is made again, and what it needs is fetched again.
    with part.open("r+b") as file:
        file.seek(offer.work.result_bytes // 2)
        spoilt = bytes(byte ^ 1 for byte in file.read(1))
        file.seek(-1, os.SEEK_CUR)
        file.write(spoilt)
    model = puller.pull(puller.look())
    sent = [hub.bytes_sent(f"model-0000{n}-of") - before[n] > 100_000 for n in (1, 2, 3)]
    assert sum(sent) == 1
    assert [file.sha256 for file in model.files] == [undisturbed(hub, puller)]


def undisturbed(hub: Hub, puller: Puller) -> str:
    """The digest that a pull without trouble comes to, in a home of its own."""
    other = Puller(hub, puller.store.paths.data / "other")
    return other.pull(other.look()).files[0].sha256


def test_two_at_once_convert_once(hub: Hub, env: dict[str, str], checkpoint: Path) -> None:
    origins.publish(hub, REPO, checkpoint)
    hub.fault(".safetensors", "slow", times=None, rate=8_000_000)
    command = [*cli.COMMAND, "pull", NAME]
    both = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    talk = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], talk
    weights = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    assert hub.bytes_sent(".safetensors") < 1.05 * weights
    # Another name for the same thing costs nothing either.
    assert cli.run("pull", f"hf.co/{REPO}", "--as", "mine", env=env).returncode == 0
    assert hub.bytes_sent(".safetensors") < 1.05 * weights
    assert stored().files == stored("mine:latest").files


def test_outdated_and_update(hub: Hub, env: dict[str, str], checkpoint: Path) -> None:
    origins.publish(hub, REPO, checkpoint)
    assert cli.run("pull", NAME, env=env).returncode == 0
    Store(paths.locate()).copy(parse(NAME), parse("mine:latest"))
    before = stored()
    # A word in the model card makes no other weights.
    hub.update_repo(REPO, {"README.md": b"hello"})
    assert statuses(env) == {NAME: "current", "mine:latest": "current"}
    config = json.loads((checkpoint / "config.json").read_text())
    changed = json.dumps({**config, "max_position_embeddings": 512}).encode()
    commit = hub.update_repo(REPO, {"config.json": changed})
    assert statuses(env) == {NAME: "outdated", "mine:latest": "outdated"}
    assert cli.run("update", NAME, env=env).returncode == 0
    after = stored()
    assert after.revision == commit and after.info["context_length"] == 512
    assert after.info["quantization"] == before.info["quantization"]
    assert statuses(env) == {NAME: "current", "mine:latest": "outdated"}
    assert cli.run("rm", NAME, "mine", env=env).returncode == 0
    assert list(Store(paths.locate()).paths.blobs.iterdir()) == []


def statuses(env: dict[str, str]) -> dict[str, str]:
    return {row["name"]: row["status"] for row in cli.data("outdated", env=env)["models"]}


def test_kept_originals_serve_the_next_type(
    hub: Hub, env: dict[str, str], checkpoint: Path
) -> None:
    origins.publish(hub, REPO, checkpoint)
    result = cli.run("pull", NAME, "--keep-original", env=env)
    assert result.returncode == 0
    folder = paths.locate().originals / REPO
    assert f"the original weights are in {folder}" in result.stderr
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in checkpoint.iterdir()
    }
    sent = hub.bytes_sent(".safetensors")
    damaged = folder / "model-00002-of-00004.safetensors"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    other = f"hf.co/{REPO}:Q8_0"
    assert cli.run("pull", other, "--keep-original", env=env).returncode == 0
    again = hub.bytes_sent(".safetensors") - sent
    assert damaged.stat().st_size <= again < 1.1 * damaged.stat().st_size
    assert damaged.read_bytes() == (checkpoint / damaged.name).read_bytes()


def test_a_folder(env: dict[str, str], checkpoint: Path, tmp_path: Path) -> None:
    result = cli.run("pull", str(checkpoint), "--quant", "q5_0", "--json", env=env)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["model"]["name"] == "small-hf:latest"
    same = converted(checkpoint, tmp_path / "same.gguf", "Q5_0")
    assert tensors(blob("small-hf:latest")) == tensors(same)
    assert len(list(checkpoint.glob("*.safetensors"))) == 4
    assert statuses(env) == {"small-hf:latest": "current"}
    refused = cli.run("show", str(checkpoint), env=env)
    assert refused.returncode == 5 and f"localllama pull {checkpoint}" in refused.stderr


@pytest.mark.parametrize("shards", [1, 2])
def test_files_of_torch(
    hub: Hub, puller: Puller, checkpoint: Path, tmp_path: Path, shards: int
) -> None:
    weights = origins.SMALL.weights()
    names = np.array_split(list(weights), shards)
    files = {f.name: f for f in checkpoint.iterdir() if "safetensors" not in f.name}
    places = {}
    for number, part in enumerate(names, 1):
        name = (
            f"pytorch_model-{number:05}-of-{shards:05}.bin" if shards > 1 else "pytorch_model.bin"
        )
        files[name] = tmp_path / name
        write_torch(files[name], {str(key): weights[str(key)] for key in part})
        places |= dict.fromkeys(map(str, part), name)
    if shards > 1:
        files["pytorch_model.bin.index.json"] = tmp_path / "index"
        write_json(tmp_path / "index", {"weight_map": places})
    hub.add_repo(REPO, files)
    offer = puller.look()
    assert offer.missing_bytes > sum(files[name].stat().st_size for name in set(places.values()))
    model = puller.pull(offer)
    (path,) = puller.store.weights(model)
    assert tensors(path) == tensors(converted(checkpoint, tmp_path / "same.gguf"))
    assert list(puller.partials.iterdir()) == []


# what goes wrong


def test_a_gated_repository(hub: Hub, puller: Puller, checkpoint: Path) -> None:
    hub.add_repo(REPO, {p.name: p for p in checkpoint.iterdir()}, gated=True)
    with pytest.raises(Gated, match="gated"):
        puller.look()


def test_access_that_ends_in_the_middle(hub: Hub, puller: Puller, checkpoint: Path) -> None:
    origins.publish(hub, REPO, checkpoint)
    offer = puller.look()
    gone = hub.fault("model-00003-of-00004", "status", times=None, status=403, host="hub")
    with pytest.raises(Gated, match="model-00003-of-00004"):
        puller.pull(offer)
    assert puller.store.models() == []
    gone.times = 0
    before = hub.bytes_sent("model-00001-of-00004")
    assert puller.pull(puller.look()).files[0].sha256 == undisturbed(hub, puller)
    first = (checkpoint / "model-00001-of-00004.safetensors").stat().st_size
    assert hub.bytes_sent("model-00001-of-00004") < before + 1.1 * first  # the undisturbed one's


def test_a_commit_in_the_middle_changes_nothing(hub: Hub, puller: Puller, checkpoint: Path) -> None:
    commit = origins.publish(hub, REPO, checkpoint)
    offer = puller.look()
    hub.update_repo(REPO, {"model-00002-of-00004.safetensors": b"something else"})
    model = puller.pull(offer)
    assert model.revision == commit
    assert pull.changed(model, puller.look(weigh=False))


def test_a_damaged_shard_is_named_and_nothing_listed(
    hub: Hub, puller: Puller, checkpoint: Path
) -> None:
    origins.publish(hub, REPO, checkpoint)
    offer = puller.look()
    hub.fault("model-00002-of-00004", "corrupt", host="cdn", after=5_000)
    with pytest.raises(ChecksumMismatch, match=r"model-00002-of-00004\.safetensors is not what"):
        puller.pull(offer)
    assert puller.store.models() == []
    assert puller.pull(puller.look()).files[0].sha256 == undisturbed(hub, puller)


def test_a_header_that_was_another_is_noticed(hub: Hub, puller: Puller, checkpoint: Path) -> None:
    origins.publish(hub, REPO, checkpoint)
    name = "model-00001-of-00004.safetensors"
    right = (checkpoint / name).read_bytes()
    wrong = right.replace(b"0.self_attn.q_proj", b"0.self_attn.-_proj")
    wrong = wrong.replace(b"0.self_attn.o_proj", b"0.self_attn.q_proj")
    wrong = wrong.replace(b"0.self_attn.-_proj", b"0.self_attn.o_proj")
    hub.fault(name, "changed", host="cdn", content=wrong)
    offer = puller.look()
    hub.fault(name, "changed", host="cdn", content=right)
    with pytest.raises(ChecksumMismatch, match=f"{name} of {REPO} is not what its source said"):
        puller.pull(offer)
    assert puller.store.models() == []


def test_a_missing_shard(hub: Hub, puller: Puller, checkpoint: Path) -> None:
    files = {p.name: p for p in checkpoint.iterdir() if "00003" not in p.name}
    hub.add_repo(REPO, files)
    with pytest.raises(BadFile, match=r"names the file .model-00003-of-00004"):
        puller.look()


def test_weights_that_are_no_numbers(
    hub: Hub, puller: Puller, checkpoint: Path, tmp_path: Path
) -> None:
    weights = origins.SMALL.weights()
    weights["model.layers.2.mlp.up_proj.weight"][7, 7] = np.nan
    spoilt = write_checkpoint(tmp_path / "nan", origins.SMALL, shards=2, weights=weights)
    files = {p.name: p for p in checkpoint.iterdir() if "safetensors" not in p.name}
    hub.add_repo(REPO, files | {p.name: p for p in spoilt.iterdir()})
    with pytest.raises(BadFile, match=r"blk\.2\.ffn_up\.weight .* \(model-0000\d-of-00002"):
        puller.pull(puller.look())
    assert puller.store.models() == []
    assert list(puller.partials.glob("*")) == []
    # Plain floats can hold them, which is worth a sentence.
    notes = [
        progress.note
        for progress in pull.pull(
            puller.look(f"hf.co/{REPO}:BF16"), store=puller.store, network=puller.network
        )
    ]
    assert any("blk.2.ffn_up.weight holds weights" in note for note in notes)


def test_what_cannot_be_asked_for(hub: Hub, puller: Puller, checkpoint: Path) -> None:
    origins.publish(hub, REPO, checkpoint)
    with pytest.raises(InvalidParameter, match="'Q9' is not a quantization type"):
        puller.look(f"hf.co/{REPO}:Q9")
    with pytest.raises(InvalidParameter, match="needs an importance matrix"):
        puller.look(f"hf.co/{REPO}:IQ2_XXS")
    with pytest.raises(UsageProblem, match="cannot be had from 'meta'"):
        puller.look(origin="meta")
    hub.add_repo("owner/odd", {"config.json": b"{}", "unet.safetensors": b"x"})
    with pytest.raises(UnsupportedFile, match="layout that cannot be converted"):
        puller.look("hf.co/owner/odd")
    hub.add_repo("owner/ready", {"x-Q4_K_M.gguf": b"x"})
    with pytest.raises(RemoteNotFound, match="no original weights"):
        puller.look("hf.co/owner/ready", origin="original")
    hub.add_repo("owner/both", {"x-Q4_K_M.gguf": b"x", **{p.name: p for p in checkpoint.iterdir()}})
    assert not puller.look("hf.co/owner/both").converts
    assert puller.look("hf.co/owner/both", origin="original").converts


def test_a_disk_that_is_too_small(hub: Hub, puller: Puller, checkpoint: Path) -> None:
    origins.publish(hub, REPO, checkpoint)
    offer = replace(puller.look(), missing_bytes=10**18)
    trouble = pull.judge(offer, puller.store.paths)
    assert isinstance(trouble, NotEnoughDisk)
    assert pull.judge(puller.look(), puller.store.paths) is None


def test_a_disk_that_fills_up(hub: Hub, puller: Puller, checkpoint: Path) -> None:
    origins.publish(hub, REPO, checkpoint)
    largest = max(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    offer = puller.look(f"hf.co/{REPO}:Q8_0")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As a full disk: every shard just fits, and the result does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 4096, hard))
    try:
        with pytest.raises(DiskFull, match="the disk is full"):
            puller.pull(offer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert puller.store.models() == []
    sent = hub.bytes_sent("model-00001-of-00004")
    puller.pull(puller.look(f"hf.co/{REPO}:Q8_0"))
    assert hub.bytes_sent("model-00001-of-00004") - sent < 100_000


def test_an_interrupted_pull_says_how_to_go_on(
    hub: Hub, env: dict[str, str], checkpoint: Path
) -> None:
    origins.publish(hub, REPO, checkpoint)
    slow = hub.fault("model-00003-of-00004", "stall", host="cdn", times=None, skip=2)
    command = [*cli.COMMAND, "pull", NAME]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    assert slow.reached.wait(60)
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate()
    assert process.returncode == 130
    assert "the same command goes on" in talk and "Traceback" not in talk
    assert Store(paths.locate()).models() == []
    slow.times = 0
    sent = hub.bytes_sent("model-00001-of-00004")
    assert cli.run("pull", NAME, env=env).returncode == 0
    assert hub.bytes_sent("model-00001-of-00004") - sent < 100_000


# Meta's own download


def test_metas_download_through_a_link_that_expires(
    hub: Hub, env: dict[str, str], checkpoint: Path, tmp_path: Path
) -> None:
    origins.publish_as_meta(hub, tmp_path / "meta", "llama-2-13b-chat", shards=2)
    command = ("pull", "llama2:13b-chat", "--from", "meta", "--quant", "Q4_K_M", "--yes")
    assert "LLAMA_META_URL" in cli.run(*command, env=env).stderr
    expired = hub.fault("consolidated.01.pth", "status", times=None, skip=1, status=403)
    first = {**env, "LLAMA_META_URL": origins.link(hub)}
    result = cli.run(*command, env=first)
    assert result.returncode == 4
    assert "Meta refuses the link" in result.stderr and "what arrived is kept" in result.stderr
    assert "Signature" not in result.stderr
    assert Store(paths.locate()).models() == []
    expired.times = 0
    before = hub.bytes_sent("consolidated.00.pth")
    second = {**env, "LLAMA_META_URL": origins.link(hub, signature="another")}
    result = cli.run(*command, env=second)
    assert result.returncode == 0, result.stderr
    assert hub.bytes_sent("consolidated.00.pth") < before + 10
    same = converted(checkpoint, tmp_path / "same.gguf")
    assert tensors(blob("llama2:13b-chat")) == tensors(same)
    shown = cli.run("show", "llama2:13b-chat", "--license", env=env).stdout
    assert shown.startswith("Llama 2 is licensed under") and origins.LICENCE in shown
    assert list(Store(paths.locate()).paths.partials.iterdir()) == []


def test_a_shard_with_another_md5(hub: Hub, puller: Puller, tmp_path: Path) -> None:
    origins.publish_as_meta(hub, tmp_path / "meta", "llama-2-7b-chat", shards=1)
    puller.network = replace(puller.network, meta_url=origins.link(hub))
    hub.fault("consolidated.00.pth", "corrupt", skip=1, after=9_000)
    offer = puller.look("llama2:7b", origin="meta")
    with pytest.raises(ChecksumMismatch, match=r"consolidated\.00\.pth .* its md5 is"):
        puller.pull(offer)
    model = puller.pull(puller.look("llama2:7b", origin="meta"))
    assert model.source == "meta:llama-2-7b-chat" and model.conversion["origin"] == "meta"
    with pytest.raises(AccessDenied):
        hub.fault("checklist.chk", "status", times=None, status=403)
        puller.look("llama2:7b", origin="meta")

"""Hugging Face, asked by the real huggingface_hub client, answered by the test hub."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllama import sources
from localllama.config import Network
from localllama.errors import (
    AccessDenied,
    ConnectionLost,
    Gated,
    InvalidConfig,
    InvalidName,
    LocalLlamaError,
    Offline,
    RateLimited,
    RemoteNotFound,
    ServerFailed,
    UnsupportedFile,
    UsageProblem,
)
from localllama.names import Ref, Source, parse
from localllama.paths import Paths, locate
from localllama.sources import Listing, huggingface
from tests.support.hub import Content, Generated, Hub


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever runs the tests may be logged in."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    # Read when huggingface_hub is imported: one home without a login for the whole process.
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-hf-login"))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return locate(tmp_path)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


def net(hub: Hub, offline: bool = False) -> Network:
    return Network(hf_endpoint=hub.url, timeout_seconds=5, retries=1, offline=offline)


def listing(hub: Hub, paths: Paths, name: str) -> Listing:
    return sources.files(sources.direct(parse(name)), net(hub), paths)


def names(found: Listing) -> list[str]:
    return [file.url.split("/resolve/")[1].partition("/")[2] for file in found.files]


def quants(*types: str) -> dict[str, bytes]:
    return {f"x.{quant}.gguf": quant.encode() for quant in types}


def test_a_file_comes_with_commit_size_and_digest(hub: Hub, paths: Paths) -> None:
    data = b"weights"
    commit = hub.add_repo("o/r", {"x.Q4_K_M.gguf": data, "README.md": b""}, license="mit")
    found = listing(hub, paths, "hf.co/o/r")
    (file,) = found.files
    assert file.url == f"{hub.url}/o/r/resolve/{commit}/x.Q4_K_M.gguf"
    assert (file.name, file.size, file.role) == ("x.Q4_K_M.gguf", len(data), "model")
    assert file.sha256 == Content(data).sha256
    assert found.revision == file.revision == commit
    assert (found.licence.name, found.licence.accept, found.gated) == ("mit", False, False)
    assert hub.bytes_sent("resolve") == 0


@pytest.mark.parametrize(
    ("present", "wanted", "chosen"),
    [
        (("Q2_K", "Q4_K_M", "Q8_0"), "", "Q4_K_M"),
        (("Q2_K", "Q4_K_S", "Q5_K_M"), "", "Q4_K_S"),
        (("F16", "Q8_0"), "", "Q8_0"),
        (("IQ1_S",), "", "IQ1_S"),
        (("Q4_K", "Q4_K_M", "Q4_K_S"), "Q4_K", "Q4_K"),
        (("IQ4_0", "Q4_0", "Q4_0_4_4"), "q4_0", "Q4_0"),
        (("Q4_K_M", "Q8_0"), "latest", "Q4_K_M"),
        (("Q4_K_M", "UD-Q4_K_XL"), "Q4_K_XL", "UD-Q4_K_XL"),
    ],
)
def test_the_type_decides(
    hub: Hub, paths: Paths, present: tuple[str, ...], wanted: str, chosen: str
) -> None:
    hub.add_repo("o/r", quants(*present))
    name = f"hf.co/o/r:{wanted}" if wanted else "hf.co/o/r"
    assert names(listing(hub, paths, name)) == [f"x.{chosen}.gguf"]


def test_projectors_and_importance_matrices_are_no_models(hub: Hub, paths: Paths) -> None:
    hub.add_repo("o/r", {"x-Q3_K.gguf": b"", "mmproj-x-f16.gguf": b"", "x-imatrix.gguf": b""})
    assert names(listing(hub, paths, "hf.co/o/r")) == ["x-Q3_K.gguf"]


def test_a_file_is_found_whatever_its_case_and_place(hub: Hub, paths: Paths) -> None:
    hub.add_repo("o/r", {"Sub dir/X.gguf": b"", "y.gguf": b""})
    ref = Ref(parse("some:thing"), Source.HUGGINGFACE, "o/r", files=("sub DIR/x.GGUF",))
    (file,) = sources.files(ref, net(hub), paths).files
    assert file.url.endswith("/Sub%20dir/X.gguf")
    assert file.name == "X.gguf"


@pytest.mark.parametrize("name", ["hf.co/o/r:Q8_0", "hf.co/o/r:q/x-Q8_0-00002-of-00003.gguf"])
def test_all_parts_are_one_model(hub: Hub, paths: Paths, name: str) -> None:
    parts = [f"q/x-Q8_0-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    hub.add_repo("o/r", {part: part.encode() for part in reversed(parts)} | {"x-Q2_K.gguf": b""})
    assert names(listing(hub, paths, name)) == parts


@pytest.mark.parametrize("name", ["hf.co/o/r", "hf.co/o/r:x-00001-of-00002.gguf"])
def test_a_missing_part_is_named(hub: Hub, paths: Paths, name: str) -> None:
    hub.add_repo("o/r", {"x-00001-of-00002.gguf": b""})
    with pytest.raises(RemoteNotFound, match="x-00002-of-00002"):
        listing(hub, paths, name)


def test_several_models_are_a_question(hub: Hub, paths: Paths) -> None:
    hub.add_repo("o/r", {"a-Q8_0.gguf": Generated(2_500_000), "b-Q8_0.gguf": b"", "c.gguf": b""})
    with pytest.raises(UsageProblem, match="2 models of type Q8_0") as asked:
        listing(hub, paths, "hf.co/o/r:Q8_0")
    assert "a-Q8_0.gguf (2.5 MB)" in asked.value.hint
    assert "c.gguf" not in asked.value.hint


@pytest.mark.parametrize("tag", ["Q3_K_L", "nothing.gguf"])
def test_what_is_not_there_lists_what_is(hub: Hub, paths: Paths, tag: str) -> None:
    hub.add_repo("o/r", {"x.Q4_K_M.gguf": Generated(400_000_000), "x.Q8_0.gguf": b""})
    with pytest.raises(RemoteNotFound) as missing:
        listing(hub, paths, f"hf.co/o/r:{tag}")
    assert "Q4_K_M (0.4 GB), Q8_0 (0.0 MB)" in missing.value.hint


def test_original_weights_are_listed_with_what_belongs_to_them(hub: Hub, paths: Paths) -> None:
    small = {"config.json": b"{}", "README.md": b"", "LICENSE": b"", "tokenizer.model": b"x"}
    others = {"pytorch_model.bin": b"", "original/model.safetensors": b"", "script.py": b""}
    hub.add_repo("o/tiny-hf", {"model.safetensors": b"weights", **small, **others})
    found = {file.name: file for file in listing(hub, paths, "hf.co/o/tiny-hf").files}
    assert {name: file.role for name, file in found.items()} == {
        "config.json": "checkpoint",
        "tokenizer.model": "checkpoint",
        "README.md": "card",
        "LICENSE": "license",
        "model.safetensors": "checkpoint",
    }
    assert found["model.safetensors"].sha256 and not found["config.json"].sha256
    before = found["config.json"].revision
    hub.update_repo("o/tiny-hf", {"README.md": b"more"})
    after = {file.name: file for file in listing(hub, paths, "hf.co/o/tiny-hf").files}
    assert after["config.json"].revision == before
    hub.add_repo("o/odd", {"unet.safetensors": b"", "config.json": b"{}"})
    with pytest.raises(UnsupportedFile, match="cannot be converted") as refused:
        listing(hub, paths, "hf.co/o/odd")
    assert "localllama search odd" in refused.value.hint


def test_a_repository_without_any_model(hub: Hub, paths: Paths) -> None:
    hub.add_repo("o/r", {"README.md": b""})
    with pytest.raises(RemoteNotFound, match="no model"):
        listing(hub, paths, "hf.co/o/r")


def test_names_from_outside_cannot_leave_the_repository(hub: Hub, paths: Paths) -> None:
    hub.add_repo("o/r", {"../../x.Q4_K_M.gguf": b"", "a\x1b.Q4_K_S.gguf": b"", "x.Q8_0.gguf": b""})
    assert names(listing(hub, paths, "hf.co/o/r")) == ["x.Q8_0.gguf"]


def test_a_digest_of_the_catalog_wins(hub: Hub, paths: Paths) -> None:
    hub.add_repo("o/r", quants("Q8_0"))
    known = {"x.Q8_0.gguf": "a" * 64}
    ref = Ref(parse("some:thing"), Source.HUGGINGFACE, "o/r", sha256=known)
    assert sources.files(ref, net(hub), paths).files[0].sha256 == "a" * 64


def test_an_older_revision(hub: Hub, paths: Paths) -> None:
    old = hub.add_repo("o/r", {"x.gguf": b"old"})
    hub.update_repo("o/r", {"x.gguf": b"new"})
    ref = Ref(parse("some:thing"), Source.HUGGINGFACE, "o/r", revision=old)
    assert sources.files(ref, net(hub), paths).revision == old
    with pytest.raises(RemoteNotFound, match="no such revision"):
        lost = Ref(parse("some:thing"), Source.HUGGINGFACE, "o/r", revision="0" * 40)
        sources.files(lost, net(hub), paths)


# what stands in the way


def test_gated_without_a_token_with_one_and_with_leave(
    hub: Hub, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("o/r", quants("Q8_0"), gated=True, license="llama2")
    with pytest.raises(Gated) as anonymous:
        listing(hub, paths, "hf.co/o/r")
    assert anonymous.value.page == "https://huggingface.co/o/r"
    assert "settings/tokens" in anonymous.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_valid")
    with pytest.raises(Gated) as stranger:
        listing(hub, paths, "hf.co/o/r")
    assert "https://huggingface.co/o/r" in stranger.value.hint
    hub.grant("hf_valid", "o/r")
    found = listing(hub, paths, "hf.co/o/r")
    assert found.gated and found.licence.accept
    assert found.files[0].token == "hf_valid"
    assert "hf_valid" not in repr(found)


def test_a_wrong_token(hub: Hub, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("o/r", quants("Q8_0"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(AccessDenied, match="token") as denied:
        listing(hub, paths, "hf.co/o/r")
    assert "https://huggingface.co/settings/tokens" in denied.value.hint
    assert "hf_wrong" not in str(denied.value) + denied.value.hint


def test_missing_and_private_look_alike_without_a_token(
    hub: Hub, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("o/secret", quants("Q8_0"), private=True)
    for name in ("hf.co/o/secret", "hf.co/o/none"):
        with pytest.raises(RemoteNotFound) as missing:
            listing(hub, paths, name)
        assert "private" in missing.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_valid")
    assert listing(hub, paths, "hf.co/o/secret").files
    with pytest.raises(RemoteNotFound):
        listing(hub, paths, "hf.co/o/none")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, RateLimited), (500, ServerFailed), (503, ServerFailed), (403, AccessDenied)],
)
def test_refusals(hub: Hub, paths: Paths, status: int, kind: type[LocalLlamaError]) -> None:
    hub.add_repo("o/r", quants("Q8_0"))
    hub.fault("/api/models/o/r", "status", status=status)
    with pytest.raises(kind) as refused:
        listing(hub, paths, "hf.co/o/r")
    assert refused.value.hint


def test_a_failing_server_is_asked_again(hub: Hub, paths: Paths) -> None:
    hub.add_repo("o/r", quants("Q8_0"))
    hub.fault("/api/models/o/r", "status", status=503)
    network = Network(hf_endpoint=hub.url, retries=2)
    assert sources.files(sources.direct(parse("hf.co/o/r")), network, paths).files


def test_an_answer_that_is_no_model(hub: Hub, paths: Paths) -> None:
    hub.fault("/api/models/o/r", "status", status=200)
    with pytest.raises(ServerFailed, match="no sense"):
        listing(hub, paths, "hf.co/o/r")


def test_nobody_listens(paths: Paths) -> None:
    with Hub() as hub:
        network = net(hub)
    with pytest.raises(ConnectionLost, match=r"cannot reach [^\[]+ \w+$"):
        sources.files(sources.direct(parse("hf.co/o/r")), network, paths)


def test_offline_asks_nobody(hub: Hub, paths: Paths) -> None:
    for call in (
        lambda network: sources.files(sources.direct(parse("hf.co/o/r")), network, paths),
        lambda network: huggingface.search("x", network, paths),
        lambda network: huggingface.whoami("hf_valid", network),
    ):
        with pytest.raises(Offline):
            call(net(hub, offline=True))
    assert hub.requests == []


def test_an_endpoint_that_is_no_address(paths: Paths) -> None:
    network = Network(hf_endpoint="hub.example", retries=1)
    with pytest.raises(InvalidConfig, match="web address"):
        sources.files(sources.direct(parse("hf.co/o/r")), network, paths)


def test_a_name_the_hub_does_not_allow(hub: Hub, paths: Paths) -> None:
    with pytest.raises(InvalidName, match="a--b"):
        listing(hub, paths, "hf.co/o/a--b")


# search and login


def test_search_tells_sizes(hub: Hub, paths: Paths) -> None:
    hub.add_repo("a/tiny-llama-GGUF", {"x.Q2_K.gguf": b"12", "x.Q8_0.gguf": b"1234567"})
    split = {f"y-0000{n}-of-00002.gguf": b"12345" for n in (1, 2)}
    hub.add_repo("b/Llama-big", split | {"mmproj.gguf": b"1"}, gated=True, license="llama2")
    hub.add_repo("c/llama-original", {"model.safetensors": b"1"})
    found = {hit.repo: hit for hit in huggingface.search("llama", net(hub), paths)}
    assert set(found) == {"a/tiny-llama-GGUF", "b/Llama-big"}
    small, big = found["a/tiny-llama-GGUF"], found["b/Llama-big"]
    assert (small.smallest_bytes, small.largest_bytes, small.gated) == (2, 7, False)
    assert (big.smallest_bytes, big.largest_bytes, big.gated) == (10, 10, True)
    assert (small.downloads, small.likes, small.updated) == (1000, 10, "2025-01-02")
    assert big.licence == "llama2"


def test_search_keeps_to_its_limit(hub: Hub, paths: Paths) -> None:
    for n in range(5):
        hub.add_repo(f"a/m{n}", {"x.gguf": b""})
    assert len(huggingface.search("m", net(hub), paths, limit=3)) == 3
    assert huggingface.search("nothing-like-it", net(hub), paths) == []


def test_a_token_is_kept_for_its_owner_only(paths: Paths) -> None:
    assert huggingface.find_token(paths) == ""
    huggingface.save_token(paths, " hf_saved\n")
    assert huggingface.find_token(paths) == "hf_saved"
    if os.name == "posix":
        assert stat.S_IMODE(paths.token_file.stat().st_mode) == 0o600


def test_which_token_wins(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no-hf-login").write_text("hf_theirs\n")
    assert huggingface.find_token(paths) == "hf_theirs"
    huggingface.save_token(paths, "hf_ours")
    assert huggingface.find_token(paths) == "hf_ours"
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    assert huggingface.find_token(paths) == "hf_environment"


@pytest.mark.parametrize("token", ["", "two words", "hf_\N{CYRILLIC SMALL LETTER A}", "x" * 2000])
def test_what_cannot_be_a_token_is_not_kept(paths: Paths, token: str) -> None:
    with pytest.raises(UsageProblem):
        huggingface.save_token(paths, token)
    assert not paths.token_file.exists()


def test_a_broken_token_in_the_environment(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "two words")
    with pytest.raises(AccessDenied):
        huggingface.find_token(paths)


def test_whoami(hub: Hub) -> None:
    assert huggingface.whoami("hf_valid", net(hub)) == "tester"
    with pytest.raises(AccessDenied):
        huggingface.whoami("hf_wrong", net(hub))


def test_importing_the_sources_costs_nothing_heavy() -> None:
    ours = ", ".join(
        f"localllama.sources.{name}"
        for name in ("huggingface", "ollama", "url", "package", "local")
    )
    heavy = ("huggingface_hub", "httpx2", "numpy", "llama_cpp")
    code = f"import sys, {ours}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

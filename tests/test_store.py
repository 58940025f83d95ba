"""The model store: names share blobs, what is listed is whole, several processes may write."""

from __future__ import annotations

import hashlib
import multiprocessing
from pathlib import Path

import pytest

from localllama import paths
from localllama.errors import BadFile, DiskFull, ModelNotFound, StoreError
from localllama.files import translate
from localllama.names import parse
from localllama.progress import finish
from localllama.store import Installed, Store, StoredFile, check, manifest


@pytest.fixture
def store(home: Path) -> Store:
    return Store(paths.locate())


def add(store: Store, name: str, *contents: bytes) -> Installed:
    """Install a model whose parts are these bytes."""
    files, arrived = [], {}
    store.paths.partials.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(contents):
        digest = hashlib.sha256(content).hexdigest()
        path = store.paths.partials / f"{digest}.arrived"
        path.write_bytes(content)
        files.append(StoredFile(f"m-{number + 1:05d}-of-00002.gguf", digest, len(content)))
        arrived[digest] = path
    return store.install(Installed(name=name, files=tuple(files)), arrived)


def blobs(store: Store) -> set[str]:
    return {path.name for path in store.paths.blobs.iterdir()}


def test_an_empty_store_lists_nothing_and_creates_nothing(store: Store, home: Path) -> None:
    assert store.models() == []
    assert check.garbage(store, partials=True) == []
    assert not home.exists()


def test_install_then_get_returns_the_same_model(store: Store) -> None:
    installed = add(store, "a:latest", b"weights")
    assert store.get(parse("A:latest")) == installed
    assert store.weights(installed)[0].read_bytes() == b"weights"
    assert [model.name for model in store.models()] == ["a:latest"]
    assert not any(store.paths.partials.iterdir())


def test_rm_keeps_what_another_name_uses(store: Store) -> None:
    add(store, "a:latest", b"shared")
    copy = store.copy(parse("a:latest"), parse("b:latest"))
    add(store, "c:latest", b"own")
    assert store.remove(parse("a:latest")) == 0
    assert store.weights(copy)[0].read_bytes() == b"shared"
    assert store.remove(parse("c:latest")) == len(b"own")
    assert store.remove(parse("b:latest")) == len(b"shared")
    assert blobs(store) == set()


def test_a_copy_has_the_same_digest_and_a_changed_model_another(store: Store) -> None:
    model = add(store, "a:latest", b"x")
    assert store.copy(parse("a:latest"), parse("b:latest")).digest == model.digest
    assert add(store, "c:latest", b"y").digest != model.digest


def test_installing_over_a_name_frees_the_old_bytes(store: Store) -> None:
    add(store, "a:latest", b"old")
    new = add(store, "a:latest", b"new")
    assert blobs(store) == {f"sha256-{new.files[0].sha256}"}


def test_near_misses_are_suggested(store: Store) -> None:
    add(store, "smollm2:135m", b"x")
    with pytest.raises(ModelNotFound) as caught:
        store.get(parse("smolm2:135m"))
    assert caught.value.suggestions == ("smollm2:135m",)
    assert "did you mean smollm2:135m" in caught.value.hint


def test_verify_finds_changed_cut_and_missing_data(store: Store) -> None:
    sound = add(store, "sound:latest", b"sound")
    for name, damage in (("changed", b"chanGed"), ("cut", b"cu"), ("missing", None)):
        model = add(store, f"{name}:latest", name.encode())
        blob = store.weights(model)[0]
        blob.unlink()
        if damage is not None:
            blob.write_bytes(damage)
    problems = finish(check.verify(store, store.models()))
    assert {problem.model for problem in problems} == {
        "changed:latest",
        "cut:latest",
        "missing:latest",
    }
    assert finish(check.verify(store, [sound])) == []
    with pytest.raises(BadFile, match="missing from the store"):
        store.weights(store.get(parse("missing:latest")))


def test_prune_removes_strays_and_keeps_partials_unless_asked(store: Store) -> None:
    model = add(store, "a:latest", b"x")
    stray = store.blob("0" * 64)
    stray.write_bytes(b"stray")
    partial = store.paths.partials / "f.part"
    partial.write_bytes(b"half")
    assert [item.path for item in check.prune(store)] == [stray]
    assert partial.exists()
    assert [item.path for item in check.prune(store, partials=True)] == [partial]
    assert store.weights(model)[0].exists()


def test_prune_refuses_while_a_manifest_cannot_be_read(store: Store) -> None:
    model = add(store, "a:latest", b"x")
    (store.paths.manifests / "b%3Alatest.json").write_text("{")
    assert [Path(error.path).name for error in store.scan()[1]] == ["b%3Alatest.json"]
    assert [m.name for m in store.models()] == ["a:latest"]
    with pytest.raises(BadFile, match="damaged"):
        check.prune(store)
    assert store.weights(model)[0].exists()


def test_a_damaged_manifest_does_not_stop_the_others(store: Store) -> None:
    add(store, "a:latest", b"x")
    broken = store.paths.manifests / "b%3Alatest.json"
    broken.write_text("{")
    assert store.remove(parse("a:latest")) == 0  # what b uses is unknown, so nothing goes
    add(store, "c:latest", b"y")
    store.remove(parse("b:latest"))
    assert not broken.exists()
    assert {item.kind for item in check.prune(store)} == {"blob"}
    assert [model.name for model in store.models()] == ["c:latest"]


def test_a_manifest_of_a_newer_version_says_so(store: Store) -> None:
    add(store, "a:latest", b"x")
    path = next(store.paths.manifests.glob("*.json"))
    path.write_text(path.read_text().replace(f'"schema": {manifest.SCHEMA}', '"schema": 99'))
    with pytest.raises(BadFile, match="newer"):
        store.get(parse("a:latest"))


def test_split_models_are_linked_under_the_names_llama_cpp_expects(store: Store) -> None:
    model = add(store, "big:latest", b"one", b"two")
    links = store.linked(model)
    assert [link.name for link in links] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert [link.read_bytes() for link in links] == [b"one", b"two"]
    newer = add(store, "big:latest", b"one", b"TWO")
    assert [link.read_bytes() for link in store.linked(newer)] == [b"one", b"TWO"]
    store.remove(parse("big:latest"))
    assert {item.kind for item in check.prune(store)} == {"link"}
    assert not any(links[0].parent.iterdir())


def test_long_and_odd_names_have_manifests_of_their_own(store: Store) -> None:
    first = f"https://example.com/{'a' * 300}/x.gguf"
    second = f"https://example.com/{'a' * 300}/y.gguf"
    add(store, first, b"1")
    add(store, second, b"2")
    assert store.get(parse(first)).files != store.get(parse(second)).files


def _copies(home: str, number: int) -> None:
    store = Store(paths.locate(home))
    for turn in range(20):
        store.copy(parse("a:latest"), parse(f"copy-{number}:{turn}"))
        store.remove(parse(f"copy-{number}:{turn}"))


def test_processes_at_once_lose_nothing(store: Store, home: Path) -> None:
    model = add(store, "a:latest", b"x")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_copies, args=(str(home), number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [m.name for m in store.models()] == ["a:latest"]
    assert store.weights(model)[0].read_bytes() == b"x"


def test_disk_errors_have_words() -> None:
    assert isinstance(translate(OSError(28, "No space left on device"), Path("x")), DiskFull)
    error = translate(OSError(30, "Read-only file system", "/models"), Path("/models"))
    assert isinstance(error, StoreError)
    assert "LOCALLLAMA_HOME" in error.hint

"""KV states on disk: exact or not at all, small enough, gone with their conversation."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from localllama import paths
from localllama.config import Config
from localllama.engine import archive, snapshots
from localllama.engine.api import Done, LoadOptions, Message, Sampling, SnapshotOptions, Text
from localllama.engine.client import Engine
from localllama.engine.registry import Registry
from localllama.engine.snapshots import Snapshots
from localllama.runner import Runner
from localllama.store import Store
from tests.support import cli
from tests.support.engines import load, wait_until

STATE = memoryview(bytes(range(256)) * 40)
SLOW_WRITER = """
import sys
from pathlib import Path
from localllama.engine.snapshots import Snapshots

kept = Snapshots(Path(sys.argv[1]), 1 << 40, "key", print)
state = memoryview(bytes(64_000_000))
for number in range(10_000):
    kept.save([number] * 300, "", state)
"""


class Folder:
    """A folder with snapshots, and what was logged about them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log: list[str] = []

    def opened(self, key: str = "key", limit_bytes: int = 1_000_000) -> Snapshots:
        return Snapshots(self.path, limit_bytes, key, self.log.append)

    def first_tokens(self) -> set[int]:
        return {snapshot.tokens[0] for snapshot in self.opened().all()}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "snapshots")


# --- files ---------------------------------------------------------------------------------------


def test_what_is_saved_is_there_for_the_next_process(folder: Folder) -> None:
    assert folder.opened().save([1, 2, 3], "chat", STATE)
    (found,) = folder.opened().all()
    assert (list(found.tokens), found.conversation) == ([1, 2, 3], "chat")
    assert folder.opened().open(found) == STATE
    assert stat.S_IMODE(found.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert [path for path, _ in snapshots.files(folder.path)] == [found.path]


def test_another_key_is_another_world(folder: Folder) -> None:
    folder.opened("one").save([1, 2, 3], "", STATE)
    assert folder.opened("other").all() == []
    (found,) = folder.opened("one").all()
    found.path.rename(found.path.with_name(found.path.name.replace("one", "other")))
    assert folder.opened("other").all() == []
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("part", [0, 9, 13, 20, 60, -1, -5000])
def test_a_damaged_file_is_dropped_with_a_line_in_the_log(folder: Folder, part: int) -> None:
    folder.opened().save([1, 2, 3], "", STATE)
    (found,) = folder.opened().all()
    data = bytearray(found.path.read_bytes())
    data[part] ^= 1
    found.path.write_bytes(data)
    kept = folder.opened()
    assert not any(kept.open(snapshot) for snapshot in kept.all())
    assert not found.path.exists()
    assert len(folder.log) == 1
    assert found.path.name in folder.log[0]


@pytest.mark.parametrize("length", [0, 5, 40, 3000, 100_000])
def test_a_file_of_another_length_is_dropped(folder: Folder, length: int) -> None:
    folder.opened().save([1, 2, 3], "", STATE)
    (found,) = folder.opened().all()
    os.truncate(found.path, length)
    assert folder.opened().all() == []
    assert folder.opened().open(found) is None
    assert not found.path.exists()


def test_a_file_that_is_gone_is_no_trouble(folder: Folder) -> None:
    kept = folder.opened()
    kept.save([1, 2, 3], "", STATE)
    (found,) = kept.all()
    found.path.unlink()
    assert kept.open(found) is None
    assert kept.all() == []
    assert folder.log == []


def test_the_least_recently_used_goes_first(folder: Folder) -> None:
    kept = folder.opened(limit_bytes=int(3.5 * len(STATE)))
    for number in (1, 2, 3):
        kept.save([number, 0], "", STATE)
    for snapshot in kept.all():  # long ago, in this order
        os.utime(snapshot.path, (snapshot.tokens[0],) * 2)
    (first,) = (snapshot for snapshot in kept.all() if snapshot.tokens[0] == 1)
    assert kept.open(first)
    kept.save([4, 0], "", STATE)
    assert folder.first_tokens() == {1, 3, 4}


def test_nothing_beyond_the_limit_is_kept(folder: Folder) -> None:
    assert not folder.opened(limit_bytes=len(STATE)).save([1], "", STATE)
    assert not folder.opened(limit_bytes=0).save([1], "", STATE)
    assert list(folder.path.iterdir()) == []


def test_a_conversation_that_goes_on_replaces_its_beginning(folder: Folder) -> None:
    kept = folder.opened()
    kept.save([1, 2], "", STATE)
    kept.save([3, 2], "", STATE)
    kept.save([1, 2, 3], "", STATE)
    assert sorted(list(snapshot.tokens) for snapshot in kept.all()) == [[1, 2, 3], [3, 2]]


def test_a_conversation_is_forgotten_under_any_key(folder: Folder) -> None:
    folder.opened("key").save([1], "a", STATE)
    folder.opened("key").save([2], "b", STATE)
    folder.opened("other").save([1], "a", STATE)
    home = replace(paths.locate(folder.path), cache=folder.path.parent)
    Runner(Store(home), Config(), home).forget("a")
    assert folder.first_tokens() == {2}
    assert folder.opened("other").all() == []


def test_a_folder_that_cannot_be_made_costs_nothing_but_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = Folder(tmp_path / "file" / "snapshots")
    assert not folder.opened().save([1], "", STATE)
    assert len(folder.log) == 1
    assert folder.opened().all() == []


def test_nothing_half_written_is_used(folder: Folder) -> None:
    command = [sys.executable, "-c", SLOW_WRITER, str(folder.path)]
    for _ in range(3):
        writer = subprocess.Popen(command)
        wait_until(lambda: any(folder.path.glob(".*.tmp")))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        kept = folder.opened()
        for snapshot in kept.all():
            assert kept.open(snapshot) is not None
        snapshots.remove(snapshot.path for snapshot in kept.all())
    assert folder.log == []
    assert folder.opened().save([1], "", STATE)  # and what was left goes
    assert len(list(folder.path.iterdir())) == 1


def test_all_that_a_state_depends_on_is_in_the_key() -> None:
    options = LoadOptions(paths=("m",), context_length=512, snapshots=SnapshotOptions("", 1, "m"))

    def but(**changes: object) -> str:
        return archive.key(msgspec.structs.replace(options, **changes), False)

    keys = [
        archive.key(options, False),
        archive.key(options, True),
        but(kv_type="q8_0"),
        but(flash_attention=True),
        but(snapshots=SnapshotOptions("", 1, "other")),
    ]
    assert len(set(keys)) == len(keys)
    assert but(context_length=1024, threads=3) == keys[0]


# --- conversations -------------------------------------------------------------------------------


QUESTION = Message("user", " ".join(f"{i}," for i in range(1, 100)) + " and so on. Why?")
GREEDY = Sampling(temperature=0, max_tokens=6)


def ask(engine: Engine, *messages: Message, **further: object) -> tuple[str, Done]:
    text = ""
    for event in engine.stream(GREEDY, messages=messages, **further):  # type: ignore[arg-type]  # checked by msgspec
        if isinstance(event, Text):
            text += event.text
    assert isinstance(event, Done)
    return text, event


def options(folder: Path, limit_bytes: int = 100_000_000) -> SnapshotOptions:
    return SnapshotOptions(str(folder / "snapshots"), limit_bytes, "smollm2")


def kept_in(folder: Path) -> list[Path]:
    return [path for path, _ in snapshots.files(folder / "snapshots")]


def test_a_reopened_conversation_costs_its_new_tokens(smollm2: Path, tmp_path: Path) -> None:
    with load(smollm2, tmp_path, 512, snapshots=options(tmp_path)) as engine:
        text, before = ask(engine, QUESTION)
    assert len(kept_in(tmp_path)) == 1
    messages = (QUESTION, Message("assistant", text), Message("user", "Really?"))
    known = before.usage.prompt_tokens + before.usage.completion_tokens - 1
    with load(smollm2, tmp_path, 512, snapshots=options(tmp_path)) as engine:
        reopened, after = ask(engine, *messages)
    assert after.usage.cached_tokens >= known > 256
    (path,) = kept_in(tmp_path)
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with load(smollm2, tmp_path, 512, snapshots=options(tmp_path)) as engine:
        read, again = ask(engine, *messages, snapshot=False)
    assert again.usage.cached_tokens == 0
    assert read == reopened
    assert kept_in(tmp_path) == []


def test_what_must_not_be_kept_is_not(smollm2: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path, tmp_path / "logs")
    with load(smollm2, tmp_path, 512, snapshots=options(tmp_path)) as engine:
        ask(engine, QUESTION, conversation="chat")
        registry.forget_conversation(engine.record, "chat")
    assert kept_in(tmp_path) == []


def test_a_reply_under_way_is_kept_when_the_model_is_stopped(smollm2: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path, tmp_path / "logs")
    with load(smollm2, tmp_path, 512, snapshots=options(tmp_path)) as engine:
        stream = engine.stream(Sampling(temperature=0, ignore_eos=True), messages=[QUESTION])
        while not isinstance(next(stream), Text):
            pass
        assert registry.stop(engine.record, "enough")
    assert len(kept_in(tmp_path)) == 1


def test_the_commands_know_the_folder(home: Path) -> None:
    folder = Folder(home / "cache" / "snapshots")
    folder.opened().save([1], "", STATE)
    size = sum(size for _, size in snapshots.files(folder.path))
    assert cli.data("doctor", "--offline")["snapshots_bytes"] == size
    assert cli.data("prune")["files"] == []
    (gone,) = cli.data("prune", "--cache")["files"]
    assert (gone["kind"], gone["size_bytes"]) == ("snapshot", size)
    assert list(folder.path.iterdir()) == []

"""Shared workers: joined rather than loaded again, ended when nobody needs them, never two."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localllama import hardware, names, paths
from localllama.config import Config, Run, parse_duration
from localllama.config import load as load_config
from localllama.engine.api import Done, Sampling, Text
from localllama.errors import DoesNotFit, EngineError, InvalidConfig, WorkerDied
from localllama.hardware import Hardware
from localllama.runner import Runner
from localllama.store import Installed, Store
from localllama.wants import Want
from tests.support import cli
from tests.support.engines import left_in, wait_until

WANT = Want(context_length=512, threads=1, keep_alive_seconds=3600)
SHORT = Sampling(temperature=0, max_tokens=3)
ASK = ("run", "smol", "Hello", "--max-tokens", "3", "--ctx", "512", "--threads", "1")
KEEP = ("--keep-alive", "1h")


@pytest.fixture
def store(home: Path, smollm2: Path) -> Store:
    result = cli.run("pull", str(smollm2), "--as", "smol")
    assert result.returncode == 0, result.stderr
    return Store(paths.locate())


@pytest.fixture
def model(store: Store) -> Installed:
    return store.get(names.parse("smol:latest"))


@pytest.fixture
def runner(store: Store) -> Iterator[Runner]:
    runner = Runner(store, Config(), store.paths)
    yield runner
    for running in runner.running():
        runner.stop(running.record)
    assert left_in(store.paths.runtime) == []
    assert not list(store.paths.log.glob("worker-*"))


def test_a_second_run_finds_the_model_loaded(runner: Runner) -> None:
    first, second = cli.data(*ASK, *KEEP), cli.data(*ASK, *KEEP)
    assert first["timings"]["load_seconds"] > 0
    assert second["timings"]["load_seconds"] == 0
    assert second["usage"]["cached_tokens"] == second["usage"]["prompt_tokens"] - 1
    if hardware.without_gpus(runner.paths.devices_file):  # then these wishes change nothing
        third = cli.data(*ASK, *KEEP, "--no-gpu")
        assert third["timings"]["load_seconds"] == 0
    (loaded,) = cli.data("ps")["models"]
    assert loaded["name"] == "smol:latest"
    assert (loaded["context_length"], loaded["clients"], loaded["running"]) == (512, 0, 0)
    table = cli.run("ps").stdout.splitlines()
    assert table[0].split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "PARALLEL", "UNTIL"]
    assert "100% CPU" in table[1]
    assert "from now" in table[1]
    assert cli.run("cp", "smol", "other").returncode == 0
    assert cli.run("stop", "other").returncode == 0  # the same model under another name
    assert cli.data("ps") == {"models": []}
    assert cli.run("stop", "smol").returncode == 3
    assert cli.run("stop").returncode == 2
    assert cli.run("stop", "--all").returncode == 0


def test_two_that_start_at_once_end_with_one_worker(runner: Runner) -> None:
    command = [*cli.COMMAND, *ASK, *KEEP, "--json"]
    both = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    answers = [json.loads(process.communicate()[0]) for process in both]
    assert [bool(answer["text"]) for answer in answers] == [True, True]
    assert len(runner.running()) == 1


def test_who_asks_for_a_number_of_replies_at_once_gets_it(runner: Runner, model: Installed) -> None:
    with runner.open(model, WANT) as engine:
        assert engine.record.label.slots == 4
        assert "more would hardly be faster" not in engine.record.label.parallel
    asked = Runner(runner.store, Config(run=Run(slots=2)), runner.paths)
    with asked.open(model, WANT) as two, runner.open(model, WANT) as same:
        assert two.record.label.slots == 2
        assert same.record == two.record  # who asks for nothing takes what there is
    (left,) = runner.running()
    assert left.record == two.record


def test_a_pipe_ends_with_the_reply_and_not_with_the_worker(runner: Runner) -> None:
    command = [*cli.COMMAND, *ASK, *KEEP]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read()  # to the end: nobody else has the pipes open
        assert process.stderr.read()
    (running,) = runner.running()
    assert running.status is not None
    assert running.status.clients == 0


def test_several_front_ends_share_a_worker_until_the_last_has_left(
    runner: Runner, model: Installed
) -> None:
    briefly = replace(WANT, keep_alive_seconds=0)
    fractions: list[float] = []
    with runner.open(model, briefly, on_progress=fractions.append) as first:
        with runner.open(model, briefly) as second:
            assert (first.joined, second.joined) == (False, True)
            assert first.pid == second.pid
            text = [event.text for event in second.stream(SHORT, prompt="1, 2,") if is_text(event)]
            same = [event.text for event in first.stream(SHORT, prompt="1, 2,") if is_text(event)]
            assert "".join(text) == "".join(same)
        (running,) = runner.running()
        assert running.status is not None
        assert running.status.clients == 1
    assert fractions[-1] == 1
    assert runner.running() == []


def is_text(event: object) -> bool:
    return isinstance(event, Text)


def test_everybody_who_waits_sees_the_model_load(runner: Runner, model: Installed) -> None:
    seen: list[list[float]] = [[], []]

    def wait(fractions: list[float]) -> None:
        with runner.open(model, WANT, on_progress=fractions.append):
            pass

    both = [threading.Thread(target=wait, args=(fractions,)) for fractions in seen]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(runner.running()) == 1
    assert max(seen[0]) == max(seen[1]) == 1


def test_a_model_that_is_large_enough_is_used_and_a_smaller_one_replaced(
    runner: Runner, model: Installed
) -> None:
    with runner.open(model, WANT) as first:
        pass
    with runner.open(model, replace(WANT, context_length=256)) as second:
        assert second.pid == first.pid
        assert second.ready.context_length == 512
    exactly = replace(WANT, context_length=256, exact_context=True)
    with runner.open(model, exactly) as less:
        assert (less.pid != first.pid, less.ready.context_length) == (True, 256)
    assert [running.record.pid for running in runner.running()] == [less.pid]
    with runner.open(model, replace(WANT, context_length=1024)) as third:
        assert third.pid != less.pid
    assert [running.record.pid for running in runner.running()] == [third.pid]
    with runner.open(model, replace(WANT, context_length=256, threads=2)) as other:
        assert other.pid != third.pid  # loaded in another way


def test_an_idle_model_makes_room_and_says_so(
    runner: Runner, store: Store, model: Installed
) -> None:
    with runner.open(model, WANT) as first:
        needed = first.record.label.size_bytes
        crowded = tight(store, runner, needed * 5 // 4)  # later plans may be corrected upwards
        stream = first.stream(Sampling(), prompt="1, 2, 3,")
        next(stream)
        with pytest.raises(DoesNotFit):  # a reply is under way
            crowded.open(model, replace(WANT, threads=2))
        stream.close()
        wait_until(lambda: not any(r.status and r.status.running for r in runner.running()))
        with pytest.raises(DoesNotFit):  # would not fit even then: nobody is unloaded for it
            crowded.open(model, replace(WANT, context_length=100_000, threads=2))
        with crowded.open(model, replace(WANT, threads=2)) as second:
            assert second.pid != first.pid
            with pytest.raises(WorkerDied, match="to make room for smol:latest"):
                list(first.stream(SHORT, prompt="Hello"))
    assert [running.record.pid for running in runner.running()] == [second.pid]


def test_an_idle_model_leaves_a_gpu_to_another(runner: Runner, model: Installed) -> None:
    def probe() -> Hardware:
        """A machine with a GPU that holds one model; llama.cpp itself computes on the CPU."""
        held = sum(running.record.label.gpu_bytes for running in runner.running())
        free = 160_000_000 - held + Run().reserve_bytes
        return hardware.described(hardware.memory().available_bytes, (free,))

    crowded = Runner(runner.store, Config(), runner.paths, probe=probe)
    want = replace(WANT, kv_type="f16")
    with crowded.open(model, want) as first:
        assert first.record.label.gpu_layers == first.record.label.layers
        assert cli.data("ps")["models"][0]["processor"] == "100% GPU"
    with crowded.open(model, replace(want, no_gpu=True)) as second:
        assert second.record.label.gpu_bytes == 0
    with crowded.open(model, replace(want, kv_type="f32")) as third:
        assert third.record.label.gpu_layers == third.record.label.layers
    left = {running.record.id for running in runner.running()}
    assert left == {second.record.id, third.record.id}  # what holds nothing on the GPU stays


def tight(store: Store, runner: Runner, room_bytes: int) -> Runner:
    """Return a runner on a machine where one worker leaves no memory for another."""

    def probe() -> Hardware:
        machine = hardware.probe(())
        live = runner.running()
        # What is mapped counts as available, as on Linux.
        taken = sum(r.record.label.size_bytes - r.record.label.mapped_bytes for r in live)
        free = room_bytes + Run().reserve_bytes - taken
        return replace(machine, memory=replace(machine.memory, available_bytes=free))

    return Runner(store, Config(), store.paths, probe=probe)


def test_a_model_that_does_not_fit_is_refused_or_forced(runner: Runner) -> None:
    full = {"LOCALLLAMA_RESERVE": "1000GB"}
    refused = cli.run(*ASK, env=full)
    assert (refused.returncode, "--force" in refused.stderr) == (6, True)
    assert runner.running() == []
    forced = cli.data(*ASK, "--force", env=full)
    assert forced["usage"]["completion_tokens"] == 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to a limit of addresses")
def test_a_forced_context_that_cannot_be_had_is_an_error(store: Store) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    asked = ["run", "smol", "Hello", "--ctx", "262144", "--kv-type", "f16", "--threads", "1"]
    with subprocess.Popen(
        [*cli.COMMAND, *asked, "--force"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=limit,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 6
    assert "there is not enough memory for a context of 262144 tokens" in said
    assert "Traceback" not in said
    assert left_in(store.paths.runtime) == []


def test_wishes_that_cannot_be_met_are_refused(store: Store) -> None:
    assert cli.run(*ASK, "--require-gpu").returncode == 6
    assert cli.run(*ASK, "--require-gpu", "--no-gpu").returncode == 2
    assert cli.run(*ASK, "--kv-type", "q9").returncode == 2
    assert cli.run(*ASK, "--gpu-memory", "much").returncode == 2


def test_a_prompt_that_is_too_long_puts_nothing_out(store: Store) -> None:
    asked = cli.run(*ASK, stdin="word " * 700)
    assert (asked.returncode, asked.stdout) == (1, "")
    assert asked.stderr.startswith("Error: the prompt needs")


def test_a_worker_killed_while_idle_is_replaced(
    runner: Runner, store: Store, model: Installed
) -> None:
    with runner.open(model, WANT) as first:
        assert list(first.stream(SHORT, prompt="Hello"))
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: runner.running() == [])
    (store.paths.runtime / "0123456789ab.sock").touch()  # of a front end killed while starting
    (store.paths.runtime / "0123456789ab.json").write_text("{")
    with runner.open(model, WANT) as second:
        assert not second.joined
        *_, done = second.stream(SHORT, prompt="Hello")
        assert isinstance(done, Done)
        assert {path.stem for path in store.paths.runtime.glob("*.[js]*")} == {second.record.id}
    runner.registry.log(first.record.id).unlink()  # that of a crash stays


def test_the_keep_alive_is_a_duration_of_go_or_seconds(tmp_path: Path) -> None:
    texts = {"5m": 300, "1h5m": 3900, "90": 90, "-1": -1, "-1m": -60, "0": 0, "1.5s": 1.5}
    assert {text: parse_duration(text) for text in texts} == texts
    file = tmp_path / "config.toml"
    file.write_text('[run]\nkeep_alive = "10m"\n')
    assert load_config(file, {}).run.keep_alive_seconds == 600
    assert load_config(file, {"OLLAMA_KEEP_ALIVE": "-1"}).run.keep_alive_seconds == -1
    both = {"OLLAMA_KEEP_ALIVE": "1h", "LOCALLLAMA_KEEP_ALIVE": "30"}
    assert load_config(file, both).run.keep_alive_seconds == 30
    file.write_text("[run]\nkeep_alive = 20\n")
    assert load_config(file, {}).run.keep_alive_seconds == 20
    with pytest.raises(InvalidConfig, match=r"OLLAMA_KEEP_ALIVE.*not a duration"):
        load_config(file, {"OLLAMA_KEEP_ALIVE": "5 minutes"})


def test_a_wrong_keep_alive_is_refused(home: Path) -> None:
    wrong = cli.run("run", "smol", "hi", "--keep-alive", "soon")
    assert wrong.returncode == 2
    assert "not a duration" in wrong.stderr


def test_a_stopped_reply_is_explained(runner: Runner, model: Installed) -> None:
    with runner.open(model, WANT) as engine:
        stream = engine.stream(Sampling(), prompt="1, 2, 3,")
        next(stream)
        runner.stop(engine.record)
        with pytest.raises(WorkerDied, match="unloaded by localllama stop"):
            list(stream)
    with pytest.raises(EngineError, match="unloaded"):
        list(engine.stream(SHORT, prompt="Hello"))


def test_a_runtime_folder_that_others_can_read_is_closed(store: Store, model: Installed) -> None:
    store.paths.runtime.mkdir(parents=True)
    store.paths.runtime.chmod(0o777)
    runner = Runner(store, Config(), store.paths)
    with runner.open(model, replace(WANT, keep_alive_seconds=0)):
        assert store.paths.runtime.stat().st_mode & 0o777 == 0o700


def test_a_long_home_gets_a_short_runtime_folder(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 100)
    folder = paths.locate(home).runtime
    assert len(str(folder / "0123456789ab.sock")) < 104
    assert folder == paths.locate(home).runtime != paths.locate(tmp_path / ("y" * 100)).runtime
    assert paths.locate(tmp_path).runtime == tmp_path / "run" or len(str(tmp_path)) > 80

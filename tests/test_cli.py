"""The commands as a shell sees them: output, exit codes, and what a start costs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from localllama import paths
from localllama.cli import output, progress, reply
from localllama.cli.main import COMMANDS, EXIT_CODES, exit_code, main
from localllama.cli.reference import reference
from localllama.errors import LocalLlamaError, NotEnoughDisk, RemoteNotFound
from localllama.progress import Progress
from localllama.store import Installed, Store, StoredFile
from tests.support import cli as shell

HEAVY = ("numpy", "llama_cpp", "textual", "huggingface_hub")


def add_names(count: int) -> Store:
    """Install ``count`` names of one small blob."""
    store = Store(paths.locate())
    arrived = paths.locate().partials / "x"
    arrived.parent.mkdir(parents=True)
    arrived.write_bytes(b"x")
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    model = Installed("m0:latest", (StoredFile("x.gguf", digest, 1),), info={"parameters": 7})
    model = store.install(model, {digest: arrived})
    for number in range(1, count):
        store.save(replace(model, name=f"m{number}:latest"))
    return store


def test_list_imports_nothing_heavy(home: Path) -> None:
    add_names(3)
    program = (
        "import sys; from localllama.cli.main import main; main(['list']);"
        f"sys.exit(any(name in sys.modules for name in {HEAVY!r}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.count("latest") == 3


def test_list_as_json_has_the_promised_keys(home: Path) -> None:
    add_names(1)
    (model,) = shell.data("list")["models"]
    assert set(model) == {
        "name",
        "digest",
        "size_bytes",
        "quantization",
        "family",
        "parameters",
        "context_length",
        "source",
        "modified_at",
    }


def test_names_come_and_go(home: Path) -> None:
    add_names(1)
    assert shell.run("cp", "m0", "copy").returncode == 0
    assert shell.run("cp", "m0", "copy:v2").returncode == 0
    assert [m["name"] for m in shell.data("list")["models"]] == [
        "copy:v2",
        "copy:latest",
        "m0:latest",
    ]
    assert shell.run("rm", "m0", "COPY").returncode == 0
    assert shell.data("verify")["models"] == [{"name": "copy:v2", "ok": True}]
    assert shell.run("rm", "copy:v2").returncode == 0
    assert shell.data("list")["models"] == []
    assert not list(paths.locate().blobs.iterdir())


def test_damage_is_found_with_exit_code_5(home: Path) -> None:
    store = add_names(1)
    store.weights(store.models()[0])[0].write_bytes(b"y")
    result = shell.run("verify")
    assert result.returncode == 5
    assert "m0:latest: damaged" in result.stdout
    assert "pull again" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nonsense",), 2, "no command"),
        (("lst",), 2, "Did you mean list?"),
        (("pull", "../../etc/passwd:x"), 3, "there is no"),
        (("pull", "a/b/c/d"), 2, "too many '/'"),
        (("pull", "llama\x1b[2J"), 2, "control or invisible character"),
        (("pull", "con"), 2, "Windows"),
        (("show", "lama2"), 3, "not installed"),
        (("show", "llama3.2:1b"), 3, "localllama pull llama3.2:1b"),
        (("run", "lama2", "hi"), 3, "llama2"),
        (("rm", "nothing"), 3, "not installed"),
        (("cp", "nothing", "x"), 3, "not installed"),
        (("cp", "nothing", "hf.co/a/b"), 2, "name of your own"),
        (("cp", "x", "x:latest"), 2, "its own name already"),
        (("show", "x", "--license", "--system"), 2, "one at a time"),
        (("run", "smollm2", "hi", "--temperature", "nan"), 2, "temperature must be"),
        (("run", "smollm2", "hi"), 3, "localllama pull smollm2:135m"),
        (("pull", "smollm2", "--limit-rate", "fast"), 2, "not a size"),
        (("pull", "https://example.com/x.zip"), 2, ".gguf"),
        (("update",), 2, "which model?"),
    ],
)
def test_bad_input_has_a_message_and_its_exit_code(
    home: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    result = shell.run(*arguments)
    assert result.returncode == code, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


def test_a_file_that_is_no_gguf_has_exit_code_5(home: Path, tmp_path: Path) -> None:
    page = tmp_path / "model.gguf"
    page.write_text("<!doctype html><title>404</title>")
    for command in (("show", str(page)), ("run", str(page), "hi"), ("pull", str(page))):
        result = shell.run(*command)
        assert result.returncode == 5, result.stderr
        assert "model.gguf" in result.stderr


def test_a_home_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    result = shell.run("cp", "a", "b", env={"LOCALLLAMA_HOME": str(blocked)})
    assert result.returncode == 1, result.stderr
    assert str(blocked) in result.stderr
    assert "Traceback" not in result.stderr


def test_mistakes_in_the_configuration_name_the_place(home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("[network]\nretires = 3\n")
    result = shell.run("list")
    assert result.returncode == 2
    assert "config.toml: network.retires" in result.stderr


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.paint("Error:", "red", Screen()) != "Error:"
    assert output.paint("Error:", "red", io.StringIO()) == "Error:"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.paint("Error:", "red", Screen()) == "Error:"


def test_files_and_models_cannot_command_the_terminal() -> None:
    assert (
        output.printable("a\x1b]0;title\x07b\tc\n\x9b2J") == "a\ufffd]0;title\ufffdb\tc\n\ufffd2J"
    )


def test_output_that_cannot_be_written_is_no_bug(home: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [*shell.COMMAND, "list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert result.returncode == 1
    assert result.stderr == "Error: cannot write the output: No space left on device\n"


def test_a_reader_that_leaves_early_is_no_error(home: Path) -> None:
    add_names(2)
    command = f"{sys.executable} -m localllama list | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"localllama {name}" in text.partition("Example")[2]


def test_the_reference_names_every_command_and_exit_code() -> None:
    page = reference()
    assert all(f"## localllama {name}\n" in page for name in COMMANDS)
    assert "| 130 | interrupted |" in page


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_shells_complete_commands(
    kind: str, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    assert main(["completion", kind]) == 0
    assert "_LOCALLLAMA_COMPLETE" in capsys.readouterr().out


def test_models_are_completed(home: Path) -> None:
    add_names(2)
    words = {"COMP_WORDS": "localllama rm m", "COMP_CWORD": "2"}
    result = shell.run(env={"_LOCALLLAMA_COMPLETE": "bash_complete", **words})
    assert [line.split(",")[1] for line in result.stdout.split()] == ["m1:latest", "m0:latest"]


def test_errors_map_to_the_narrowest_exit_code() -> None:
    assert exit_code(NotEnoughDisk("x")) == 6
    assert exit_code(RemoteNotFound("x")) == 3
    assert exit_code(LocalLlamaError("x")) == 1
    assert len({code for _, code, _ in EXIT_CODES}) == len(EXIT_CODES)


def test_an_unforeseen_error_keeps_its_traceback_in_the_log(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "scan", lambda store: 1 / 0)
    assert main(["list"]) == 1
    assert "crash.log" in capsys.readouterr().err
    assert "ZeroDivisionError" in (home / "logs" / "crash.log").read_text()


def test_progress_is_told_in_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> progress.Generator[Progress, None, int]:
        for done in (0, 40, 80, 100):
            yield Progress("download", "x", done, 100, 20.0)
        yield Progress("download", "x", 100, 100, note="connection lost")
        return 7

    assert progress.follow(work()) == 7
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "pulling x: 0% of 100 B, 20 B/s, 5s left",
        "pulling x: 100% of 100 B, 20 B/s",
        "connection lost",
    ]
    assert progress.follow(work(), json_events=True) == 7
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["done_bytes"] for event in events] == [0, 40, 80, 100, 100]
    assert events[-1]["note"] == "connection lost"


def test_words_are_wrapped_at_the_width_and_nothing_is_lost() -> None:
    wrap = reply.Wrap(20)
    text = "The quick brown fox jumps over the lazy dog\nand a " + "l" * 30 + "ong word"
    shown = "".join(wrap.feed(char) for char in text) + wrap.flush()
    assert shown.split() == text.split()
    assert all(len(line.rstrip()) <= 20 for line in shown.split("\n") if "ll" not in line)


def test_sizes_times_and_numbers_read_as_people_write_them() -> None:
    assert [output.size(n) for n in (0, 999, 98_362_432, 4_100_000_000)] == [
        "0 B",
        "999 B",
        "98 MB",
        "4.1 GB",
    ]
    assert output.count(134_515_008) == "134.5M"
    assert output.duration(0.0123) == "12.3ms"
    assert output.duration(75.5) == "1m15.5s"
    assert output.ago("nonsense") == ""

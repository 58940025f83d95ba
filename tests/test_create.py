"""Modelfiles, and models of one's own made with them: of files, checkpoints and models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllama import create, modelfile
from localllama.errors import InvalidParameter, InvalidTemplate, UnsupportedFile, UsageProblem
from localllama.modelfile import Modelfile, parse
from tests.support import cli
from tests.support.small_llama import write_small_llama


def test_every_instruction() -> None:
    text = '''
# a comment
from ./model.gguf
PARAMETER temperature 0.7
parameter stop "###"
PARAMETER stop   <|end|>
SYSTEM """You are
  a "pirate".
# not a comment"""
Template {{ .Prompt }}
LICENSE first
LICENSE """second
line"""
MESSAGE user "hi there"
message Assistant """Ahoy
matey"""
'''
    assert parse(text) == Modelfile(
        base="./model.gguf",
        template="{{ .Prompt }}",
        system='You are\n  a "pirate".\n# not a comment',
        licences=("first", "second\nline"),
        parameters={"temperature": ["0.7"], "stop": ["###", "<|end|>"]},
        messages=(
            {"role": "user", "content": "hi there"},
            {"role": "assistant", "content": "Ahoy\nmatey"},
        ),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no FROM line"),
        ("SYSTEM hi", "no FROM line"),
        ("FROM", "line 1 .* FROM has no value"),
        ("FROM a\nFORM b", "line 2 .* 'FORM' is no instruction"),
        ('FROM a\nSYSTEM """never\nends', "line 2 .* do not end"),
        ('FROM a\n\nSYSTEM "never', "line 3 .* do not end"),
        ("FROM a\nPARAMETER temperature", "needs a name and a value"),
        ("FROM a\nMESSAGE robot hi", "'robot' is no role"),
    ],
)
def test_mistakes_name_their_line(text: str, problem: str) -> None:
    with pytest.raises(UsageProblem, match=problem):
        parse(text)


def test_encodings_of_editors() -> None:
    text = "FROM a\nSYSTEM Würde"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert parse(modelfile.decode(text.encode(encoding))).system == "Würde"
    with pytest.raises(UsageProblem, match="no text"):
        modelfile.decode(b"FROM \xff\xfe\xfa")


@settings(max_examples=50)
@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse("FROM a\n" + text)
    except UsageProblem:
        return


@given(
    st.text(
        st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
    )
)
def test_quoted_text_comes_back(text: str) -> None:
    text = text.replace('"', "'")
    assert parse(f'FROM a\nSYSTEM """{text}"""\nLICENSE x').system == text


def test_templates() -> None:
    go = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>{{ end }}"
    assert "<|im_start|>" in create.check(Modelfile("a", template=go)).template
    assert ".System" not in create.check(Modelfile("a", template=go)).template
    jinja = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert create.check(Modelfile("a", template=jinja)).template == jinja
    with pytest.raises(InvalidTemplate, match="Go's language"):
        create.check(Modelfile("a", template="{{ .Prompt }} whatever {{ .Response }}"))


def test_what_cannot_be_made() -> None:
    with pytest.raises(InvalidParameter, match="temprature"):
        create.check(Modelfile("a", parameters={"temprature": ["1"]}))
    with pytest.raises(InvalidParameter, match="num_ctx must be a whole number"):
        create.check(Modelfile("a", parameters={"num_ctx": ["many"]}))
    with pytest.raises(InvalidParameter, match="there is no KV type 'q9_0'"):
        create.check(Modelfile("a", parameters={"kv_type": ["q9_0"]}))
    with pytest.raises(InvalidParameter, match="temperature"):
        create.check(Modelfile("a", parameters={"temperature": ["hot"]}))
    with pytest.raises(UnsupportedFile, match="ADAPTER"):
        create.check(Modelfile("a", adapter="lora.gguf"))


# the command


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LOCALLLAMA_HOME", str(tmp_path / "home"))
    write_small_llama(tmp_path / "small.gguf", layers=1)
    yield tmp_path


def made(*arguments: str) -> None:
    result = cli.run("create", *arguments)
    assert result.returncode == 0, result.stderr


def test_create_of_a_file(home: Path) -> None:
    parameters = ("temperature 0.3", "num_ctx 128", "kv_type q8_0")
    lines = ["FROM small.gguf", *(f"PARAMETER {each}" for each in parameters), 'SYSTEM "Arr"\n']
    text = "\n".join(lines)
    (home / "Modelfile").write_text(text + "LICENSE Own terms")
    made("mine", "-f", str(home / "Modelfile"), "--quantize", "q4_k_m")
    facts = cli.data("show", "mine")
    assert facts["quantization"] == "Q4_K_M"
    assert facts["system"] == "Arr"
    assert facts["parameters_set"] == {"temperature": 0.3, "num_ctx": 128, "kv_type": "q8_0"}
    assert facts["licence"]["text"] == "Own terms"
    # Of an installed model: settings stay, weights are quantized again only where that is said.
    refused = cli.run("create", "other", "--from", "mine", "-q", "Q5_0")
    assert refused.returncode == 2 and "--allow-requantize" in refused.stderr
    made("other", "--from", "mine")
    assert cli.data("show", "other")["files"] == facts["files"]
    names = {model["name"] for model in cli.data("list")["models"]}
    assert names == {"mine:latest", "other:latest"}


def test_llama_2_keeps_its_notice(home: Path) -> None:
    made("derived", "--from", str(home / "small.gguf"), "-q", "Q8_0")
    shown = cli.run("show", "derived", "--license").stdout
    assert shown.startswith("Llama 2 is licensed under the LLAMA 2 Community License, Copyright")


def test_create_says_what_is_missing(home: Path) -> None:
    for arguments, code in (
        (("x", "-f", str(home / "none")), 3),
        (("x", "--from", "./none.gguf"), 3),
        (("x", "--from", str(home / "small.gguf"), "--imatrix", "y"), 2),
        (("x", "--from", str(home / "small.gguf"), "-q", "Q9"), 2),
        (("x", "--from", str(home / "small.gguf"), "-q", "IQ1_S"), 2),
    ):
        result = cli.run("create", *arguments)
        assert result.returncode == code, result.stderr
    assert cli.data("list")["models"] == []


def test_quantize_command(home: Path) -> None:
    source, out = str(home / "small.gguf"), home / "out.gguf"
    result = cli.run("quantize", source, str(out), "q8_0", "--json")
    assert result.returncode == 0, result.stderr
    done = json.loads(result.stdout.splitlines()[-1])
    assert done["size_bytes"] == out.stat().st_size and done["quantization"] == "Q8_0"
    assert cli.run("quantize", source, str(out), "q4_0").returncode == 2  # it exists
    assert cli.run("quantize", source, str(out), "q4_0", "--yes").returncode == 0
    assert cli.run("quantize", source).returncode == 2
    plan = cli.data("quantize", source, "--dry-run")
    sizes = {item["quant"]: item["size_bytes"] for item in plan["types"]}
    assert sizes["Q8_0"] == done["size_bytes"] and sizes["Q4_0"] == out.stat().st_size
    lacking = {item["quant"] for item in plan["types"] if item["problem"]}
    assert lacking == {
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")
    }

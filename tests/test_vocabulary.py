"""Vocabularies: llama.cpp splits texts with them as the tokenizers they were made of do."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from localllama.convert.source import Folder
from localllama.convert.vocabulary import TokenType, fields
from localllama.errors import BadFile, UnsupportedFile
from tests.support import tokenization
from tests.support.checkpoints import Shape, write_checkpoint, write_json, write_sentencepiece
from tests.support.smollm2 import write_tiny

SHAPE = Shape(layers=1, vocabulary=420)
SIZE = 400  # of the trained vocabulary; the rest of the embedding's rows is padding


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a trained tokenizer.model."""
    folder = write_checkpoint(tmp_path_factory.mktemp("sentencepiece"), SHAPE)
    write_sentencepiece(folder, SIZE)
    return folder


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """A checkpoint with SmolLM2's tokenizer.json."""
    return write_tiny(tmp_path_factory.mktemp("bpe"), smollm2)


@pytest.fixture
def folder(tmp_path: Path, sentencepiece: Path) -> Path:
    """A copy of the first checkpoint's files that are no weights."""
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((sentencepiece / name).read_bytes())
    return tmp_path


def values(folder: Path, rows: int = SHAPE.vocabulary) -> dict[str, Any]:
    return {
        key.removeprefix("tokenizer."): field.value
        for key, field in fields(Folder.of(folder), rows).items()
    }


def test_sentencepiece_s_pieces_are_llama_cpp_s_tokens(sentencepiece: Path, tmp_path: Path) -> None:
    assert tokenization.of_sentencepiece(sentencepiece, tmp_path, count=200) == []


def test_bpe_s_tokens_are_llama_cpp_s(bpe: Path, tmp_path: Path) -> None:
    assert tokenization.of_bpe(bpe, tmp_path, count=200) == []


def test_a_sentencepiece_vocabulary_without_its_scores_splits_alike(
    sentencepiece: Path, tmp_path: Path
) -> None:
    assert tokenization.of_byte_fallback_bpe(sentencepiece, tmp_path, count=200) == []


def test_rows_without_a_token_are_padded(folder: Path) -> None:
    found = values(folder)
    assert len(found["ggml.tokens"]) == SHAPE.vocabulary
    assert found["ggml.tokens"][SIZE:] == [f"[PAD{n}]" for n in range(SIZE, SHAPE.vocabulary)]
    assert set(found["ggml.token_type"][SIZE:]) == {TokenType.UNUSED}
    assert found["ggml.token_type"][:4] == [3, 3, 3, TokenType.BYTE]


def test_added_tokens_take_their_places(folder: Path) -> None:
    write_json(folder / "added_tokens.json", {"<pad>": 400, "▁word": 401, "beyond": 420})
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] |= {
        "402": {"content": "<|im_start|>"},
        "403": {"content": "▁two▁words"},
    }
    write_json(folder / "tokenizer_config.json", config)
    found = values(folder)
    assert found["ggml.tokens"][400:404] == ["<pad>", "▁word", "<|im_start|>", " two words"]
    user, control = TokenType.USER_DEFINED, TokenType.CONTROL
    assert found["ggml.token_type"][400:404] == [user, user, control, user]


def test_special_tokens_come_of_either_configuration(folder: Path, bpe: Path) -> None:
    found = values(folder)
    assert (found["ggml.bos_token_id"], found["ggml.eos_token_id"]) == (1, 2)
    assert (found["ggml.add_bos_token"], found["ggml.add_eos_token"]) == (True, False)
    found = values(bpe, 49152)
    assert (found["ggml.unknown_token_id"], found["ggml.padding_token_id"]) == (0, 2)
    assert found["ggml.add_bos_token"] is False
    assert (found["ggml.model"], found["ggml.pre"]) == ("gpt2", "smollm")


def test_templates_of_the_post_processor_say_what_is_added(bpe: Path, tmp_path: Path) -> None:
    content = json.loads((bpe / "tokenizer.json").read_text())
    first, last = (
        {"SpecialToken": {"id": text, "type_id": 0}} for text in ("<|im_start|>", "<|im_end|>")
    )
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, one, last],
        "pair": [first, one, last, two, last],
        "special_tokens": {
            text: {"id": text, "ids": [number], "tokens": [text]}
            for number, text in ((1, "<|im_start|>"), (2, "<|im_end|>"))
        },
    }
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((bpe / name).read_bytes())
    content["model"]["merges"] = []  # the pre-tokenizer cannot be told any more
    write_json(tmp_path / "tokenizer.json", content)
    with pytest.raises(UnsupportedFile, match="splits text in a way"):
        values(tmp_path, 49152)
    content["model"]["byte_fallback"] = True
    write_json(tmp_path / "tokenizer.json", content)
    found = values(tmp_path, 49160)
    assert (found["ggml.add_bos_token"], found["ggml.add_eos_token"]) == (True, True)


def test_code_llama_s_infill_ends_with_its_own_token(folder: Path) -> None:
    assert values(folder, 32016)["ggml.eot_token_id"] == 32010


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_chat_templates_are_found_in_files_of_their_own(name: str, folder: Path) -> None:
    write_json(folder / "tokenizer_config.json", {"add_bos_token": True})
    text = "{{ messages }}"
    (folder / name).write_text(
        text if name.endswith("jinja") else json.dumps({"chat_template": text})
    )
    assert values(folder)["chat_template"] == text


def test_several_chat_templates_keep_their_names(folder: Path) -> None:
    templates = [{"name": "default", "template": "A"}, {"name": "tool use", "template": "B"}]
    write_json(folder / "tokenizer_config.json", {"chat_template": templates})
    found = values(folder)
    assert found["chat_template"] == "A"
    assert found["chat_template.tool_use"] == "B"
    assert found["chat_templates"] == ["tool_use"]


def test_a_tokenizer_of_another_size_than_the_embedding_is_told(folder: Path) -> None:
    with pytest.raises(BadFile, match=r"tokenizer\.model has 400 tokens.* rows for 300"):
        values(folder, 300)


def test_damaged_and_missing_tokenizers_are_named(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"\x0a\xff\xff\xff\xff junk")
    with pytest.raises(BadFile, match=r"tokenizer\.model is no SentencePiece model"):
        values(folder)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(BadFile, match=r"tokenizer\.json is missing"):
        values(folder)
    for content in ({"model": {"type": "Unigram"}}, {"model": {"vocab": {"a": "b"}}}, {}, []):
        write_json(folder / "tokenizer.json", content)
        with pytest.raises(BadFile, match=r"tokenizer\.json"):
            values(folder)


def test_mutated_tokenizers_are_told(folder: Path) -> None:
    random = Random(11)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        file = folder / name
        whole = file.read_bytes()
        for _ in range(100):
            data = bytearray(whole)
            for _ in range(random.randint(1, 5)):
                data[random.randrange(len(data))] = random.choice((0, 34, 123, 127, 200, 255))
            file.write_bytes(data[: random.choice((len(data), random.randrange(len(data))))])
            with contextlib.suppress(BadFile):
                assert values(folder)["ggml.tokens"]
        file.write_bytes(whole)
    assert values(folder)["ggml.tokens"]

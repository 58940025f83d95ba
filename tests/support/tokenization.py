"""Compares how llama.cpp splits texts after a conversion with what the tokenizer itself does.

Each function converts a checkpoint and returns the texts that are split otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from tests.support import vocabularies
from tests.support.checkpoints import write_json
from tests.support.conversion import convert
from tests.support.texts import texts


def of_sentencepiece(folder: Path, space: Path, *, count: int) -> list[str]:
    """Compare with tokenizer.model, to which special tokens in a text are text."""
    model = SentencePieceProcessor()
    model.LoadFromFile(str(folder / "tokenizer.model"))
    samples = texts(count, words=("<s>", "</s>", "[INST]"))
    return _otherwise(folder, space, samples, model.EncodeAsIds, parse_special=False)


def of_bpe(folder: Path, space: Path, *, count: int) -> list[str]:
    """Compare with tokenizer.json, which finds special tokens in a text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    samples = texts(count, words=("<|im_start|>", "<|im_end|>", "<repo_name>"))
    return _otherwise(folder, space, samples, encode, parse_special=True)


def of_byte_fallback_bpe(folder: Path, space: Path, *, count: int) -> list[str]:
    """Compare with tokenizer.model after it was rewritten as BPE, which keeps no scores."""
    model = SentencePieceProcessor()
    model.LoadFromFile(str(folder / "tokenizer.model"))
    pieces = {model.IdToPiece(index): index for index in range(model.GetPieceSize())}
    order = sorted(pieces, key=lambda piece: -model.GetScore(pieces[piece]))
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in order
        if not model.IsByte(pieces[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    specials = [
        {"id": index, "content": model.IdToPiece(index), "special": True} for index in range(3)
    ]
    rewritten = space / "rewritten"
    rewritten.mkdir()
    for name in ("config.json", "model.safetensors"):
        (rewritten / name).write_bytes((folder / name).read_bytes())
    content = {"type": "BPE", "byte_fallback": True, "vocab": pieces, "merges": merges}
    write_json(rewritten / "tokenizer.json", {"added_tokens": specials, "model": content})
    samples = texts(count)
    return _otherwise(rewritten, space, samples, model.EncodeAsIds, parse_special=False)


def _otherwise(
    folder: Path,
    space: Path,
    samples: list[str],
    encode: Callable[[str], list[int]],
    *,
    parse_special: bool,
) -> list[str]:
    with vocabularies.of(convert(folder, space / "converted.gguf", "Q8_0")) as vocabulary:
        return [
            text for text in samples if vocabulary.tokenize(text, parse_special) != encode(text)
        ]

"""A checkpoint's vocabulary as the keys ``tokenizer.*`` of a GGUF.

llama.cpp knows two kinds: ``llama`` (SentencePiece: pieces joined by score) and ``gpt2``
(byte-level BPE: pieces joined in the order of merges). Types and padding as in its converter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from localllama.convert import chat_template, pre_tokenizers, special_tokens
from localllama.convert.model import Field
from localllama.convert.source import (
    Source,
    bad,
    decode_json,
    read_json,
    read_optional_json,
    read_text,
)
from localllama.convert.tokenizer_files import (
    TOKENIZER,
    TOKENIZER_CONFIG,
    AddedToken,
    Bpe,
    ModelType,
    TokenizerConfig,
    TokenizerJson,
)
from localllama.errors import UnsupportedFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SENTENCEPIECE = "tokenizer.model"
_ADDED_TOKENS = "added_tokens.json"
_ADDED_SCORE, _PADDING_SCORE = -1000.0, -10000.0
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/=]+ \d+\r?\n")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# Tokens that some models forget to mark as special.
_SPECIAL_TEXTS = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_SPECIAL_ENDS = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))


class TokenType(IntEnum):
    """llama.cpp's kinds of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Token:
    """One token; special ones have a score too."""

    text: str
    score: float
    type: TokenType


def fields(source: Source, rows: int) -> dict[str, Field]:
    """Return every key of the vocabulary, one token for each of the embedding's ``rows``.

    Raises BadFile for a tokenizer that is missing, damaged or of another size, UnsupportedFile
    for one that llama.cpp has no name for.
    """
    config = read_optional_json(source, TOKENIZER_CONFIG, TokenizerConfig) or TokenizerConfig()
    found = _sentencepiece(source, rows, config) or _tokenizer_json(source, rows)
    if config.add_prefix_space is not None:
        found["tokenizer.ggml.add_space_prefix"] = Field("bool", config.add_prefix_space)
    found |= special_tokens.fields(source, rows)
    found |= chat_template.fields(source)
    if rows == 32016:  # Code Llama: where its infill begins to answer
        found.setdefault("tokenizer.ggml.eot_token_id", Field("u32", 32010))
    if rows == 49152:  # Granite's code models, and SmolLM
        found["tokenizer.ggml.add_bos_token"] = Field("bool", False)
    return found


def _sentencepiece(source: Source, rows: int, config: TokenizerConfig) -> dict[str, Field]:
    """Return the keys for tokenizer.model, none if there is no such file in SentencePiece's
    format."""
    if SENTENCEPIECE not in source.sizes:
        return {}
    data = read_text(source, SENTENCEPIECE)
    if _TIKTOKEN.match(data):  # Llama 3's, which tokenizer.json holds too
        return {}
    tokens = _pieces(source, data)
    _check_count(source, SENTENCEPIECE, len(tokens), rows)
    tokens = _padded(tokens, rows)
    added = read_optional_json(source, _ADDED_TOKENS, dict[str, int]) or {}
    for text, index in added.items():
        if 0 <= index < rows:
            tokens[index] = Token(text, _ADDED_SCORE, TokenType.USER_DEFINED)
    for index, token in config.added_tokens_decoder.items():
        if 0 <= index < rows:
            tokens[index] = _added(token.content, token)
    return llama_fields(tokens)


def _pieces(source: Source, data: bytes) -> list[Token]:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()

    def kind(index: int) -> TokenType:
        if model.IsUnknown(index):
            return TokenType.UNKNOWN
        if model.IsControl(index):
            return TokenType.CONTROL
        if model.IsUnused(index):
            return TokenType.UNUSED
        return TokenType.BYTE if model.IsByte(index) else TokenType.NORMAL

    try:
        model.LoadFromSerializedProto(data)
        count = model.GetPieceSize()
        return [Token(model.IdToPiece(i), model.GetScore(i), kind(i)) for i in range(count)]
    except (RuntimeError, UnicodeDecodeError) as error:
        raise bad(source, SENTENCEPIECE, "is no SentencePiece model") from error


def _tokenizer_json(source: Source, rows: int) -> dict[str, Field]:
    if TOKENIZER not in source.sizes:
        raise bad(
            source,
            TOKENIZER,
            "is missing, and so is a tokenizer.model of SentencePiece",
            "copy the tokenizer's files beside the weights",
        )
    tokenizer = read_json(source, TOKENIZER, TokenizerJson)
    model = decode_json(bytes(tokenizer.model), ModelType, source, TOKENIZER)
    if model.type != "BPE":
        raise UnsupportedFile(
            f"{source.path(TOKENIZER)} holds a tokenizer of the kind {model.type}",
            "copy its tokenizer.model beside it, if it was made with SentencePiece",
            str(source.path(TOKENIZER)),
        )
    bpe = decode_json(bytes(tokenizer.model), Bpe, source, TOKENIZER)
    added = {token.id: token for token in tokenizer.added_tokens}
    texts = {index: text for text, index in bpe.vocab.items()}
    texts |= {index: token.content for index, token in added.items()}
    _check_count(source, TOKENIZER, max(texts, default=0) + 1, rows)
    if min(texts, default=0) < 0:
        raise bad(source, TOKENIZER, "gives a token a negative number")
    if bpe.byte_fallback:
        return llama_fields(_scored(bpe, texts, added, rows))
    return _gpt2(source, bpe, texts, added, rows)


def _scored(
    bpe: Bpe, texts: Mapping[int, str], added: Mapping[int, AddedToken], rows: int
) -> list[Token]:
    """Return the tokens of a SentencePiece vocabulary that was rewritten as BPE.

    The scores are gone; the order of the merges, which came of them, makes new ones that give the
    same pieces. llama.cpp's converter writes -1000 for every token, which does not.
    """
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_pairs(bpe)):
        ranks.setdefault(left + right, rank)
    tokens = []
    for index in range(rows):
        text = texts.get(index)
        if text is None:
            tokens.append(_padding(index))
        elif index in added:
            tokens.append(_added(text, added[index]))
        elif _BYTE.fullmatch(text):
            tokens.append(Token(text, _ADDED_SCORE, TokenType.BYTE))
        else:
            score = -float(ranks.get(text, len(ranks)))
            tokens.append(Token(text, score, TokenType.NORMAL))
    return tokens


def _gpt2(
    source: Source,
    bpe: Bpe,
    texts: Mapping[int, str],
    added: Mapping[int, AddedToken],
    rows: int,
) -> dict[str, Field]:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(read_text(source, TOKENIZER))
        name = pre_tokenizers.name_of(tokenizer.encode(pre_tokenizers.TRIAL).ids)
        contents = {index: _normal(tokenizer, token) for index, token in added.items()}
    except Exception as error:  # the library raises no narrower class
        raise bad(source, TOKENIZER, f"is not sound: {error}") from error
    if not name:
        raise UnsupportedFile(
            f"{source.path(TOKENIZER)} splits text in a way that llama.cpp does not know",
            "look for a ready GGUF of this model",
            str(source.path(TOKENIZER)),
        )
    tokens = _padded([], rows)
    for index, text in texts.items():
        if index in added:
            tokens[index] = _added(contents[index], added[index])
        else:
            tokens[index] = Token(text, 0.0, TokenType.NORMAL)
    # The pieces of a pair stand apart from each other by a space, so that none may hold one.
    merges = [" ".join(piece.replace(" ", "\u0120") for piece in pair) for pair in _pairs(bpe)]
    found = _common("gpt2", name, tokens)
    if merges:
        found["tokenizer.ggml.merges"] = Field("[string]", merges)
    return found


def _normal(tokenizer: Tokenizer, token: AddedToken) -> str:
    """Return what becomes of an added token's text on the way to a number and back."""
    if token.normalized:
        return token.content
    numbers = tokenizer.encode(token.content, add_special_tokens=False).ids
    return tokenizer.decode(numbers, skip_special_tokens=False)


def _pairs(bpe: Bpe) -> Iterator[tuple[str, str]]:
    for merge in bpe.merges:
        left, _, right = (
            merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
        )
        yield left, right


def _added(text: str, token: AddedToken) -> Token:
    looks_special = text in _SPECIAL_TEXTS or any(
        text.startswith(begin) and text.endswith(end) for begin, end in _SPECIAL_ENDS
    )
    if token.special or looks_special:
        return Token(text, _ADDED_SCORE, TokenType.CONTROL)
    return Token(text.replace(SPACE, " "), _ADDED_SCORE, TokenType.USER_DEFINED)


def _padded(tokens: Sequence[Token], rows: int) -> list[Token]:
    return [*tokens, *map(_padding, range(len(tokens), rows))]


def _padding(index: int) -> Token:
    return Token(f"[PAD{index}]", _PADDING_SCORE, TokenType.UNUSED)


def _check_count(source: Source, name: str, tokens: int, rows: int) -> None:
    if tokens > rows:
        raise bad(
            source,
            name,
            f"has {tokens} tokens, but the embedding has rows for {rows}",
            "check that tokenizer and weights are of the same model",
        )


def llama_fields(tokens: Sequence[Token]) -> dict[str, Field]:
    """Return the keys of a vocabulary of SentencePiece."""
    scores = Field("[f32]", [token.score for token in tokens])
    return _common("llama", "default", tokens) | {"tokenizer.ggml.scores": scores}


def _common(model: str, name: str, tokens: Sequence[Token]) -> dict[str, Field]:
    return {
        "tokenizer.ggml.model": Field("string", model),
        "tokenizer.ggml.pre": Field("string", name),
        "tokenizer.ggml.tokens": Field("[string]", [token.text for token in tokens]),
        "tokenizer.ggml.token_type": Field("[i32]", [int(token.type) for token in tokens]),
    }

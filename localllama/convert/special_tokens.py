"""Which tokens begin, end and pad a text, and whether they are put around every text.

The rules are those of the gguf package's SpecialVocab, which llama.cpp's converter uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from localllama.convert.hyperparameters import CONFIG
from localllama.convert.model import Field
from localllama.convert.source import Source, read_optional_json
from localllama.convert.tokenizer_files import (
    TOKENIZER,
    TOKENIZER_CONFIG,
    Piece,
    Processor,
    TokenizerConfig,
    TokenizerJson,
)

_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # so spelled in llama.cpp
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "eot": "eot_token_id",
}
_ADDABLE = ("bos", "eos", "sep")

_Id = int | list[int] | None


class _ConfigIds(msgspec.Struct, frozen=True):
    bos_token_id: _Id = None
    eos_token_id: _Id = None
    unk_token_id: _Id = None
    sep_token_id: _Id = None
    pad_token_id: _Id = None
    mask_token_id: _Id = None
    eot_token_id: _Id = None


@dataclass(slots=True)
class _Rules:
    """The text of each kind of special token, and which kinds are added to texts."""

    texts: dict[str, str]
    cls: str = ""
    added: dict[str, bool] = field(default_factory=dict)

    def follow(self, processor: Processor) -> None:
        """Learn from a post-processor of tokenizer.json."""
        for part in processor.processors or [processor]:
            if part.type == "ByteLevel":
                self.added.setdefault("bos", False)
                self.added.setdefault("eos", False)
            elif part.type == "TemplateProcessing":
                self._follow_template(part)

    def _follow_template(self, part: Processor) -> None:
        first = last = ""
        if len(part.single) > 1:
            first, last = part.single[0].special.id, part.single[-1].special.id
        if first:
            self.texts["bos"] = self.texts["bos"] or first
            self.cls = self.cls or first
            self.added["bos"] = first in (self.texts["bos"], self.cls)
        if last:
            if last != self.texts["eos"]:
                self.texts.setdefault("eot", self.texts["eos"])
                self.texts["eos"] = last
            self.added["eos"] = True
        pair = part.pair[bool(first and part.pair and part.pair[0].special.id == first) :]
        if last and pair and pair[-1].special.id == last:
            pair = pair[:-1]
        self._follow_pair(pair, bool(last))

    def _follow_pair(self, pair: Sequence[Piece], has_last: bool) -> None:
        between = pair[1:-1]
        if not between or (pair[0].sequence.id, pair[-1].sequence.id) != ("A", "B"):
            return
        separators = {self.texts["sep"], self.texts["eos"]} - {""}
        is_added = between[0].special.id in separators and not has_last
        if len(between) == 2:
            is_added = is_added or between[1].special.id in separators
        self.added["sep"] = is_added
        if is_added:
            self.texts["sep"] = self.texts["sep"] or self.texts["eos"]


def fields(source: Source, token_count: int) -> dict[str, Field]:
    """Return the keys for the special tokens among ``token_count``; raises BadFile."""
    tokenizer = read_optional_json(source, TOKENIZER, TokenizerJson)
    config = read_optional_json(source, TOKENIZER_CONFIG, TokenizerConfig) or TokenizerConfig()
    rules = _Rules({kind: config.token(kind) for kind in _KEYS if kind != "eot"})
    rules.cls = config.token("cls")
    if tokenizer:
        rules.texts["bos"] = rules.texts["bos"] or rules.cls
        rules.texts["eos"] = rules.texts["eos"] or rules.texts["sep"]
        if tokenizer.post_processor:
            rules.follow(tokenizer.post_processor)
    for kind in _ADDABLE:
        is_added = getattr(config, f"add_{kind}_token")
        if is_added is not None:
            rules.added.setdefault(kind, is_added)
    listed = tokenizer.added_tokens if tokenizer else []
    known = {token.content: token.id for token in reversed(listed)}
    ids = read_optional_json(source, CONFIG, _ConfigIds) or _ConfigIds()
    found: dict[str, Field] = {}
    for kind, text in rules.texts.items():
        for number in (known.get(text), getattr(ids, f"{kind}_token_id")):
            if isinstance(number, int) and 0 <= number < token_count:
                found[f"tokenizer.ggml.{_KEYS[kind]}"] = Field("u32", number)
                break
    for kind, is_added in rules.added.items():
        found[f"tokenizer.ggml.add_{kind}_token"] = Field("bool", is_added)
    return found

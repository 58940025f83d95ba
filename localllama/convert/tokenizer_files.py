"""tokenizer.json and tokenizer_config.json, as far as a GGUF wants to know them.

Formats: https://huggingface.co/docs/tokenizers and transformers' PreTrainedTokenizer.
"""

from __future__ import annotations

import msgspec

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


class AddedToken(msgspec.Struct, frozen=True):
    """A token that is found in text before anything else; ``id`` where the file gives it."""

    content: str
    id: int = -1
    special: bool = False
    normalized: bool = True


class ModelType(msgspec.Struct, frozen=True):
    """The kind of the model of tokenizer.json."""

    type: str = "BPE"


class Bpe(msgspec.Struct, frozen=True):
    """A model of the kind BPE; merges are written in either of two ways."""

    vocab: dict[str, int] = {}
    merges: list[str | tuple[str, str]] = []
    byte_fallback: bool = False


class Named(msgspec.Struct, frozen=True):
    """A reference in a template of the post-processor."""

    id: str = ""


class Piece(msgspec.Struct, frozen=True):
    """A place in a template: a special token, or the sequence A or B."""

    special: Named = msgspec.field(default=Named(), name="SpecialToken")
    sequence: Named = msgspec.field(default=Named(), name="Sequence")


class Processor(msgspec.Struct, frozen=True):
    """What puts special tokens around the tokens of a text."""

    type: str = ""
    single: list[Piece] = []
    pair: list[Piece] = []
    processors: list[Processor] = []


class TokenizerJson(msgspec.Struct, frozen=True):
    """What tokenizer.json says."""

    model: msgspec.Raw
    added_tokens: list[AddedToken] = []
    post_processor: Processor | None = None


class NamedTemplate(msgspec.Struct, frozen=True):
    """One of several chat templates."""

    name: str
    template: str


class TokenizerConfig(msgspec.Struct, frozen=True):
    """What tokenizer_config.json says; tokens are written with or without their flags."""

    add_prefix_space: bool | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_sep_token: bool | None = None
    bos_token: str | AddedToken | None = None
    eos_token: str | AddedToken | None = None
    unk_token: str | AddedToken | None = None
    sep_token: str | AddedToken | None = None
    pad_token: str | AddedToken | None = None
    cls_token: str | AddedToken | None = None
    mask_token: str | AddedToken | None = None
    added_tokens_decoder: dict[int, AddedToken] = {}
    chat_template: str | list[NamedTemplate] | None = None

    def token(self, kind: str) -> str:
        """Return the text of the token of that kind (``bos``), or "" if there is none."""
        found = getattr(self, f"{kind}_token")
        return found.content if isinstance(found, AddedToken) else found or ""

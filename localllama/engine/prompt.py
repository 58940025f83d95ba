"""Turns a conversation into tokens, of which only the template's text may become control tokens.

Knows no llama.cpp: the vocabulary is a handful of values and two functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec

from localllama.engine.api import Message, ToolCall
from localllama.engine.templates import Template
from localllama.errors import InvalidParameter

ROLES = ("system", "user", "assistant", "tool")

# Noncharacters first, then the private use areas: texts hardly ever contain them.
_MARK_POINTS = (range(0xFDD0, 0xFDF0), range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))
_CONTINUED = "\n"  # stands for the text before a fragment


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a prompt needs to know of a model's vocabulary.

    ``tokenize(text, parse_special)`` adds no BOS, ``piece(token)`` returns bytes;
    ``controls`` maps the text of each token that users must not be able to write to its id:
    CONTROL and UNKNOWN ones, and those USER_DEFINED ones that structure a conversation.
    ``fill_tokens`` stand before a prefix, a suffix and what belongs between; () = none.
    """

    tokenize: Callable[[str, bool], list[int]]
    piece: Callable[[int], bytes]
    controls: Mapping[str, int]
    bos_token: str
    eos_token: str
    bos_id: int
    add_bos: bool
    fill_tokens: tuple[int, ...] = ()


def build(
    template: Template,
    messages: Sequence[Message],
    vocabulary: Vocabulary,
    *,
    continue_last: bool = False,
    tools: Sequence[Mapping[str, object]] | None = None,
    extra: Mapping[str, object] | None = None,
) -> list[int]:
    """Return the prompt's tokens, with one BOS at the start if the vocabulary wants one.

    It ends where the assistant's next message begins or, to ``continue_last``, where the text of
    the last one ends. Raises InvalidTemplate, and InvalidParameter for an unknown role.
    """
    for message in messages:
        if message.role not in ROLES:
            raise InvalidParameter(
                f"{message.role!r} is not a role a message can have", f"use {', '.join(ROLES)}"
            )
    said = msgspec.to_builtins(messages)
    marks = _Marks.choose(vocabulary.controls, said, template.source, tools, extra)

    cut = ""
    if continue_last:
        if not messages or messages[-1].role != "assistant":
            raise InvalidParameter(
                "there is no reply to go on with: the last message is not the assistant's"
            )
        messages, cut = messages[:-1], messages[-1].content

    def render(mark: Callable[[str], str]) -> str:
        return template.render(
            [_marked(message, mark) for message in messages],
            bos_token=vocabulary.bos_token,
            eos_token=vocabulary.eos_token,
            add_generation_prompt=True,
            tools=_map_texts(tools, mark),
            extra=_map_texts(extra, mark),
        )

    text = render(marks.on_controls)
    # A template may still put a control text together from parts of messages. It did if there are
    # others than with all the brackets of the messages marked; then those marks must stay.
    strict = render(marks.on_brackets)
    if marks.controls_in(text) != marks.controls_in(strict):
        text = strict
    bos = vocabulary.bos_token
    lacks_bos = vocabulary.add_bos and not (bos and text.startswith(bos))
    fragments = [*marks.split(text), (cut, False)] if cut else marks.split(text)
    return _encode(fragments, vocabulary, [vocabulary.bos_id] if lacks_bos else [])


def fill_in(prefix: str, suffix: str, vocabulary: Vocabulary) -> list[int]:
    """Return the tokens, without BOS, after which the model writes what is between two texts.

    Raises InvalidParameter where the vocabulary has no tokens for that.
    """
    if not vocabulary.fill_tokens:
        raise InvalidParameter(
            "this model cannot fill in text before a suffix",
            "code models such as codellama:7b-code can",
        )
    before, after, middle = vocabulary.fill_tokens
    return [
        before,
        *vocabulary.tokenize(prefix, False),
        after,
        *_continue(suffix, False, vocabulary),
        middle,
    ]


def reuse(
    cached: Sequence[int],
    reply_end: int,
    tokens: Sequence[int],
    piece: Callable[[int], bytes],
    is_control: Callable[[int], bool],
) -> list[int]:
    """Return ``tokens``, spelt like ``cached[:reply_end]`` as far as they say the same.

    ``cached`` is what the KV cache holds: the last prompt and the reply, which may be tokens that
    the tokenizer would not choose for its text. Nothing changes unless the same text and the same
    control tokens end at a border of ``tokens``. O(n).
    """
    shared = 0
    for old, new in zip(cached[:reply_end], tokens, strict=False):
        if old != new:
            break
        shared += 1

    def flatten(ids: Iterable[int]) -> Iterator[list[int]]:
        for token in ids:  # control tokens as numbers that no byte has
            yield [256 + token] if is_control(token) else list(piece(token))

    wanted = list(chain.from_iterable(flatten(cached[shared:reply_end])))
    found = 0
    for index, symbols in enumerate(flatten(tokens[shared:]), start=shared):
        if found == len(wanted):
            return [*cached[:reply_end], *tokens[index:]]
        if wanted[found : found + len(symbols)] != symbols:
            return list(tokens)
        found += len(symbols)
    return [*cached[:reply_end]] if found == len(wanted) else list(tokens)


@dataclass(frozen=True, slots=True)
class _Marks:
    """Characters that occur nowhere else and stand for the brackets of control texts: the first
    and last characters. A marked bracket belongs to a message, not to the template."""

    of_bracket: Mapping[str, str]
    control: re.Pattern[str]
    bracket_of_control: re.Pattern[str]

    @classmethod
    def choose(cls, controls: Iterable[str], *used_in: object) -> _Marks:
        texts = sorted(filter(None, controls), key=len, reverse=True)  # llama.cpp's order
        brackets = sorted({text[0] for text in texts} | {text[-1] for text in texts})
        used: set[str] = set()

        def collect(text: str) -> str:
            used.update(text)
            return text

        _map_texts([texts, *used_in], collect)
        free = (chr(point) for point in chain(*_MARK_POINTS) if chr(point) not in used)
        of_bracket = dict(zip(brackets, free, strict=False))
        if len(of_bracket) < len(brackets):
            raise InvalidParameter("the messages use all of Unicode's private characters")
        any_control = "|".join(map(re.escape, texts)) or "(?!)"
        any_first = "".join({re.escape(text[0]) for text in texts})  # 20 times faster than without
        overlapping = f"(?=[{any_first}])(?={any_control})." if texts else "(?!)"
        return cls(of_bracket, re.compile(any_control), re.compile(overlapping, re.DOTALL))

    def on_controls(self, text: str) -> str:
        """Return ``text`` with the first character of every control text in it marked."""
        return self.bracket_of_control.sub(lambda match: self.of_bracket[match[0]], text)

    def on_brackets(self, text: str) -> str:
        """Return ``text`` with every bracket marked."""
        return text.translate({ord(char): mark for char, mark in self.of_bracket.items()})

    def controls_in(self, text: str) -> list[str]:
        return self.control.findall(text)

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield (fragment, may hold control texts) without marks, cut where they were."""
        brackets = {ord(mark): char for char, mark in self.of_bracket.items()}
        marks = "".join(self.of_bracket.values())
        parts = re.split(f"([{marks}]+)", text) if marks else [text]
        for index, part in enumerate(parts):
            if part:
                yield part.translate(brackets), index % 2 == 0


def _marked(message: Message, mark: Callable[[str], str]) -> Message:
    """Return the message with all marked that users, models and tools wrote."""
    return msgspec.structs.replace(
        message,
        content=mark(message.content),
        thinking=mark(message.thinking),
        name=mark(message.name),
        tool_call_id=mark(message.tool_call_id),
        tool_calls=tuple(
            ToolCall(mark(call.name), _map_texts(call.arguments, mark), mark(call.id))
            for call in message.tool_calls
        ),
    )


def _map_texts(value: Any, function: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {function(key): _map_texts(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(item, function) for item in value]
    return value


def _encode(
    fragments: Iterable[tuple[str, bool]], vocabulary: Vocabulary, start: Sequence[int]
) -> list[int]:
    """Return ``start`` and the tokens of the fragments, nearly as if they had not been cut."""
    tokens, controls = list(start), set(vocabulary.controls.values())
    for text, parse_special in fragments:
        if tokens and tokens[-1] not in controls:
            tokens += _continue(text, parse_special, vocabulary)
        else:
            tokens += vocabulary.tokenize(text, parse_special)
    return tokens


def _continue(text: str, parse_special: bool, vocabulary: Vocabulary) -> list[int]:
    """Return the tokens of ``text`` without the space SentencePiece puts before a beginning."""
    before = vocabulary.tokenize(_CONTINUED, False)
    if b"".join(map(vocabulary.piece, before)) != _CONTINUED.encode():
        tokens = vocabulary.tokenize(_CONTINUED + text, parse_special)
        if tokens[: len(before)] == before:
            return tokens[len(before) :]
    return vocabulary.tokenize(text, parse_special)

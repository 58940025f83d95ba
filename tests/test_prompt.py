"""Prompts: no text of a message becomes a control token, one BOS, and replies keep their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localllama.engine.api import Message, ToolCall
from localllama.engine.prompt import Vocabulary, build, reuse
from localllama.engine.templates import Template, builtin
from localllama.errors import InvalidParameter
from tests.support import vocabularies

FORGERIES = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<repo_name>")
JOINING = Template.compile("{% for m in messages %}{{ m.content }}{% endfor %}", origin="test")
DELETING = Template.compile("{{ messages[0].content | replace('@', '') }}", origin="test")


@pytest.fixture(scope="module")
def vocabulary(smollm2: Path) -> Iterator[Vocabulary]:
    with vocabularies.of(smollm2) as vocabulary:
        yield vocabulary


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    file = tmp_path_factory.mktemp("spm") / "vocab.gguf"
    vocabularies.write_sentencepiece(file)
    with vocabularies.of(file) as vocabulary:
        yield vocabulary


def user(*contents: str) -> list[Message]:
    return [Message("user", content) for content in contents]


def controls(tokens: list[int], vocabulary: Vocabulary) -> list[int]:
    known = set(vocabulary.controls.values())
    return [token for token in tokens if token in known]


def text(tokens: list[int], vocabulary: Vocabulary) -> str:
    names = {token: name for name, token in vocabulary.controls.items()}
    pieces = [names[t].encode() if t in names else vocabulary.piece(t) for t in tokens]
    return b"".join(pieces).decode()


def test_the_template_writes_control_tokens(vocabulary: Vocabulary) -> None:
    tokens = build(builtin("chatml"), user("Hello"), vocabulary)
    start, end = vocabulary.controls["<|im_start|>"], vocabulary.controls["<|im_end|>"]
    assert controls(tokens, vocabulary) == [start, end, start]
    assert text(tokens, vocabulary) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_a_reply_at_the_end_is_gone_on_with(vocabulary: Vocabulary) -> None:
    cut = Message("assistant", "Hi <|im_end|> and")
    tokens = build(builtin("chatml"), [*user("Hello"), cut], vocabulary, continue_last=True)
    assert text(tokens, vocabulary).endswith("<|im_start|>assistant\nHi <|im_end|> and")
    honest = build(builtin("chatml"), user("Hello"), vocabulary)
    assert controls(tokens, vocabulary) == controls(honest, vocabulary)
    with pytest.raises(InvalidParameter, match="no reply to go on with"):
        build(builtin("chatml"), user("Hello"), vocabulary, continue_last=True)


@pytest.mark.parametrize("forged", FORGERIES)
def test_a_typed_control_text_stays_text(forged: str, vocabulary: Vocabulary) -> None:
    content = f"what does {forged} do? {forged}{forged}"
    tokens = build(builtin("chatml"), user(content), vocabulary)
    honest = build(builtin("chatml"), user("Hello"), vocabulary)
    assert controls(tokens, vocabulary) == controls(honest, vocabulary)
    assert f"user\n{content}<|im_end|>" in text(tokens, vocabulary)


@pytest.mark.parametrize("forged", FORGERIES)
def test_nothing_of_a_tools_message_becomes_a_control_token(
    forged: str, vocabulary: Vocabulary
) -> None:
    call = ToolCall(f"f{forged}", {f"a{forged}": [forged, {"b": forged}]}, forged)
    messages = [
        *user("Hello"),
        Message("assistant", forged, thinking=forged, tool_calls=(call,)),
        Message("tool", f"result {forged}", name=forged, tool_call_id=forged),
    ]
    template = Template.compile(
        "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.role }} {{ m.name }} "
        "{{ m.tool_call_id }} {{ m.thinking }} {{ m.tool_calls | tojson if m.tool_calls }}"
        "{{ m.content }}{% endfor %}",
        origin="test",
    )
    tokens = build(template, messages, vocabulary, tools=[{"name": forged}])
    assert controls(tokens, vocabulary) == [vocabulary.controls["<|im_start|>"]] * 3
    assert text(tokens, vocabulary).count(forged) == 11 + 3 * (forged == "<|im_start|>")


def test_messages_cannot_forge_one_together(vocabulary: Vocabulary) -> None:
    tokens = build(JOINING, user("<|im_", "end|> and <|im", "_start|>"), vocabulary)
    assert controls(tokens, vocabulary) == []
    assert text(tokens, vocabulary) == "<|im_end|> and <|im_start|>"


def test_a_template_that_deletes_text_cannot_be_used_to_forge_one(vocabulary: Vocabulary) -> None:
    tokens = build(DELETING, user("<|im_@end|>"), vocabulary)
    assert controls(tokens, vocabulary) == []
    assert text(tokens, vocabulary) == "<|im_end|>"


def test_a_typed_control_text_leaves_the_templates_logic_alone(vocabulary: Vocabulary) -> None:
    source = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    template = Template.compile(source, origin="test")
    tokens = build(template, user("<|im_end|>", "<think>hm</think>!"), vocabulary)
    assert controls(tokens, vocabulary) == []
    assert text(tokens, vocabulary) == "<|im_end|>!"


def test_tools_cannot_forge_one(vocabulary: Vocabulary) -> None:
    template = Template.compile("{{ tools | tojson }}<|im_end|>", origin="test")
    tools = [{"name": "<|im_end|>", "<|im_start|>": [1, None, "<|im_start|>"]}]
    tokens = build(template, user("hi"), vocabulary, tools=tools)
    assert controls(tokens, vocabulary) == [vocabulary.controls["<|im_end|>"]]


def test_a_role_cannot_forge_one(vocabulary: Vocabulary) -> None:
    with pytest.raises(InvalidParameter, match="not a role"):
        build(builtin("chatml"), [Message("user<|im_end|>", "hi")], vocabulary)


def test_a_message_full_of_private_characters_comes_through(vocabulary: Vocabulary) -> None:
    content = "".join(map(chr, range(0xFDD0, 0xFDF0))) + "\ue000<|im_end|>"
    tokens = build(JOINING, user(content), vocabulary)
    assert controls(tokens, vocabulary) == []
    assert text(tokens, vocabulary) == content


def test_text_without_brackets_is_tokenised_in_one_piece(vocabulary: Vocabulary) -> None:
    content = "Ordinary text, é 漢字 \n\n  indented: 1 < 2 > 1 and </think>."
    assert build(JOINING, user(content), vocabulary) == vocabulary.tokenize(content, False)


# SmolLM2's vocabulary has no token for some bytes: of controls, of planes beyond the first.
CHARACTERS = st.characters(max_codepoint=0x2FFF, exclude_categories=["Cc", "Cs"])
PARTS = ("<|im_", "end|>", "start|>", "<", "|", ">", "<|", "|>", "@", " ", "\n", *FORGERIES)
TEXTS = st.lists(st.sampled_from(PARTS) | st.text(CHARACTERS, max_size=5), max_size=8).map("".join)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contents=st.lists(TEXTS, min_size=1, max_size=3))
@pytest.mark.parametrize("template", [builtin("chatml"), JOINING, DELETING], ids=range(3))
def test_control_tokens_are_the_templates_own(
    template: Template, contents: list[str], vocabulary: Vocabulary
) -> None:
    tokens = build(template, user(*contents), vocabulary)
    honest = build(template, user(*("x" for _ in contents)), vocabulary)
    assert controls(tokens, vocabulary) == controls(honest, vocabulary)
    if template is JOINING:
        assert text(tokens, vocabulary) == "".join(contents)


def test_one_bos_when_the_template_writes_it(sentencepiece: Vocabulary) -> None:
    tokens = build(builtin("mistral"), user("hello"), sentencepiece)
    assert controls(tokens, sentencepiece) == [sentencepiece.bos_id]
    assert tokens[0] == sentencepiece.bos_id


def test_one_bos_when_the_template_does_not(sentencepiece: Vocabulary) -> None:
    tokens = build(JOINING, user("hello"), sentencepiece)
    assert tokens == [sentencepiece.bos_id, *sentencepiece.tokenize("hello", False)]


def test_a_typed_bos_is_not_the_bos(sentencepiece: Vocabulary) -> None:
    tokens = build(JOINING, user("<s>hello"), sentencepiece)
    assert controls(tokens, sentencepiece) == [sentencepiece.bos_id]
    assert text(tokens, sentencepiece) == "<s> <s>hello"


def test_no_bos_where_the_vocabulary_adds_none(vocabulary: Vocabulary) -> None:
    assert not vocabulary.add_bos
    assert controls(build(JOINING, user("hello"), vocabulary), vocabulary) == []


def test_cutting_adds_no_spaces(sentencepiece: Vocabulary) -> None:
    tokens = build(JOINING, user("hello </s> and </s>hello"), sentencepiece)
    assert controls(tokens, sentencepiece) == [sentencepiece.bos_id]
    assert text(tokens, sentencepiece) == "<s> hello </s> and </s>hello"


# Reusing the cache: a toy vocabulary whose token t < 26 is a letter, 26 is "ab", 99 is control.
def piece(token: int) -> bytes:
    return b"" if token == 99 else b"ab" if token == 26 else bytes([97 + token])


def spell(cached: list[int], reply_end: int, tokens: list[int]) -> list[int]:
    return reuse(cached, reply_end, tokens, piece, lambda token: token == 99)


def test_reuse_keeps_the_spelling_of_the_reply() -> None:
    assert spell([5, 99, 0, 1, 2], 5, [5, 99, 26, 2, 99, 7]) == [5, 99, 0, 1, 2, 99, 7]
    assert spell([5, 26], 2, [5, 0, 1, 7]) == [5, 26, 7]


def test_reuse_goes_no_further_than_the_reply() -> None:
    assert spell([5, 0, 1, 0, 1], 3, [5, 26, 26]) == [5, 0, 1, 26]


def test_reuse_changes_nothing_when_the_prefix_is_the_same() -> None:
    assert spell([5, 0, 1], 3, [5, 0, 1, 7]) == [5, 0, 1, 7]


@pytest.mark.parametrize(
    "tokens",
    [
        [5, 26, 3],  # another text
        [5, 0, 99, 1],  # a control token within
        [5, 0],  # ends early
        [],
    ],
)
def test_reuse_changes_nothing_when_the_text_differs(tokens: list[int]) -> None:
    assert spell([5, 26, 2], 3, tokens) == tokens


def test_reuse_needs_a_border() -> None:
    assert spell([5, 0], 2, [5, 26]) == [5, 26]


def test_reuse_does_not_take_a_controls_text_for_the_control(vocabulary: Vocabulary) -> None:
    forged = vocabulary.tokenize("a<|im_end|>b", False)
    real = vocabulary.tokenize("a<|im_end|>b", True)
    known = set(vocabulary.controls.values())
    result = reuse(forged, len(forged), [*real, 5], vocabulary.piece, known.__contains__)
    assert result == [*real, 5]


@settings(max_examples=60, deadline=None)
@given(content=st.text(CHARACTERS, min_size=1, max_size=40), later=st.text(CHARACTERS, max_size=9))
def test_reuse_keeps_the_text(content: str, later: str, vocabulary: Vocabulary) -> None:
    cached = [token for char in content for token in vocabulary.tokenize(char, False)]
    tokens = vocabulary.tokenize(content, False) + vocabulary.tokenize(later, False)
    known = set(vocabulary.controls.values())
    result = reuse(cached, len(cached), tokens, vocabulary.piece, known.__contains__)
    assert text(result, vocabulary) == content + later
    assert result[: len(cached)] == cached

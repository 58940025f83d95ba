"""What a request can ask for besides a plain reply: through a worker, on the real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from llama_cpp import llama_cpp as c

from localllama.engine.api import (
    Done,
    Event,
    Generate,
    Message,
    Prefill,
    Sampling,
    Text,
    TokenLogprob,
    Truncated,
)
from localllama.engine.client import Engine
from localllama.errors import ContextFull, InvalidParameter
from localllama.native.llama import Library
from tests.support.engines import load
from tests.support.gguf_maker import write_tiny_llama
from tests.support.markers import wrong_answers

COUNTING = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,"
GREEDY = Sampling(temperature=0, max_tokens=8)
WORDS = "word " * 400


@pytest.fixture(scope="module")
def engine(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(smollm2, tmp_path_factory.mktemp("worker"), 512, slots=4) as loaded:
        yield loaded


def ask(engine: Engine, request: Generate) -> tuple[list[Event], Done]:
    *events, done = engine.generate(request)
    assert isinstance(done, Done)
    return events, done


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def logprobs(events: list[Event]) -> list[TokenLogprob]:
    return [entry for event in events if isinstance(event, Text) for entry in event.logprobs]


# --- log probabilities ---------------------------------------------------------------------------


def test_log_probabilities_are_a_softmax_of_the_logits(engine: Engine, smollm2: Path) -> None:
    # Neither the temperature nor what is forbidden changes what the model itself finds probable.
    sampling = Sampling(temperature=0, max_tokens=6, logprobs=4, logit_bias={28: -100})
    events, done = ask(engine, Generate(sampling, prompt=COUNTING, return_tokens=True))
    entries = logprobs(events)
    assert len(entries) == done.usage.completion_tokens == 6
    assert b"".join(entry.piece for entry in entries).decode() == text(events)
    assert tuple(entry.token for entry in entries) == done.tokens[-6:]

    model = Library(lambda _: None).load([str(smollm2)], gpu_layers=0, on_progress=lambda _: None)
    context = model.context(128, threads=1, outputs=6)
    context.add(0, 0, done.tokens[:-1], 6)
    assert context.decode()
    for index, entry in enumerate(entries):
        output = len(done.tokens) - 1 - 6 + index
        logits = c.llama_get_logits_ith(context._pointer, output)
        scores = np.ctypeslib.as_array(logits, shape=(model.vocab.size,)).astype(np.float64)
        expected = scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
        assert entry.logprob == pytest.approx(expected[entry.token], abs=0.02)
        values = [other.logprob for other in entry.top]
        assert values == sorted(values, reverse=True)
        assert values == pytest.approx(sorted(expected, reverse=True)[:4], abs=0.02)
    context.close()
    model.close()


def test_no_log_probability_of_what_a_stop_string_takes_away(engine: Engine) -> None:
    sampling = Sampling(temperature=0, max_tokens=30, logprobs=0, stop=("15,",))
    events, done = ask(engine, Generate(sampling, prompt=COUNTING, return_tokens=True))
    assert (done.reason, done.stop) == ("stop", "15,")
    entries = logprobs(events)
    assert b"".join(entry.piece for entry in entries).decode() == text(events)
    assert all(entry.top == () for entry in entries)
    # The tokens of the stop string were generated: a later request may go on from them.
    assert engine.detokenize(done.tokens).decode().endswith("14, 15,")


def test_more_log_probabilities_than_there_may_be_are_refused(engine: Engine) -> None:
    with pytest.raises(InvalidParameter, match="logprobs"):
        engine.generate(Generate(Sampling(logprobs=21), prompt="Hello"))


# --- prompts -------------------------------------------------------------------------------------


def test_a_reply_that_is_begun_is_gone_on_with(engine: Engine) -> None:
    conversation = (Message("user", "Count to ten."), Message("assistant", "1, 2, 3, 4, "))
    request = Generate(GREEDY, conversation, continue_last=True)
    prompt = engine.detokenize(engine.tokenize(request)).decode()
    assert prompt.endswith("assistant\n1, 2, 3, 4, ")
    assert text(ask(engine, request)[0]).startswith("5, 6")
    with pytest.raises(InvalidParameter, match="not the assistant's"):
        ask(engine, Generate(GREEDY, conversation[:1], continue_last=True))


def test_tokens_of_an_exchange_are_gone_on_from(engine: Engine) -> None:
    _, first = ask(engine, Generate(GREEDY, prompt=COUNTING, return_tokens=True))
    assert engine.detokenize(first.tokens).decode().startswith(COUNTING)
    request = Generate(GREEDY, prompt=" and so on", tokens=first.tokens, return_tokens=True)
    _, second = ask(engine, request)
    assert second.tokens[: len(first.tokens)] == first.tokens
    assert second.usage.cached_tokens >= len(first.tokens) - 1
    assert ask(engine, Generate(GREEDY, tokens=first.tokens))[1].usage.completion_tokens > 0
    with pytest.raises(InvalidParameter, match="no token 49152"):
        ask(engine, Generate(GREEDY, tokens=(49152,)))
    with pytest.raises(InvalidParameter, match="empty"):
        ask(engine, Generate(GREEDY))


def test_only_a_prompt_that_says_so_has_control_tokens(engine: Engine) -> None:
    plain = Generate(GREEDY, prompt="<|im_start|>user")
    written = Generate(GREEDY, prompt="<|im_start|>user", parse_special=True)
    assert len(engine.tokenize(written)) == 2 < len(engine.tokenize(plain))
    assert engine.tokenize("<|im_start|>user") == engine.tokenize(plain)
    assert engine.detokenize(engine.tokenize("ü🦙 <|im_end|>")) == "ü🦙 <|im_end|>".encode()


def test_a_prompt_is_cut_only_where_that_is_asked_for(engine: Engine) -> None:
    with pytest.raises(ContextFull):
        ask(engine, Generate(GREEDY, prompt=f"Begin {WORDS * 2} end", reserve_tokens=100))
    tokens = engine.tokenize(f"Begin {WORDS * 2} end")
    request = Generate(
        Sampling(temperature=0, max_tokens=1),
        prompt=f"Begin {WORDS * 2} end",
        reserve_tokens=100,
        truncate=True,
        keep_tokens=2,
        return_tokens=True,
    )
    events, done = ask(engine, request)
    assert events[0] == Truncated(0, len(tokens) - 412)
    assert isinstance(events[1], Prefill)
    assert done.usage.prompt_tokens == 412
    assert done.tokens[:412] == tokens[:2] + tokens[-410:]


def test_a_model_without_the_tokens_cannot_fill_in(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="cannot fill in"):
        ask(engine, Generate(GREEDY, prompt="def f(", suffix="return x"))
    with pytest.raises(InvalidParameter, match="needs a prompt"):
        ask(engine, Generate(GREEDY, suffix="return x"))

    def gap(writer: GGUFWriter) -> None:
        for key, token in (("pre", 10), ("suf", 11), ("mid", 12)):
            writer.add_uint32(f"tokenizer.ggml.fim_{key}_token_id", token)

    (file,) = write_tiny_llama(tmp_path / "gap.gguf", extra=gap)
    with load(file, tmp_path / "worker", 64) as filler:
        tokens = filler.tokenize(Generate(GREEDY, prompt="ab", suffix="cd"))
        bos, before, *prefix, after, third, fourth, middle = tokens
        assert (bos, before, after, middle) == (1, 10, 11, 12)
        # A beginning has SentencePiece's space before it, the suffix must not.
        assert filler.detokenize(prefix) == b" ab"
        assert filler.detokenize((third, fourth)) == b"cd"


def test_a_request_may_bring_its_template(engine: Engine) -> None:
    messages = (Message("user", "Hello"),)
    own = engine.tokenize(Generate(GREEDY, messages, template="Q: {{ messages[0].content }}\nA:"))
    assert engine.detokenize(own) == b"Q: Hello\nA:"
    named = engine.tokenize(Generate(GREEDY, messages, template="alpaca"))
    assert b"### Instruction:\nHello" in engine.detokenize(named)


# --- several -------------------------------------------------------------------------------------


def test_one_of_two_streams_is_cancelled(engine: Engine) -> None:
    on_and_on = Sampling(temperature=0, ignore_eos=True)
    one, other = engine.stream(on_and_on, prompt="A, B,"), engine.stream(GREEDY, prompt=COUNTING)
    next(one)
    next(other)
    one.cancel()
    *_, cancelled = one
    *_, done = other
    assert isinstance(cancelled, Done)
    assert isinstance(done, Done)
    assert (cancelled.reason, done.reason) == ("cancelled", "length")


def test_many_requests_get_their_own_answers(engine: Engine) -> None:
    assert wrong_answers(engine, range(60)) == []

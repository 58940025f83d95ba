"""Embeddings through a worker, compared with a direct computation on llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import PoolingType
from numpy.typing import NDArray

from localllama import gguf_file
from localllama.engine import embedding
from localllama.engine.api import Done, Sampling, Text, Vector
from localllama.engine.client import Engine, Stream
from localllama.errors import ContextFull, InvalidParameter, UnsupportedFile
from localllama.native import measure
from localllama.native.llama import Library
from localllama.native.outputs import embeddings
from localllama.plan.formula import Compute, Model, cells_for
from tests.support import tiny_bert
from tests.support.engines import load

Floats = NDArray[np.float64]
LONG = " ".join(f"number {i}" for i in range(45))
TEXTS = ["The capital of France is Paris.", LONG, "ü🦙 日本語"]
SENTENCE = "the llama eats grass and sleeps"


@pytest.fixture(scope="module")
def engine(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(smollm2, tmp_path_factory.mktemp("worker"), 256) as loaded:
        yield loaded


def collect(stream: Stream[Vector | Done]) -> tuple[list[Vector], Done]:
    *vectors, done = stream
    assert isinstance(done, Done)
    return [vector for vector in vectors if isinstance(vector, Vector)], done


def numbers(vector: Vector) -> Floats:
    return np.array(vector.numbers)


def directly(model_file: Path, text: str) -> Floats:
    """What the last layer makes of each token of ``text``, evaluated at once."""
    model = Library(lambda _: None).load(
        [str(model_file)], gpu_layers=0, on_progress=lambda _: None
    )
    tokens = model.vocab.tokenize(text, add_special=True)
    context = model.context(
        512, threads=1, outputs=len(tokens), batch_tokens=len(tokens), embeddings=True
    )
    try:
        context.add(0, 0, tokens, len(tokens))
        assert context.decode()
        return embeddings(context, len(tokens)).astype(np.float64)
    finally:
        context.close()
        model.close()


def unit(vector: Floats) -> Floats:
    return vector / np.linalg.norm(vector)


def test_a_chat_models_vectors_are_the_mean_of_its_tokens(engine: Engine, smollm2: Path) -> None:
    vectors, done = collect(engine.embed(TEXTS))
    assert done.reason == "stop"
    assert done.usage.prompt_tokens == sum(vector.prompt_tokens for vector in vectors)
    for text, vector in zip(TEXTS, vectors, strict=True):
        rows = directly(smollm2, text)
        assert len(rows) == vector.prompt_tokens
        assert numbers(vector) @ unit(rows.mean(axis=0)) > 0.999
    assert vectors[1].prompt_tokens > 120  # more than a step


def test_length_and_dimensions_are_as_asked(engine: Engine) -> None:
    (whole,), _ = collect(engine.embed(TEXTS[:1]))
    (raw,), _ = collect(engine.embed(TEXTS[:1], normalise=False))
    (short,), _ = collect(engine.embed(TEXTS[:1], dimensions=64))
    assert np.linalg.norm(numbers(whole)) == pytest.approx(1)
    assert np.linalg.norm(numbers(raw)) > 2
    assert unit(numbers(raw)) @ numbers(whole) == pytest.approx(1, abs=1e-3)
    assert len(whole.numbers) == 576
    assert unit(numbers(whole)[:64]) @ numbers(short) == pytest.approx(1, abs=1e-3)


def test_tokens_are_as_good_as_their_text(engine: Engine) -> None:
    tokens = engine.tokenize(TEXTS[0])
    (one, other), _ = collect(engine.embed([TEXTS[0], tokens]))
    assert numbers(one) @ numbers(other) > 0.999


def test_a_text_longer_than_the_context_is_refused_or_cut(engine: Engine) -> None:
    long = "word " * 300
    count = len(engine.tokenize(long))
    with pytest.raises(ContextFull, match=f"text 2 of 2 has {count} tokens.* 256") as caught:
        collect(engine.embed(["short", long]))
    assert (caught.value.needed_tokens, caught.value.available_tokens) == (count, 256)
    (vector,), _ = collect(engine.embed([long], truncate=True))
    assert (vector.prompt_tokens, vector.truncated_tokens) == (256, count - 256)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [((), "no text"), (("a", ""), "text 2 of 2 is empty"), (((1, -5),), "no token -5")],
)
def test_what_cannot_be_embedded_is_named(
    engine: Engine, inputs: tuple[str | tuple[int, ...], ...], problem: str
) -> None:
    with pytest.raises(InvalidParameter, match=problem):
        collect(engine.embed(inputs))
    with pytest.raises(InvalidParameter, match="dimensions"):
        collect(engine.embed(["a"], dimensions=-1))


def test_a_reply_goes_on_beside_embeddings(engine: Engine) -> None:
    reply = engine.stream(Sampling(temperature=0, ignore_eos=True), prompt="1, 2, 3, 4,")
    while not isinstance(next(reply), Text):
        pass
    texts = [f"This is sentence number {i}." for i in range(12)]
    vectors, _ = collect(engine.embed(texts))
    assert len(vectors) == 12
    reply.cancel()
    *_, done = reply
    assert isinstance(done, Done)
    # At least a token for every few texts: a step computes vectors no longer than replies.
    assert (done.reason, done.usage.completion_tokens > 4) == ("cancelled", True)


def test_two_requests_take_turns(engine: Engine) -> None:
    many = engine.embed([f"{LONG} {i}" for i in range(6)])
    assert isinstance(next(many), Vector)
    (one,), done = collect(engine.embed(["Hello"]))
    assert (done.reason, len(one.numbers)) == ("stop", 576)
    many.cancel()
    rest, end = collect(many)
    assert end.reason == "cancelled"
    assert len(rest) < 5
    assert collect(engine.embed(["Hello"]))[1].reason == "stop"


@pytest.mark.parametrize("pooling", [PoolingType.MEAN, PoolingType.CLS])
def test_an_encoder_makes_embeddings_and_nothing_else(tmp_path: Path, pooling: PoolingType) -> None:
    file = tmp_path / "bert.gguf"
    tiny_bert.write(file, pooling)
    rows = directly(file, SENTENCE)
    assert len(rows) == 8  # [CLS], six words, [SEP]
    expected = rows.mean(axis=0) if pooling is PoolingType.MEAN else rows[0]
    with load(file, tmp_path / "worker", 64) as engine:
        vectors, _ = collect(engine.embed([SENTENCE, "the llama sleeps"] * 20))
        assert all(numbers(vector) @ unit(expected) > 0.999 for vector in vectors[::2])
        assert numbers(vectors[1]) @ unit(expected) < 0.999
        (cut,), _ = collect(engine.embed(["llama " * 80], truncate=True))
        assert (cut.prompt_tokens, cut.truncated_tokens) == (64, 18)
        with pytest.raises(InvalidParameter, match="cannot reply"):
            list(engine.stream(Sampling(), prompt="Hello"))


def test_a_model_that_ranks_has_no_vectors(tmp_path: Path) -> None:
    file = tmp_path / "ranker.gguf"
    tiny_bert.write(file, PoolingType.RANK)
    with (
        load(file, tmp_path / "worker", 64) as engine,
        pytest.raises(UnsupportedFile, match="ranks"),
    ):
        collect(engine.embed([SENTENCE]))


def test_the_memory_beside_the_plan_is_what_the_documentation_says(smollm2: Path) -> None:
    assert embedding.batch_tokens(32000, 4 * 32 * 4096) == 128  # Llama-2-7B: the KV cache decides
    assert embedding.batch_tokens(128256, 4 * 32 * 1024) == 130  # Llama-3-8B: the scores do
    assert embedding.batch_tokens(32000, 0) == 512
    sizes = Model.of(gguf_file.read_split_info([smollm2]), ())
    per_token = sizes.sums[-1].kv_bytes(1, "f16")
    native = Library(lambda _: None).load([str(smollm2)], gpu_layers=0, on_progress=lambda _: None)
    assert native.kv_token_bytes == per_token
    native.close()
    batch = embedding.batch_tokens(sizes.vocabulary, per_token)
    options = measure.Options(100 + batch, 0, batch_tokens=batch, sequences=32, outputs=batch)
    found, cells = measure.measure([smollm2], options), cells_for(100 + batch)
    assert found.kv_total_bytes == cells * per_token
    compute = Compute(sizes, cells, batch, batch, flash_attention=True, pipelined=False)
    assert sum(found.compute_bytes.values()) == pytest.approx(compute.layers_bytes(), rel=0.1)

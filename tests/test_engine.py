"""The engine on the real model, and its pure parts: sampling parameters, text, wire, cache."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllama.engine import sampling, wire
from localllama.engine.api import (
    Cancel,
    Done,
    Event,
    Generate,
    Message,
    Prefill,
    Request,
    Sampling,
    Text,
    TokenLogprob,
)
from localllama.engine.client import Engine
from localllama.engine.text import TextStream
from localllama.errors import (
    BadFile,
    ContextFull,
    DoesNotFit,
    EngineError,
    InvalidParameter,
    StoreError,
)
from tests.support.engines import left_in, load

GREEDY = Sampling(temperature=0, max_tokens=20)
COUNTING = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,"  # a base text that goes on and on


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def engine(smollm2: Path, logs: Path) -> Iterator[Engine]:
    with load(smollm2, logs) as loaded:
        yield loaded


def collect(events: Iterator[Event]) -> tuple[str, Done]:
    text = ""
    for event in events:
        if isinstance(event, Text):
            text += event.text
    assert isinstance(event, Done)
    return text, event


def user(text: str) -> Message:
    return Message("user", text)


# --- replies -------------------------------------------------------------------------------------


def test_greedy_gives_the_same_text_twice(engine: Engine) -> None:
    first, done = collect(engine.stream(GREEDY, messages=[user("Name three colours.")]))
    second, again = collect(engine.stream(GREEDY, messages=[user("Name three colours.")]))
    assert first.strip()
    assert second == first
    assert 0 < done.usage.completion_tokens <= 20
    # Even a prompt that is cached as a whole has its last token evaluated again.
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1


def test_a_seed_repeats_a_reply_and_another_changes_it(engine: Engine) -> None:
    texts = [
        collect(
            engine.stream(
                # Not over the whole vocabulary: there the last bits of the sums, which depend on
                # where in the cache a token lies, decide between neighbours.
                Sampling(temperature=1.2, seed=seed, max_tokens=20),
                messages=[user("Tell me a story.")],
            )
        )[0]
        for seed in (7, 7, 7, 8)
    ]
    # The first run reads the whole prompt in one batch, the later ones only its last token.
    assert texts[1] == texts[2] != texts[3]


def test_a_cut_reply_is_gone_on_with(engine: Engine) -> None:
    ask = [user("Name three colours.")]
    whole, _ = collect(engine.stream(GREEDY, messages=ask))
    cut, _ = collect(engine.stream(Sampling(temperature=0, max_tokens=8), messages=ask))
    begun = [*ask, Message("assistant", cut)]
    rest, done = collect(engine.stream(GREEDY, messages=begun, continue_last=True))
    assert (cut + rest).startswith(whole)
    assert done.usage.cached_tokens >= done.usage.prompt_tokens - 2


def test_the_seed_that_was_chosen_is_told(engine: Engine) -> None:
    given = collect(engine.stream(Sampling(seed=7, max_tokens=1), prompt=COUNTING))[1].seed
    chosen = [collect(engine.stream(Sampling(max_tokens=1), prompt=COUNTING))[1].seed for _ in "ab"]
    assert given == 7
    assert None not in chosen
    assert chosen[0] != chosen[1]


def test_the_second_turn_evaluates_only_what_is_new(engine: Engine) -> None:
    turn = [user("Say hello in one short sentence.")]
    text, first = collect(engine.stream(GREEDY, messages=turn))
    turn += [Message("assistant", text), user("And now say goodbye.")]
    _, second = collect(engine.stream(GREEDY, messages=turn))
    known = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage.cached_tokens >= known - 1
    assert second.usage.prompt_tokens - second.usage.cached_tokens < 25


def test_events_come_in_order_and_add_up(engine: Engine) -> None:
    words = " ".join(f"word{i}" for i in range(160))
    events = list(engine.stream(GREEDY, prompt=words))
    prefills = [event for event in events if isinstance(event, Prefill)]
    assert [event.done for event in prefills] == sorted(event.done for event in prefills)
    assert len(prefills) == 3  # nothing, one batch, all
    done = events[-1]
    assert isinstance(done, Done)
    assert prefills[-1].done == prefills[-1].total == done.usage.prompt_tokens
    timings = done.timings
    assert 0 < timings.prefill_seconds <= timings.first_token_seconds <= timings.total_seconds
    assert timings.prefill_seconds + timings.decode_seconds <= timings.total_seconds


def test_max_tokens_ends_with_length(engine: Engine) -> None:
    text, done = collect(engine.stream(Sampling(temperature=0, max_tokens=5), prompt=COUNTING))
    assert (done.reason, done.usage.completion_tokens) == ("length", 5)
    assert text
    text, done = collect(engine.stream(Sampling(max_tokens=0), prompt=COUNTING))
    assert (text, done.reason, done.usage.completion_tokens) == ("", "length", 0)


@pytest.mark.parametrize(("begin", "length"), [(0, 2), (3, 9), (10, 1), (5, 20)])
def test_stop_strings_work_across_tokens(engine: Engine, begin: int, length: int) -> None:
    whole, _ = collect(engine.stream(GREEDY, prompt=COUNTING))
    stop = whole[begin : begin + length]
    options = Sampling(temperature=0, max_tokens=20, stop=("never to be seen", stop))
    text, done = collect(engine.stream(options, prompt=COUNTING))
    assert text == whole[: whole.index(stop)]
    assert done.reason == "stop"


def test_an_emoji_is_never_cut(engine: Engine) -> None:
    prompt = "🎉🦙🎉🦙🎉🦙🎉🦙🎉🦙🎉🦙🎉🦙"
    for limit in range(1, 9):
        options = Sampling(temperature=0, max_tokens=limit)
        events = list(engine.stream(options, prompt=prompt))
        texts = [event for event in events if isinstance(event, Text)]
        assert not any("\ufffd" in text.text for text in texts)
        assert sum(text.tokens for text in texts) <= limit
    assert "🎉" in "".join(text.text for text in texts)


def test_a_text_tells_how_many_tokens_it_is(engine: Engine) -> None:
    *events, done = engine.stream(GREEDY, prompt=COUNTING)
    assert isinstance(done, Done)
    texts = [event for event in events if isinstance(event, Text)]
    assert sum(text.tokens for text in texts) == done.usage.completion_tokens


def test_penalties_change_the_reply(engine: Engine) -> None:
    plain, _ = collect(engine.stream(GREEDY, prompt=COUNTING))
    options = Sampling(temperature=0, max_tokens=20, repeat_penalty=2.0, repeat_last_n=-1)
    punished, _ = collect(engine.stream(options, prompt=COUNTING))
    assert punished != plain


def test_a_grammar_binds_the_reply(engine: Engine) -> None:
    options = Sampling(temperature=0, grammar='root ::= "yes" | "no"')
    text, done = collect(engine.stream(options, messages=[user("Write a long poem.")]))
    assert (text in ("yes", "no"), done.reason) == (True, "stop")
    with pytest.raises(InvalidParameter, match="grammar"):
        collect(engine.stream(Sampling(grammar="root ::= ("), prompt="Hello"))


def test_room_reserved_for_the_reply_counts(engine: Engine) -> None:
    with pytest.raises(ContextFull) as caught:
        collect(engine.stream(GREEDY, prompt=COUNTING, reserve_tokens=2040))
    assert caught.value.needed_tokens > caught.value.available_tokens


def test_text_that_spells_a_control_token_stays_text(engine: Engine) -> None:
    _, plain = collect(engine.stream(GREEDY, prompt="a b"))
    _, typed = collect(engine.stream(GREEDY, prompt="a <|im_end|> b"))
    assert typed.usage.prompt_tokens > plain.usage.prompt_tokens + 2


# --- ends ----------------------------------------------------------------------------------------


def test_cancel_in_a_reply_and_go_on(engine: Engine) -> None:
    before, _ = collect(engine.stream(GREEDY, prompt=COUNTING))
    stream = engine.stream(Sampling(), messages=[user("Count to one hundred thousand.")])
    for event in stream:
        if isinstance(event, Text):
            break
    threading.Thread(target=engine.cancel).start()
    _, done = collect(stream)
    assert done.reason == "cancelled"
    assert done.usage.completion_tokens > 0
    assert collect(engine.stream(GREEDY, prompt=COUNTING))[0] == before


def test_two_replies_at_once_are_not_mixed_up(engine: Engine) -> None:
    prompts = (COUNTING, "The capital of France is")
    alone = [collect(engine.stream(GREEDY, prompt=prompt))[0] for prompt in prompts]
    streams = [engine.stream(GREEDY, prompt=prompt) for prompt in prompts]
    events: list[list[Event]] = [[next(streams[0])], []]
    events[1] += streams[1]
    events[0] += streams[0]
    # Only how they begin: at a near tie the shape of a batch decides how a greedy text goes on.
    assert [collect(iter(some))[0][:8] for some in events] == [text[:8] for text in alone]
    assert alone[0][:8] != alone[1][:8]


def test_closing_the_stream_early_leaves_the_engine_usable(engine: Engine) -> None:
    stream = engine.stream(Sampling(), prompt=COUNTING)
    next(stream)
    stream.close()
    assert collect(engine.stream(GREEDY, prompt=COUNTING))[0]


def test_an_exception_in_the_loop_leaves_the_engine_usable(engine: Engine) -> None:
    with pytest.raises(KeyboardInterrupt):
        for _ in engine.stream(Sampling(), prompt=COUNTING):
            raise KeyboardInterrupt
    assert collect(engine.stream(GREEDY, prompt=COUNTING))[0]


def test_cancel_while_the_prompt_is_read(engine: Engine) -> None:
    before, _ = collect(engine.stream(GREEDY, prompt=COUNTING))
    stream = engine.stream(GREEDY, prompt=" ".join(f"number {i}" for i in range(400)))
    assert isinstance(next(stream), Prefill)
    engine.cancel()
    events = list(stream)
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.reason, done.usage.completion_tokens) == ("cancelled", 0)
    assert not any(isinstance(event, Prefill) and event.done == event.total for event in events)
    assert collect(engine.stream(GREEDY, prompt=COUNTING))[0] == before


def test_cancel_without_a_reply_does_nothing(engine: Engine) -> None:
    engine.cancel()
    _, done = collect(engine.stream(GREEDY, prompt=COUNTING))
    assert done.reason == "length"


def test_a_full_context_ends_the_reply(smollm2: Path, logs: Path) -> None:
    with load(smollm2, logs, context_length=60) as small:
        assert small.ready.context_length == 60
        text, done = collect(small.stream(Sampling(temperature=0), prompt=COUNTING))
        assert done.reason == "context"
        # The last token was sampled, and needs no room in the context any more.
        assert done.usage.prompt_tokens + done.usage.completion_tokens == 61
        assert text
        with pytest.raises(ContextFull) as caught:
            collect(small.stream(GREEDY, prompt=COUNTING * 3))
        assert caught.value.needed_tokens > caught.value.available_tokens == 60
        assert collect(small.stream(GREEDY, prompt="Hello"))[0]


# --- wrong requests and files --------------------------------------------------------------------


def test_an_empty_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidParameter, match="empty"):
        collect(engine.stream(GREEDY, prompt=""))


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": None}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"min_p": float("inf")}, "min_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"seed": 2**32}, "seed"),
        ({"seed": True}, "seed"),
        ({"stop": ("",)}, "stop"),
        ({"stop": 3}, "stop"),
        ({"max_tokens": -2}, "max_tokens"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_range(
    engine: Engine, wrong: dict[str, object], name: str
) -> None:
    with pytest.raises(InvalidParameter, match=f"^{name} must be ") as caught:
        engine.stream(Sampling(**wrong), prompt="Hello")  # type: ignore[arg-type]  # on purpose
    assert sampling.lookup(name).range in caught.value.message


def test_a_cut_file_is_refused(smollm2: Path, logs: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with smollm2.open("rb") as whole:
        cut.write_bytes(whole.read(4 << 20))
    with pytest.raises(BadFile, match=r"cut\.gguf") as caught:
        load(cut, logs)
    assert "corrupted or incomplete" in caught.value.message


def test_a_file_of_another_kind_is_refused(logs: Path, tmp_path: Path) -> None:
    other = tmp_path / "letter.gguf"
    other.write_text("Dear Sir or Madam, " * 50)
    with pytest.raises(BadFile, match=r"letter\.gguf"):
        load(other, logs)


def test_a_missing_file_is_refused(logs: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.gguf.*No such file"):
        load(tmp_path / "none.gguf", logs)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on address space")
def test_a_context_beyond_the_memory_is_refused(smollm2: Path, logs: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (5 << 30, hard))  # the worker inherits it
    try:
        with pytest.raises(DoesNotFit, match="262144"):
            load(smollm2, logs, 262_144)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("context_length", [0, -1, 262_145, 2**40])
def test_an_impossible_context_length_is_refused(
    smollm2: Path, logs: Path, context_length: int
) -> None:
    with pytest.raises(InvalidParameter, match="context length"):
        load(smollm2, logs, context_length)


def test_loading_reports_progress_and_closing_leaves_nothing(smollm2: Path, tmp_path: Path) -> None:
    me = psutil.Process()
    open_files = me.num_fds()
    fractions: list[float] = []
    engine = load(smollm2, tmp_path, 256, on_progress=fractions.append)
    worker = psutil.Process(engine.pid)
    (log,) = (tmp_path / "logs").iterdir()
    assert log.stat().st_mode & 0o777 == 0o600
    assert "llama_model_loader" in log.read_text()
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.[js]*")} == {0o600}
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert engine.ready.trained_context_length == 8192
    engine.close()
    engine.close()
    assert not worker.is_running()
    assert me.num_fds() == open_files
    assert left_in(tmp_path) == []
    with pytest.raises(EngineError, match="unloaded"):
        next(engine.stream(GREEDY, prompt="Hello"))


# --- sampling parameters -------------------------------------------------------------------------


def test_the_table_describes_every_field_of_sampling() -> None:
    names = [parameter.name for parameter in sampling.PARAMETERS]
    assert [*names, "grammar", "schema", "logprobs"] == list(Sampling.__struct_fields__)
    assert all(parameter.help.endswith(".") for parameter in sampling.PARAMETERS)
    sampling.validate(Sampling())


def test_the_first_layer_that_sets_a_parameter_counts() -> None:
    resolved = sampling.resolve(
        [
            ("request", {"temperature": 0.1, "seed": None}),
            ("chat", {"temperature": 0.2, "num_predict": 7}),
            ("model", {"stop": ["a", "b"], "seed": "5"}),
            ("file", {"temp": 0.3}),
            ("catalog", {"top_p": 1, "temp": 99}),
        ]
    )
    assert resolved.sampling == Sampling(
        temperature=0.1, max_tokens=7, stop=("a", "b"), seed=5, top_p=1.0
    )
    assert resolved.origins["temperature"] == "request"
    assert resolved.origins["max_tokens"] == "chat"
    assert resolved.origins["seed"] == "model"
    assert resolved.origins["top_p"] == "catalog"
    assert resolved.origins["min_p"] == sampling.DEFAULT


def test_a_value_that_does_not_count_is_not_judged() -> None:
    layers = [("request", {"top_p": 0.5}), ("file", {"top_p": 7.0})]
    assert sampling.resolve(layers).sampling.top_p == 0.5
    with pytest.raises(InvalidParameter, match=r"^file: top_p must"):
        sampling.resolve(layers[1:])
    with pytest.raises(InvalidParameter, match=r"^top_p must"):  # not "request: top_p"
        sampling.resolve([("request", {"top_p": 7.0}), *layers])


def test_a_seed_of_minus_one_is_a_fresh_one() -> None:
    assert sampling.resolve([("request", {"seed": -1})]).sampling.seed is None


def test_an_unknown_parameter_suggests_a_near_one() -> None:
    with pytest.raises(InvalidParameter, match="'temprature'") as caught:
        sampling.lookup("temprature")
    assert caught.value.hint == "did you mean temperature?"
    assert sampling.known({"num_ctx": 4096, "top_k": 3, "num_gpu": 1}) == {"top_k": 3}


# --- text ----------------------------------------------------------------------------------------

_TEXTS = st.text(alphabet="ab🦙é", max_size=30)


@settings(deadline=None)
@given(_TEXTS, st.lists(st.text(alphabet="ab🦙é", min_size=1, max_size=4), max_size=3), st.data())
def test_text_stream_gives_everything_before_a_stop_string(
    whole: str, stop: list[str], data: st.DataObject
) -> None:
    stream, rest = TextStream(stop), whole.encode()
    given: list[Text | None] = []
    pieces: list[bytes] = []
    while rest and not stream.stop:
        size = data.draw(st.integers(1, len(rest)))
        for piece in (b"", rest[:size])[data.draw(st.integers(0, 1)) :]:  # some tokens are empty
            pieces.append(piece)
            given.append(stream.feed(TokenLogprob(len(pieces), piece, -1.0)))
        rest = rest[size:]
    given.append(stream.finish())
    texts = [text for text in given if text is not None]
    shown = "".join(text.text for text in texts)
    assert whole.startswith(shown)
    assert not any(text in shown for text in stop)
    assert bool(stream.stop) == any(text in whole for text in stop)
    # Each token comes once and in order, with or before the text after its beginning.
    out = [logprob.piece for text in texts for logprob in text.logprobs]
    assert out == pieces[: len(out)]
    if stream.stop:
        starts = list(accumulate(map(len, pieces), initial=0))
        assert all(start < len(shown.encode()) for start in starts[: len(out)])
        assert b"".join(out).startswith(shown.encode())
    else:
        assert (shown, out) == (whole, pieces)


def test_half_a_character_at_the_end_is_dropped() -> None:
    stream = TextStream(())
    assert stream.feed("a🦙".encode()[:3]) == Text("a")
    assert stream.finish() is None


# --- wire ----------------------------------------------------------------------------------------


def test_messages_survive_any_cut_on_the_wire() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sent = [Generate(GREEDY, (user("hé 🦙"),)), Cancel(), Generate(Sampling(), prompt="x" * 9)]
        for message in sent:
            wire.send(ours, message)
        stream = theirs.recv(1 << 16)
        receiver = wire.Receiver[Request](theirs, Request)
        got = []
        for _ in sent:
            size = 4 + int.from_bytes(stream[:4], "little")
            pieces, stream = stream[:size], stream[size:]
            sender = threading.Thread(target=_dribble, args=(ours, pieces))
            sender.start()
            got.append(receiver.receive())
            sender.join()
        assert got == sent
        ours.close()
        assert receiver.receive() is None


def _dribble(sock: socket.socket, data: bytes) -> None:
    for i in range(len(data)):
        sock.sendall(data[i : i + 1])


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\x01\x00\x00\x00\xc1", b"\x02\x00\x00\x00{}"]
)
def test_bytes_that_are_no_message_are_an_error(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        with pytest.raises(EngineError):
            wire.Receiver[Request](theirs, Request).receive()


def test_a_seed_repeats_a_reply_whatever_was_said_before(engine: Engine) -> None:
    sampling = Sampling(seed=1, temperature=0, max_tokens=60)

    def ask(text: str) -> str:
        return collect(engine.stream(sampling, messages=[user(text)]))[0]

    first = ask("Name three colours")
    ask("Tell me a story about three colours.")
    assert ask("Name three colours") == first
    assert ask("Name three colours") == first

"""Several requests at once on the real model; and the pure parts: cache, pace, speculation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from localllama.engine.api import (
    Done,
    Failed,
    Generate,
    LoadOptions,
    Message,
    Prefill,
    Sampling,
    SnapshotOptions,
    Truncated,
)
from localllama.engine.cache import Cache, common_prefix
from localllama.engine.pace import Pace
from localllama.engine.scheduler import Output, Scheduler, Ticket
from localllama.engine.speculation import LONGEST_DRAFT, PromptLookup, Speculation
from localllama.native.llama import Context, Library, Model
from tests.support.engines import wait_until

COUNTING = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,"
LETTERS = "A, B, C, D, E, F, G, H, I, J,"
WEEK = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday, Tuesday,"
ENDLESS = Sampling(temperature=0, ignore_eos=True)


def greedy(max_tokens: int) -> Sampling:
    return Sampling(temperature=0, max_tokens=max_tokens)


class Answer:
    """What came of one request."""

    def __init__(self, desk: Desk, request: Generate, until: Callable[[Answer], bool]) -> None:
        self.ticket = Ticket(request, lambda _, output: self._put(output))
        self.outputs: list[Output] = []
        self.reached = threading.Event()  # what ``until`` waits for
        self._until = until
        self._desk = desk
        self._end: SimpleQueue[Done | Failed] = SimpleQueue()
        desk.scheduler.submit(self.ticket)

    def _put(self, output: Output) -> None:
        self.outputs.append(output)
        self._desk.log.append((self, output))
        if isinstance(output, Done | Failed):
            self._end.put(output)
        if isinstance(output, Done | Failed) or self._until(self):
            self.reached.set()

    @property
    def pieces(self) -> list[bytes]:
        return [output for output in self.outputs if isinstance(output, bytes)]

    @property
    def text(self) -> str:
        return b"".join(self.pieces).decode()

    def end(self) -> Done | Failed:
        return self._end.get(timeout=100)

    def done(self) -> Done:
        end = self.end()
        assert isinstance(end, Done), end
        return end

    def cancel(self) -> Done:
        self._desk.scheduler.cancel(self.ticket)
        return self.done()


class Desk:
    """A scheduler at work; ``log`` is all that it put out, in order."""

    def __init__(self, model: Path, **options: object) -> None:
        # One thread: with two, decoding waits at barriers for whatever else the machine is doing.
        chosen = {"context_length": 2048, "threads": 1, **options}
        self.scheduler = Scheduler(LoadOptions(paths=(str(model),), **chosen), lambda _: None)  # type: ignore[arg-type]  # the names are checked by msgspec
        self.log: list[tuple[Answer, Output]] = []
        threading.Thread(target=self.scheduler.run, daemon=True).start()

    def ask(
        self,
        prompt: str,
        sampling: Sampling,
        *,
        until: Callable[[Answer], bool] = lambda _: False,
        reserve_tokens: int = 0,
    ) -> Answer:
        return Answer(self, Generate(sampling, prompt=prompt, reserve_tokens=reserve_tokens), until)

    def chat(self, sampling: Sampling, *messages: tuple[str, str]) -> Answer:
        request = Generate(sampling, tuple(Message(*message) for message in messages))
        return Answer(self, request, lambda _: False)

    def running(self, prompt: str, sampling: Sampling, pieces: int = 1) -> Answer:
        """Ask, and wait until the reply has begun."""
        answer = self.ask(prompt, sampling, until=lambda answer: len(answer.pieces) >= pieces)
        assert answer.reached.wait(100)
        return answer


@pytest.fixture(scope="module")
def desk(smollm2: Path) -> Desk:
    """Two at once."""
    return Desk(smollm2, slots=2)


@pytest.fixture(scope="module")
def plain(smollm2: Path) -> Desk:
    """One at a time, without guesses."""
    return Desk(smollm2, slots=1, speculate=False)


# --- several at once -----------------------------------------------------------------------------


def test_replies_at_once_are_those_given_alone(desk: Desk, plain: Desk) -> None:
    prompts = [COUNTING, LETTERS, WEEK]
    alone = []
    for prompt in prompts:
        answer = plain.ask(prompt, greedy(16))
        answer.done()
        alone.append(answer.text)
    together = [desk.ask(prompt, greedy(16)) for prompt in prompts]
    assert [answer.done().reason for answer in together] == ["length"] * 3
    assert [answer.text for answer in together] == alone


def test_requests_beyond_the_slots_wait_in_order(desk: Desk) -> None:
    begun = len(desk.log)
    answers = [desk.ask(f"{COUNTING} {i},", greedy(4)) for i in range(6)]
    for answer in answers:
        answer.done()
    log = desk.log[begun:]
    first = [next(i for i, (who, _) in enumerate(log) if who is answer) for answer in answers]
    last = [max(i for i, (who, _) in enumerate(log) if who is answer) for answer in answers]
    assert first == sorted(first)
    for i in range(2, 6):
        assert sum(end < first[i] for end in last) >= i - 1  # one of the two places was free


def test_a_beginning_that_another_reply_holds_is_shared(desk: Desk) -> None:
    story = "Once upon a time there was a king who had three sons and a castle by the sea. "
    elder = desk.running(story + "The eldest", ENDLESS)
    younger = desk.ask(story + "The youngest", greedy(4))
    usage = younger.done().usage
    assert elder.cancel().reason == "cancelled"
    assert usage.prompt_tokens > 20
    assert usage.cached_tokens >= usage.prompt_tokens - 4


def test_a_conversation_in_between_does_not_cost_the_cache(plain: Desk) -> None:
    turns = [("user", "Name three colours.")]
    first = plain.chat(greedy(12), *turns)
    known = first.done().usage
    plain.ask(WEEK, greedy(2)).done()
    turns += [("assistant", first.text), ("user", "And three animals.")]
    usage = plain.chat(greedy(2), *turns).done().usage
    assert usage.cached_tokens >= known.prompt_tokens + known.completion_tokens - 1


def test_a_long_prompt_does_not_stop_a_running_reply(desk: Desk) -> None:
    speaking = desk.running(COUNTING, ENDLESS, pieces=3)
    prompt = " ".join(f"number {i}" for i in range(60))
    reading = desk.ask(prompt, greedy(1))
    total = reading.done().usage.prompt_tokens
    speaking.cancel()
    assert total > 150
    mine = [i for i, (who, _) in enumerate(desk.log) if who is reading]
    between = desk.log[mine[0] : mine[-1]]
    spoken = sum(who is speaking for who, output in between if isinstance(output, bytes))
    # A step takes 12 plain ones at most, and a token of a prompt a tenth of one, on any CPU.
    assert spoken >= total / 110
    reports = [output.done for output in reading.outputs if isinstance(output, Prefill)]
    assert reports == sorted(set(reports))
    assert reports[-1] == total


# --- ends ----------------------------------------------------------------------------------------


def test_cancel_ends_one_reply_and_leaves_the_other(desk: Desk) -> None:
    one = desk.running(COUNTING, ENDLESS)
    other = desk.running(LETTERS, ENDLESS)
    waiting = desk.ask(WEEK, greedy(2))
    assert one.cancel().reason == "cancelled"
    assert waiting.done().reason == "length"
    count = len(other.pieces)
    assert other.cancel().usage.completion_tokens >= count > 0


def test_cancel_takes_effect_while_a_prompt_is_read(plain: Desk) -> None:
    long = " ".join(f"number {i}" for i in range(400))
    answer = plain.ask(long, greedy(2), until=lambda answer: bool(answer.outputs))
    assert answer.reached.wait(100)
    done = answer.cancel()
    assert (done.reason, done.usage.completion_tokens) == ("cancelled", 0)
    after = plain.ask(COUNTING, greedy(3))
    assert after.done().reason == "length"


def test_cancel_of_a_waiting_request(plain: Desk) -> None:
    running = plain.running(COUNTING, ENDLESS)
    waiting = plain.ask(LETTERS, greedy(4))
    assert waiting.cancel().usage.completion_tokens == 0
    assert running.cancel().reason == "cancelled"


def test_a_wrong_request_fails_alone(desk: Desk) -> None:
    running = desk.running(COUNTING, ENDLESS)
    wrong = [
        desk.ask("Hello", Sampling(grammar="root ::= (")),
        desk.ask("", greedy(4)),
        desk.ask("Hello", greedy(4), reserve_tokens=4000),
        desk.chat(greedy(4), ("pope", "Hello")),
    ]
    codes = [end.code for end in (answer.end() for answer in wrong) if isinstance(end, Failed)]
    assert codes == ["invalid_parameter", "invalid_parameter", "context_full", "invalid_parameter"]
    assert running.cancel().reason == "cancelled"


# --- the pool of cells ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowded(smollm2: Path) -> Desk:
    return Desk(smollm2, slots=2, context_length=128)


def test_two_replies_that_outgrow_the_pool_are_both_finished(crowded: Desk, plain: Desk) -> None:
    alone = plain.ask(COUNTING, greedy(60))
    alone.done()
    one, other = crowded.ask(COUNTING, greedy(60)), crowded.ask(WEEK, greedy(60))
    assert (one.done().reason, other.done().reason) == ("length", "length")
    assert len(one.pieces) == len(other.pieces) == 60
    assert one.text == alone.text


def test_a_prompt_without_room_waits_for_it(crowded: Desk) -> None:
    running = crowded.running(COUNTING, greedy(70))
    waiting = crowded.ask(WEEK, greedy(2), reserve_tokens=100)
    waiting.done()
    assert running.done().reason == "length"
    order = [who for who, output in crowded.log if isinstance(output, Done)]
    assert order.index(running) < order.index(waiting)


def test_one_conversation_may_fill_the_pool(crowded: Desk) -> None:
    done = crowded.ask(COUNTING, ENDLESS).done()
    assert done.reason == "context"
    assert done.usage.prompt_tokens + done.usage.completion_tokens == 129


def test_a_conversation_that_had_to_go_comes_back_from_disk(smollm2: Path, tmp_path: Path) -> None:
    options = SnapshotOptions(str(tmp_path), 100_000_000, "smollm2")
    desk = Desk(smollm2, slots=1, context_length=512, snapshots=options)
    long = " ".join(f"{i}," for i in range(1, 90))
    first = desk.ask(long, greedy(4))
    usage = first.done().usage
    assert usage.prompt_tokens > 256
    desk.ask(long.replace("1,", "2,"), greedy(1)).done()
    wait_until(lambda: bool(list(tmp_path.glob("*.kv"))))
    back = desk.ask(long, greedy(4))
    assert back.done().usage.cached_tokens == usage.prompt_tokens - 1
    assert back.text == first.text


# --- speculation ---------------------------------------------------------------------------------


def test_guessing_changes_no_token(desk: Desk, plain: Desk) -> None:
    line = "The quick brown fox jumps over the lazy dog near the bank of the river. "
    prompt = line * 4
    on_and_on = Sampling(temperature=0, max_tokens=64, ignore_eos=True)
    guessed, slow = desk.ask(prompt, on_and_on), plain.ask(prompt, on_and_on)
    assert (guessed.done().reason, slow.done().reason) == ("length", "length")
    assert guessed.text == slow.text
    sampled = Sampling(seed=3, temperature=0.3, max_tokens=40)
    one, other = desk.ask(prompt, sampled), plain.ask(prompt, sampled)
    one.done(), other.done()
    assert one.text == other.text


def test_prompt_lookup_copies_on() -> None:
    lookup = PromptLookup()
    assert lookup.propose([1, 2, 3, 4, 5, 1], 3) == []
    assert lookup.propose([1, 2, 3, 4, 5, 1, 2], 3) == [3, 4, 5]
    # It keeps to the place that was right so far, though 3, 4 now comes from elsewhere too.
    assert lookup.propose([1, 2, 3, 4, 5, 1, 2, 3], 2) == [4, 5]
    assert lookup.propose([1, 2, 3, 4, 5, 1, 2, 3, 9], 2) == []
    assert PromptLookup().propose([7, 8, 7, 8], 5) == [7, 8, 7, 8, 7]
    assert PromptLookup().propose([], 5) == []


def right_guesses(speculation: Speculation, count: int) -> int:
    for streak in range(count):
        speculation.record_guess(streak, right=True)
    return count


def test_long_streaks_make_long_drafts_where_they_are_cheap() -> None:
    speculation = Speculation()
    assert speculation.draft_tokens(0, LONGEST_DRAFT) == 0
    speculation.record_step(1, 0.1)
    for tokens in (2, 3, 5, 9, 17, 33):
        speculation.record_step(tokens, 0.1 + tokens * 0.01)
    streak = right_guesses(speculation, 60)
    assert speculation.draft_tokens(streak, LONGEST_DRAFT) == LONGEST_DRAFT
    assert speculation.draft_tokens(streak, 10) == 8
    assert speculation.draft_tokens(streak, 0) == 0
    for _ in range(100):
        speculation.record_guess(0, right=False)
    assert speculation.draft_tokens(0, LONGEST_DRAFT) == 0
    assert speculation.draft_tokens(streak, LONGEST_DRAFT) == LONGEST_DRAFT


def test_guessing_stops_where_a_step_costs_as_much_as_its_tokens() -> None:
    speculation = Speculation()
    speculation.record_step(1, 0.1)
    for tokens in (2, 3, 5, 9, 17, 33):
        speculation.record_step(tokens, 0.1 * tokens)
    assert speculation.draft_tokens(right_guesses(speculation, 60), LONGEST_DRAFT) <= 1


# --- pace ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plain", "longest"),
    [(0.100, 0.500), (0.012, 0.120), (0.001, 0.012)],
    ids=["five plain ones", "as people read", "twelve plain ones"],
)
def test_pace_keeps_steps_short(plain: float, longest: float) -> None:
    pace = Pace()
    assert pace.tokens(running=1) == 0  # a plain step must be measured first
    pace.record(1, 0, plain)
    each = 0.7 * plain
    for _ in range(50):
        read = pace.tokens(1)
        pace.record(1, read, plain + each * read)
    assert longest - 2 * each < plain + each * read <= longest
    assert pace.tokens(running=2) == 0
    pace.record(1, 0, 1.0)  # a hiccup
    assert read - 1 <= pace.tokens(1) <= read + 1


# --- cache ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Model:
    return Library(lambda _: None).load([str(smollm2)], gpu_layers=0, on_progress=lambda _: None)


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    context = model.context(256, threads=1, sequences=3, outputs=3)
    yield context
    context.close()


def evaluate(context: Context, cache: Cache, prompt: list[int]) -> int:
    """Return how many tokens of ``prompt`` were not held; it is held and idle afterwards."""
    sequence = cache.claim(prompt)
    rest = prompt[len(sequence.tokens) :]
    context.add(sequence.id, len(sequence.tokens), rest, 1)
    assert context.decode()
    cache.extend(sequence, rest)
    cache.release(sequence)
    return len(rest)


def test_cells_of_a_common_beginning_count_once(context: Context) -> None:
    cache = Cache(context, 20, 3, divisible=True)
    begin = [5, 6, 7, 8]
    assert evaluate(context, cache, [*begin, 10, 11]) == 6
    assert evaluate(context, cache, [*begin, 12]) == 1
    assert evaluate(context, cache, [*begin, 12, 13]) == 1  # goes on in place
    assert evaluate(context, cache, [*begin, 14]) == 1
    assert cache.used_cells == 4 + 2 + 2 + 1
    assert cache.make_room(13)  # the first one goes, but its beginning stays with the others
    assert [len(sequence.tokens) for sequence in cache.sequences] == [0, 6, 5]
    assert cache.used_cells == 4 + 2 + 1
    assert evaluate(context, cache, [20, 21]) == 2
    assert cache.make_room(20)
    assert cache.used_cells == 0
    assert not cache.make_room(21)


def test_a_live_sequence_is_not_evicted(context: Context) -> None:
    cache = Cache(context, 10, 3, divisible=True)
    live = cache.claim([1, 2, 3])
    cache.extend(live, [1, 2, 3])
    assert not cache.fits([9] * 8, 0)
    assert cache.fits([9] * 6, 1)
    assert cache.fits([1, 2, 3, 4, 5, 6, 7], 3)
    assert not cache.make_room(8)
    assert live.tokens == [1, 2, 3]


def test_what_cannot_be_divided_is_continued_or_forgotten(context: Context) -> None:
    cache = Cache(context, 20, 2, divisible=False)
    assert evaluate(context, cache, [1, 2, 3]) == 3
    assert evaluate(context, cache, [1, 2, 4]) == 3
    assert evaluate(context, cache, [1, 2, 3, 4]) == 1


def test_a_copied_sequence_goes_on_elsewhere(context: Context, model: Model) -> None:
    tokens = model.vocab.tokenize(COUNTING)
    cache = Cache(context, 256, 3, divisible=True)
    evaluate(context, cache, tokens)
    state = context.state(0)
    assert len(state) == context.state_bytes(0)
    assert context.restore(2, state)
    cache.clear()
    context.restore(1, state)
    assert context.restore(0, context.state(1))
    assert context.state(0) == state
    assert not context.restore(1, memoryview(bytearray(b"something else")))


def test_only_all_of_a_windowed_state_is_of_use(context: Context) -> None:
    cache = Cache(context, 20, 2, divisible=True)
    evaluate(context, cache, [1, 2, 3, 4])
    cache.sequences[0].shortest = 4
    assert cache.usable([1, 2, 3, 4, 5]) == 4
    assert cache.usable([1, 2, 3, 5, 5]) == 0
    assert evaluate(context, cache, [1, 2, 3, 4, 5]) == 1
    cache.cut(cache.sequences[0], 3)
    assert cache.sequences[0].tokens == []


def test_what_goes_is_told_before_it_goes(context: Context) -> None:
    cache = Cache(context, 10, 3, divisible=True)
    lost: list[list[int]] = []
    cache.on_loss = lambda sequence: lost.append(sequence.tokens[:])
    evaluate(context, cache, [1, 2, 3])
    evaluate(context, cache, [4, 5, 6])
    evaluate(context, cache, [4, 5, 6, 7])
    assert lost == []
    cache.make_room(6)
    assert lost == [[1, 2, 3]]
    cache.clear()
    assert lost == [[1, 2, 3], [4, 5, 6, 7]]


# --- a context that shifts -----------------------------------------------------------------------


def shifting(desk: Desk, prompt: str, keep_tokens: int) -> Answer:
    endless = Sampling(temperature=0, ignore_eos=True, max_tokens=200)
    request = Generate(endless, prompt=prompt, shift=True, keep_tokens=keep_tokens)
    return Answer(desk, request, lambda _: False)


def test_a_reply_goes_on_beyond_the_context_and_says_what_gave_way(
    crowded: Desk, plain: Desk
) -> None:
    answer = shifting(crowded, COUNTING, 6)
    done = answer.done()
    assert (done.reason, done.usage.completion_tokens) == ("length", 200)
    gone = [output for output in answer.outputs if isinstance(output, Truncated)]
    assert gone[0] == Truncated(0, (128 - 6) // 2)
    assert 128 >= done.usage.prompt_tokens + 200 - sum(event.tokens for event in gone) > 60
    reference = plain.ask(COUNTING, Sampling(temperature=0, ignore_eos=True, max_tokens=80))
    reference.done()
    assert answer.text.startswith(reference.text)
    # What was computed after the shift is not what reading it would give: nobody begins with it.
    assert crowded.ask(COUNTING, greedy(1)).done().usage.cached_tokens == 6


def test_replies_that_share_their_beginning_shift_too(crowded: Desk) -> None:
    one, other = (shifting(crowded, COUNTING + tail, 6) for tail in (" 13", " 13, 14"))
    for answer in (one, other):
        assert (answer.done().reason, len(answer.pieces)) == ("length", 200)
        assert any(isinstance(output, Truncated) for output in answer.outputs)


def test_a_context_that_must_be_kept_whole_does_not_shift(crowded: Desk) -> None:
    assert shifting(crowded, COUNTING, 128).done().reason == "context"


def test_messages_that_stay_are_counted_by_the_template(crowded: Desk) -> None:
    messages = (Message("system", "Be brief."), Message("user", "Count from 1 to 1000."))
    sampling = Sampling(temperature=0, ignore_eos=True, max_tokens=120)
    request = Generate(sampling, messages, shift=True, keep_messages=1)
    answer = Answer(crowded, request, lambda _: False)
    assert answer.done().reason == "length"
    again = crowded.chat(greedy(1), ("system", "Be brief."), ("user", "Why?")).done().usage
    assert again.prompt_tokens > again.cached_tokens > 8  # the system prompt and a header


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0

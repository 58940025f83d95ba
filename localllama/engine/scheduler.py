"""Continuous batching: replies join and leave one running batch, prompts are read in between."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from time import perf_counter

from localllama.engine import archive, chain, sampling
from localllama.engine.api import (
    Detokenize,
    Detokenized,
    Done,
    Failed,
    Generate,
    LoadOptions,
    Prefill,
    Ready,
    Tokenize,
    TokenLogprob,
    Tokens,
    Truncated,
)
from localllama.engine.cache import Cache
from localllama.engine.embedding import Embedding
from localllama.engine.job import Job, Output, Piece, Ticket
from localllama.engine.loaded import LoadedModel
from localllama.engine.pace import Pace
from localllama.engine.protocol import failed
from localllama.engine.snapshots import Snapshots
from localllama.engine.speculation import LONGEST_DRAFT, Drafter, PromptLookup, Speculation
from localllama.errors import EngineError, InvalidParameter, LocalLlamaError
from localllama.native.outputs import log_probabilities, most_probable

__all__ = ["Output", "Scheduler", "Ticket"]

_IDLE_SECONDS = 30.0  # without a request, before conversations are saved: a chat often goes on
_REPORTED = 64  # tokens: a prompt that is read in small pieces is not worth a message for each


@dataclass(eq=False, slots=True)
class _Part:
    """What a step evaluates of a job: its next tokens and a draft behind them."""

    job: Job
    tokens: list[int]
    draft: list[int]
    output: int = 0  # index of the first row of logits in the batch

    @property
    def samples(self) -> bool:
        """Whether the step gives the job a token."""
        return len(self.tokens) == self.job.remaining


class Scheduler:
    """Owns model, context and KV cells; all but submit() and cancel() is the decode thread's.

    A step evaluates one token of every running reply and as much of new prompts as does not hold
    them up. Requests beyond the slots, or beyond the cells, wait in order. When running replies
    need more cells than there are, the youngest goes back to the head of the queue, to be read
    again later; nobody sees more of it than a pause.
    """

    ready: Ready

    def __init__(
        self,
        options: LoadOptions,
        on_progress: Callable[[float], object],
        new_drafter: Callable[[], Drafter] = PromptLookup,
    ) -> None:
        """Load; raises what native.llama raises, InvalidParameter, InvalidTemplate.

        ``new_drafter`` makes what guesses the next tokens of one reply.
        """
        self._new_drafter = new_drafter
        self._model = LoadedModel(options, on_progress)
        self.ready = self._model.ready
        self._context = self._model.context
        self._embedder = self._model.embedder
        self._slots = options.slots
        self._cache = Cache(
            self._context,
            self._model.cells,
            self._model.sequences,
            divisible=self._model.divisible,
        )
        kept = options.snapshots
        key = archive.key(options, self._model.rotates_further)
        log = sys.stderr.write
        self._archive = archive.Archive(
            self._context,
            self._cache,
            Snapshots(Path(kept.folder), kept.limit_bytes, key, log),
            log,
            whole=self._model.windowed or not self._model.divisible,
        )
        self._pace = Pace()
        self._speculation = Speculation()
        self._load_seconds = self.ready.load_seconds  # counts for the request that waited for it
        self._submitted: SimpleQueue[tuple[Ticket, float]] = SimpleQueue()
        self._prepared: SimpleQueue[Job | Embedding | None] = (
            SimpleQueue()
        )  # None = look at _closing
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []  # the eldest first
        self._crowded = False  # a reply had to give way: nobody is let in before one ends
        self._closing, self._closed = False, threading.Event()

    def submit(self, ticket: Ticket) -> None:
        """Queue a request; thread-safe."""
        self._submitted.put((ticket, perf_counter()))

    def cancel(self, ticket: Ticket) -> None:
        """End a request with Done("cancelled") within one step; thread-safe."""
        ticket.cancelled = True

    def forget(self, conversation: str) -> None:
        """Write nothing of a conversation to disk from now on; thread-safe."""
        self._archive.forget(conversation)

    def close(self, patience_seconds: float) -> None:
        """Stop decoding, and return when conversations are saved or the time is up; thread-safe."""
        self._closing = True
        self._prepared.put(None)
        self._closed.wait(patience_seconds)

    def run(self) -> None:
        """Serve until close(); called once, by the decode thread."""
        threading.Thread(target=self._prepare_all, daemon=True).start()
        while not self._closing:
            self._receive()
            self._drop_cancelled()
            self._admit()
            begun = perf_counter()
            if self._running:
                self._step()
            self._embed(perf_counter() - begun if self._running else 0.0)
        self._archive.close(self._cache.sequences)
        self._closed.set()

    # Before a request reaches the decode thread: templates and grammars are work for Python.

    def _prepare_all(self) -> None:
        while True:
            ticket, received_at = self._submitted.get()
            try:
                self._prepare(ticket, received_at)
            except LocalLlamaError as error:
                ticket.put(ticket, failed(error))

    def _prepare(self, ticket: Ticket, received_at: float) -> None:
        request = ticket.request
        if isinstance(request, Generate):
            self._prepared.put(self._job(ticket, request, received_at))
        elif isinstance(request, Tokenize):
            ticket.put(ticket, Tokens(tuple(self._model.prompter.tokens(request.prompt))))
        elif isinstance(request, Detokenize):
            ticket.put(ticket, Detokenized(self._model.prompter.text(request.tokens)))
        else:
            self._prepared.put(self._embedder.prepare(ticket, request, received_at))

    def _job(self, ticket: Ticket, request: Generate, received_at: float) -> Job:
        if not self._model.replies:
            raise InvalidParameter("this model makes embeddings, it cannot reply")
        wanted = request.sampling
        sampling.validate(wanted)
        held = [sequence.tokens[:] for sequence in self._cache.sequences]
        snapshots = self._archive.all()
        known = (*held, *(snapshot.tokens for snapshot in snapshots))
        prompt = self._model.prompter.prompt(request, known)
        tokens = prompt.tokens
        keep_tokens = self._model.kept_tokens(request, tokens) if request.shift else 0
        sampler = chain.sampler(self._context, wanted, tokens)
        # How long a draft is depends on measured speed, and so would the rounding that a seed is
        # there to repeat.
        speculates = self._model.speculates and wanted.seed is None
        drafter = self._new_drafter() if speculates else None
        job = Job(ticket, request, prompt.tokens, sampler, drafter, received_at)
        if prompt.left_out:
            ticket.put(ticket, Truncated(0, prompt.left_out))
        job.load_seconds, self._load_seconds = self._load_seconds, 0.0
        job.keep_tokens = keep_tokens
        if not job.begins_repeatably:
            job.found = self._archive.find(tokens, snapshots, self._cache.usable(tokens))
        return job

    # Who runs

    def _receive(self) -> None:
        """Take in new requests; wait for one when there is nothing to do."""
        if not self._running and not self._waiting and not self._embedder.busy:
            self._wait()
        while not self._prepared.empty():
            self._sort(self._prepared.get())

    def _wait(self) -> None:
        """Wait for a request; with nothing to do for a while, save a conversation."""
        due = next((s for s in self._cache.sequences if self._archive.due(s)), None)
        limits = (self._embedder.seconds_left, _IDLE_SECONDS if due else None)
        timeout = min((limit for limit in limits if limit is not None), default=None)
        try:
            self._sort(self._prepared.get(timeout=timeout))
        except Empty:
            if due:
                self._archive.save(due)

    def _sort(self, job: Job | Embedding | None) -> None:
        if isinstance(job, Embedding):
            self._embedder.add(job)
        elif job is not None:
            self._waiting.append(job)

    def _embed(self, beside_seconds: float) -> None:
        if self._embedder.busy:
            self._embedder.step(beside_seconds)
        elif self._embedder.seconds_left == 0:
            self._embedder.close()

    def _drop_cancelled(self) -> None:
        for job in [job for job in (*self._running, *self._waiting) if job.ticket.cancelled]:
            self._finish(job, job.done("cancelled"))

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._slots and not self._crowded:
            job = self._waiting[0]
            room = self._model.context_length - len(job.tokens)
            if not self._cache.fits(job.tokens, min(room, job.request.reserve_tokens)):
                return
            if job.begins_repeatably and not self._running:
                self._cache.clear()
            if job.found:
                self._archive.restore(job.found, job.tokens)
            job.start(self._cache.claim(job.tokens))
            self._running.append(self._waiting.popleft())
            if not job.completion_tokens:
                self._report(job)

    def _finish(self, job: Job, output: Done | Failed) -> None:
        if job in self._running:
            self._running.remove(job)
            self._cache.release(job.sequence)
            self._crowded = False
        else:
            self._waiting.remove(job)
        job.sampler.close()
        job.ticket.put(job.ticket, output)

    def _fail(self, job: Job, error: LocalLlamaError) -> None:
        self._cache.cut(job.sequence, 0)  # what it holds may be what is wrong
        self._finish(job, failed(error))

    def _give_way(self) -> None:
        """Send the youngest running reply back to the queue."""
        job = self._running.pop()
        self._cache.release(job.sequence)
        job.pause()
        self._waiting.appendleft(job)
        self._crowded = True

    # A step

    def _step(self) -> None:
        begun = perf_counter()
        speaking = self._speaking()
        reading = self._reading(len(speaking))
        parts = speaking + reading
        if not self._evaluate(parts, abortable=not speaking):
            return
        for part in parts:
            self._conclude(part)
        self._learn(speaking, reading, perf_counter() - begun)

    def _speaking(self) -> list[_Part]:
        """The replies that get a token, with room for it."""
        for job in self._running:
            if len(job.tokens) > self._model.context_length:
                self._shift(job)
        while not self._cache.make_room(len(self._running)):
            self._give_way()
        return [
            _Part(job, job.tokens[-1:], self._draft(job))
            for job in self._running
            if job.remaining == 1
        ]

    def _shift(self, job: Job) -> None:
        """Make room for a reply that has filled the context, and say so."""
        begin, count = job.keep_tokens, (job.evaluated - job.keep_tokens) // 2
        self._cache.shift(job.sequence, begin, count)
        del job.tokens[begin : begin + count]
        job.drafter, job.guess = self._new_drafter() if job.drafter else None, []
        job.ticket.put(job.ticket, Truncated(0, count))

    def _reading(self, speaking: int) -> list[_Part]:
        """Pieces of the prompts that are being read; who waited longest comes first."""
        jobs = [job for job in self._running if job.remaining > 1]
        budget = self._context.batch_tokens - speaking
        if speaking:
            budget = min(budget, self._pace.tokens(speaking))
        budget = min(budget, sum(job.remaining for job in jobs))
        self._cache.make_room(speaking + budget)
        budget = min(budget, self._cache.free_cells - speaking)
        parts = []
        for job in sorted(jobs, key=lambda job: job.read_at):
            if not budget:
                break
            tokens = job.tokens[job.evaluated : job.evaluated + budget]
            job.read_at = perf_counter()
            budget -= len(tokens)
            parts.append(_Part(job, tokens, []))
        return parts

    def _draft(self, job: Job) -> list[int]:
        """Guess how a reply goes on; return what of it is worth checking now."""
        if job.drafter is None or len(self._running) > 1:
            job.guess = []
            return []
        limit = min(
            LONGEST_DRAFT,
            self._cache.free_cells - 1,
            self._model.context_length - len(job.tokens),
            job.tokens_left - 1,
        )
        length = self._speculation.draft_tokens(job.streak, limit)
        job.guess = job.drafter.propose(job.tokens, max(length, 1))
        return job.guess[:length]

    def _evaluate(self, parts: list[_Part], *, abortable: bool) -> bool:
        """Decode the batch; False when there is nothing to sample."""
        for part in parts:
            outputs = 1 + len(part.draft) if part.samples else 0
            tokens = part.tokens + part.draft
            job = part.job
            part.output = self._context.add(job.sequence.id, job.evaluated, tokens, outputs)
        try:
            if self._context.decode((lambda: self._unwanted(parts)) if abortable else None):
                return True
        except EngineError as error:
            for part in parts:
                self._fail(part.job, error)
        else:
            for part in parts:
                self._cache.cut(part.job.sequence, part.job.evaluated)
        return False

    def _unwanted(self, parts: list[_Part]) -> bool:
        return self._closing or any(part.job.ticket.cancelled for part in parts)

    def _conclude(self, part: _Part) -> None:
        """Count what was evaluated, and let the reply go on if it can."""
        job, samples = part.job, part.samples
        self._cache.extend(job.sequence, part.tokens)
        if not job.completion_tokens:
            self._report(job)
        if not samples:
            return
        job.prefilled()
        try:
            reason = self._speak(part)
        except LocalLlamaError as error:
            self._fail(job, error)
        else:
            if reason:
                self._finish(job, job.done(reason))

    def _speak(self, part: _Part) -> str:
        """Sample as long as the draft is right, and once more; return why the reply is over.

        Every token is drawn from the model's own distribution given those before it: a draft only
        decides for how many tokens the step computed that.
        """
        job, reason, checked = part.job, "", 0
        if not job.tokens_left:
            return "length"
        while not reason:
            token = job.sampler.sample(part.output + checked)
            self._compare(job, checked, token)
            reason = self._take(job, token, part.output + checked)
            if checked == len(part.draft) or token != part.draft[checked]:
                break
            self._cache.extend(job.sequence, (token,))
            checked += 1
        if checked < len(part.draft):
            self._cache.cut(job.sequence, job.evaluated)
        return reason

    def _take(self, job: Job, token: int, output: int) -> str:
        """Add a token to the reply; return why it is over now, or ''."""
        if self._model.vocab.ends_reply(token):
            return "stop"
        job.append(token)
        job.ticket.put(job.ticket, self._piece(job, token, output))
        if not job.tokens_left:
            return "length"
        full = len(job.tokens) > self._model.context_length
        return "context" if full and not self._shifts(job) else ""

    def _shifts(self, job: Job) -> bool:
        """Whether the oldest half of what need not be kept gives way."""
        return job.request.shift and self._model.context_length - job.keep_tokens >= 2

    def _piece(self, job: Job, token: int, output: int) -> Piece:
        """What a token adds to the reply, with its log probability if that is asked for."""
        spell, count = self._model.vocab.piece, job.request.sampling.logprobs
        if count < 0:
            return spell(token)
        logprobs = log_probabilities(self._context, output)
        return TokenLogprob(
            token,
            spell(token),
            float(logprobs[token]),
            tuple(
                TokenLogprob(other, spell(other), float(logprobs[other]))
                for other in most_probable(logprobs, count)
            ),
        )

    def _compare(self, job: Job, index: int, token: int) -> None:
        if not job.guess:
            job.streak = 0
        elif index < len(job.guess):
            right = job.guess[index] == token
            self._speculation.record_guess(job.streak, right=right)
            job.streak = job.streak + 1 if right else 0

    def _learn(self, speaking: list[_Part], reading: list[_Part], seconds: float) -> None:
        drafted = sum(len(part.draft) for part in speaking)
        if not speaking:
            self._archive.record_read(sum(len(part.tokens) for part in reading), seconds)
        if speaking and not drafted:
            self._pace.record(len(speaking), sum(len(part.tokens) for part in reading), seconds)
        if len(speaking) == 1 and not reading:
            self._speculation.record_step(1 + drafted, seconds)

    def _report(self, job: Job) -> None:
        """Say how far the prompt is read, unless that has hardly changed."""
        done, total = job.evaluated, job.prompt_tokens
        if done == total or done == job.cached_tokens or done - job.reported_tokens >= _REPORTED:
            job.reported_tokens = done
            job.ticket.put(job.ticket, Prefill(done, total))

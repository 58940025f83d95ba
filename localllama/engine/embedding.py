"""Embeddings: what a model makes of whole texts, computed beside the replies that it gives.

They have a context of their own on the same weights, with room for the longest text and a batch. It
is made when somebody asks and freed when nobody has for a while; its memory is not part of the
plan (docs/memory.md), so that a machine without room for it says so, and replies go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic, perf_counter

import numpy as np

from localllama.engine.api import Done, Embed, Timings, Usage, Vector
from localllama.engine.job import Ticket
from localllama.engine.protocol import failed
from localllama.errors import ContextFull, InvalidParameter, LocalLlamaError, UnsupportedFile
from localllama.native.llama import Context, Model
from localllama.native.outputs import Floats, embeddings

KEPT_SECONDS = 60.0  # without a request; making the context takes 0.05 s
_POOLINGS = ("none", "mean", "cls", "last", "rank")  # llama.cpp's numbers
_BATCH_TOKENS = 512
# llama.cpp computes logits beside embeddings and keeps them for a whole batch: with a vocabulary of
# 128k, 512 tokens would take 2 x 250 MiB.
_LOGITS_BYTES = 64 << 20
_KV_BYTES = 64 << 20  # of a batch; with 512 tokens, Llama-2-7B's would take 256 MiB
_SEQUENCES = 32  # texts in a batch
_FEW_TOKENS = 16  # of a model whose speed is not known yet; fewer take hardly less long
_LONGEST_SECONDS = 0.5  # of a step, so that a reply that is asked for meanwhile soon begins
_RISE = 1.25  # a step that was interrupted looks slow: up slowly, down at once


def batch_tokens(vocabulary: int, kv_token_bytes: int) -> int:
    """Return how many tokens are evaluated at once: fewer where they would take much memory."""
    affordable = min(_LOGITS_BYTES // (4 * vocabulary), _KV_BYTES // max(1, kv_token_bytes))
    return min(_BATCH_TOKENS, max(_SEQUENCES, affordable))


class Embedding:
    """A request for embeddings under way: its texts, and what is counted of them."""

    def __init__(self, ticket: Ticket, request: Embed, texts: list[Passage], at: float) -> None:
        self.ticket = ticket
        self.request = request
        self.texts = deque(texts)  # those that have no vector yet
        self._tokens = sum(len(text.tokens) for text in texts)
        self._received_at = at
        self._started_at = 0.0

    def start(self) -> None:
        """Its first tokens are evaluated now."""
        self._started_at = self._started_at or perf_counter()

    def give(self, text: Passage) -> None:
        """Put the vector of its first text out, and the end after the last one."""
        self.texts.popleft()
        self.ticket.put(self.ticket, text.vector(self.request))
        if not self.texts:
            self.end("stop")

    def end(self, reason: str) -> None:
        """Put out that it is over."""
        now = perf_counter()
        timings = Timings(
            prefill_seconds=now - (self._started_at or now),
            total_seconds=now - self._received_at,
        )
        self.ticket.put(self.ticket, Done(reason, Usage(self._tokens), timings))


@dataclass(eq=False, slots=True)
class Passage:
    """A text's tokens, of whose end ``left_out`` were cut off; what is known of its vector."""

    tokens: list[int]
    left_out: int
    pooling: str
    sequence: int = -1  # -1 = none of it is evaluated
    evaluated: int = 0
    _sum: Floats | None = None

    def take(self, rows: Floats) -> None:
        """The next tokens have been evaluated: a row each."""
        first = self.evaluated == 0
        self.evaluated += len(rows)
        if self.pooling == "mean":
            added = rows.sum(axis=0)
            self._sum = added if self._sum is None else self._sum + added
        elif self.pooling == "last" or first:
            self._sum = rows[-1 if self.pooling == "last" else 0]

    def restart(self) -> None:
        """Nothing of it is evaluated any more."""
        self.sequence, self.evaluated, self._sum = -1, 0, None

    @property
    def complete(self) -> bool:
        """Whether all of it is evaluated."""
        return self.evaluated == len(self.tokens)

    def vector(self, request: Embed) -> Vector:
        """The vector as the request wants it."""
        assert self._sum is not None
        numbers = self._sum / len(self.tokens) if self.pooling == "mean" else self._sum
        if request.dimensions:
            numbers = numbers[: request.dimensions]
        if request.normalise:
            numbers = numbers / max(float(np.linalg.norm(numbers)), 1e-12)
        return Vector(numbers.astype("<f4").tobytes(), len(self.tokens), self.left_out)


class Embedder:
    """All but prepare() is the decode thread's, which calls step() again and again while ``busy``.

    ``longest`` is the most tokens that a text may have, ``whole`` says that the model looks at all
    of a text at once (encoders), so that it cannot be read in pieces.
    """

    def __init__(self, model: Model, *, longest: int, whole: bool, threads: int) -> None:
        self._model = model
        self._vocab = model.vocab
        self._longest = longest
        self._whole = whole
        self._threads = threads
        self._pooling = _POOLINGS[model.pooling or 1]
        self._jobs: deque[Embedding] = deque()
        self._context: Context | None = None
        self._free: list[int] = []  # sequences
        self._used_at = 0.0
        self._token_seconds = 0.0

    # requests

    def prepare(self, ticket: Ticket, request: Embed, received_at: float) -> Embedding:
        """Split the texts of a request into tokens; in any thread.

        Raises InvalidParameter, ContextFull, and UnsupportedFile for a model that has no vectors.
        """
        if self._pooling == "rank":
            raise UnsupportedFile("this model ranks texts, it has no embeddings")
        if request.dimensions < 0:
            raise InvalidParameter("dimensions must be a positive number, or 0 for all")
        if not request.inputs:
            raise InvalidParameter("there is nothing to embed: no text was given")
        texts = [self._text(number, request) for number in range(len(request.inputs))]
        return Embedding(ticket, request, texts, received_at)

    def _text(self, index: int, request: Embed) -> Passage:
        given = request.inputs[index]
        tokens = (
            self._vocab.tokenize(given, add_special=True)
            if isinstance(given, str)
            else self._vocab.checked(given)
        )
        which = f"text {index + 1} of {len(request.inputs)}" if len(request.inputs) > 1 else "text"
        if not tokens:
            raise InvalidParameter(f"there is nothing to embed: {which} is empty")
        excess = len(tokens) - self._longest
        if excess <= 0:
            return Passage(tokens, 0, self._pooling)
        if not request.truncate:
            raise ContextFull(
                f"{which} has {len(tokens)} tokens, the model reads {self._longest} at once",
                "shorten it, or let its end be left out (truncate)",
                needed_tokens=len(tokens),
                available_tokens=self._longest,
            )
        ends = 1 if self._vocab.adds_end and isinstance(given, str) else 0
        kept = tokens[: self._longest - ends] + tokens[len(tokens) - ends :]
        return Passage(kept, excess, self._pooling)

    def add(self, job: Embedding) -> None:
        """Take in a prepared request."""
        self._jobs.append(job)

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""
        return bool(self._jobs)

    # steps

    def step(self, beside_seconds: float) -> None:
        """Evaluate a batch that takes about as long as what runs beside it; 0 = nothing does.

        Whatever goes wrong ends the requests concerned.
        """
        self._drop_cancelled()
        if not self._jobs:
            return
        try:
            self._evaluate(beside_seconds)
        except LocalLlamaError as error:
            self.close()
            for job in self._jobs:
                job.ticket.put(job.ticket, failed(error))
            self._jobs.clear()
        self._used_at = monotonic()

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._jobs if job.ticket.cancelled]:
            self._jobs.remove(job)
            for text in job.texts:
                self._forget(text)
            job.end("cancelled")

    def _evaluate(self, beside_seconds: float) -> None:
        context = self._ready_context()
        begun = perf_counter()
        parts = list(self._parts(self._budget(context, beside_seconds)))
        for job, text, tokens in parts:
            job.start()
            text.sequence = self._free.pop() if text.sequence < 0 else text.sequence
            context.add(text.sequence, text.evaluated, tokens, len(tokens))
        tickets = [job.ticket for job, _, _ in parts]
        stop = None if beside_seconds else lambda: any(ticket.cancelled for ticket in tickets)
        if not context.decode(stop):
            for _, text, _ in parts:  # half of it may be in memory
                self._forget(text)
            return
        rows = embeddings(context, sum(len(tokens) for _, _, tokens in parts))
        end = 0
        for job, text, tokens in parts:
            begin, end = end, end + len(tokens)
            text.take(rows[begin:end])
            if text.complete:
                self._forget(text, keep_vector=True)
                job.give(text)
        self._jobs = deque(job for job in self._jobs if job.texts)
        measured = (perf_counter() - begun) / end
        self._token_seconds = min(measured, self._token_seconds * _RISE or measured)

    def _budget(self, context: Context, beside_seconds: float) -> int:
        if self._whole:
            return context.batch_tokens
        if not self._token_seconds:
            return min(_FEW_TOKENS, context.batch_tokens)
        affordable = int((beside_seconds or _LONGEST_SECONDS) / self._token_seconds)
        fewest = 1 if beside_seconds else _FEW_TOKENS
        return min(max(fewest, affordable), context.batch_tokens)

    def _parts(self, budget: int) -> Iterator[tuple[Embedding, Passage, list[int]]]:
        """The next tokens of as many texts as are worth a batch."""
        sequences = len(self._free)
        for job, text in self._waiting():
            tokens = text.tokens[text.evaluated :]
            sequences -= text.sequence < 0
            if not budget or sequences < 0 or (self._whole and len(tokens) > budget):
                return
            tokens = tokens[:budget]
            budget -= len(tokens)
            yield job, text, tokens

    def _waiting(self) -> Iterator[tuple[Embedding, Passage]]:
        """The text that is begun, then those of each request, which take turns at being first."""
        begun = [job for job in self._jobs if job.texts[0].sequence >= 0]
        for job in begun:
            yield job, job.texts[0]
        self._jobs.rotate(-1)
        for job in self._jobs:
            for text in job.texts:
                if text.sequence < 0:
                    yield job, text

    # the context

    def _ready_context(self) -> Context:
        """Return the context; a text that it has no room for gets a new one."""
        longest = max(len(text.tokens) for job in self._jobs for text in job.texts)
        batch = max(
            batch_tokens(self._vocab.size, self._model.kv_token_bytes),
            longest if self._whole else 0,
        )
        if self._context is not None and self._context.length < longest + batch:
            self.close()
        if self._context is None:
            sequences = 1 if self._model.recurrent else _SEQUENCES
            self._context = self._model.context(
                longest + batch,
                threads=self._threads,
                sequences=sequences,
                outputs=batch,
                batch_tokens=batch,
                embeddings=True,
            )
            self._free = list(range(sequences))
        return self._context

    def _forget(self, text: Passage, *, keep_vector: bool = False) -> None:
        if text.sequence < 0:
            return
        if self._context is not None:
            self._context.cut(text.sequence, 0)
            self._free.append(text.sequence)
        if keep_vector:
            text.sequence = -1
        else:
            text.restart()

    @property
    def seconds_left(self) -> float | None:
        """For how long the context will be kept without a request; None = there is none."""
        if self._context is None:
            return None
        return max(0.0, self._used_at + KEPT_SECONDS - monotonic())

    def close(self) -> None:
        """Free the context; what is begun begins again."""
        if self._context is None:
            return
        for job in self._jobs:
            for text in job.texts:
                text.restart()
        self._context.close()
        self._context = None

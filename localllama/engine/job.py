"""A request under way: its tokens, how far they are evaluated, its counts and times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from localllama.engine.api import (
    Detokenized,
    Done,
    Failed,
    Generate,
    Prefill,
    Task,
    Timings,
    TokenLogprob,
    Tokens,
    Truncated,
    Usage,
    Vector,
)
from localllama.engine.archive import Found
from localllama.engine.cache import Sequence
from localllama.engine.speculation import Drafter
from localllama.native.sampler import Sampler

Piece = bytes | TokenLogprob  # what one token adds to the reply
End = Done | Tokens | Detokenized | Failed
Output = Piece | Truncated | Prefill | Vector | End

_NOWHERE = -1  # the sequence of a job that waits
_UNLIMITED = 1 << 62


@dataclass(eq=False, slots=True)
class Ticket:
    """A request and where its outputs go; the last one is an End.

    ``put`` is called in threads of the scheduler and must only enqueue.
    """

    request: Task
    put: Callable[[Ticket, Output], None]
    cancelled: bool = False  # set by any thread


class Job:
    """``tokens`` are the prompt and what was generated; ``sequence`` holds a beginning of them."""

    def __init__(
        self,
        ticket: Ticket,
        request: Generate,
        prompt: list[int],
        sampler: Sampler,
        drafter: Drafter | None,
        received_at: float,
    ) -> None:
        self.ticket = ticket
        self.request = request
        self.tokens = prompt
        self.sampler = sampler
        self.drafter = drafter
        self.sequence = Sequence(_NOWHERE)
        self.found: Found | None = None  # on disk
        self.keep_tokens = 0  # at the beginning, when others make room for the reply
        self.read_at = 0.0  # when it was last its turn to read some of its prompt
        self.guess: list[int] = []  # of the tokens that come next
        self.streak = 0  # right guesses in a row
        self.reported_tokens = 0  # of the prompt, in the last Prefill
        self.prompt_tokens = len(prompt)
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.load_seconds = 0.0
        self._received_at = received_at
        self._started_at = self._prefilled_at = self._first_token_at = 0.0

    @property
    def evaluated(self) -> int:
        """How many of the tokens need not be evaluated any more."""
        return len(self.sequence.tokens)

    @property
    def remaining(self) -> int:
        """How many tokens must be evaluated before the next one can be sampled."""
        return len(self.tokens) - self.evaluated

    @property
    def tokens_left(self) -> int:
        """How many more tokens the reply may have."""
        limit = self.request.sampling.max_tokens
        return limit - self.completion_tokens if limit >= 0 else _UNLIMITED

    @property
    def begins_repeatably(self) -> bool:
        """Whether this is the first request of a conversation that a seed is to repeat.

        The last bits of the logits depend on where in the cache the tokens lie and which of them
        were evaluated together, so such a conversation begins in an empty cache.
        """
        begins = all(message.role != "assistant" for message in self.request.messages)
        return self.request.sampling.seed is not None and begins

    def start(self, sequence: Sequence) -> None:
        """Go on with a sequence that holds a beginning of the tokens."""
        self.sequence = sequence
        sequence.conversation = self.request.conversation
        sequence.keeps = self.request.snapshot
        self.found = None
        if not self._started_at:
            self._started_at = perf_counter()
            self.cached_tokens = self.evaluated

    def pause(self) -> None:
        """Go back to waiting."""
        self.sequence = Sequence(_NOWHERE)

    def prefilled(self) -> None:
        """The whole prompt is evaluated."""
        self._prefilled_at = self._prefilled_at or perf_counter()

    def append(self, token: int) -> None:
        """The reply goes on by a token."""
        self.tokens.append(token)
        self.completion_tokens += 1
        self._first_token_at = self._first_token_at or perf_counter()

    def done(self, reason: str) -> Done:
        """The request is over now."""
        now = perf_counter()
        started_at = self._started_at or now
        prefilled_at = self._prefilled_at or now
        first_token_at = self._first_token_at or now
        return Done(
            reason,
            Usage(self.prompt_tokens, self.cached_tokens, self.completion_tokens),
            Timings(
                load_seconds=self.load_seconds,
                prefill_seconds=prefilled_at - started_at,
                decode_seconds=now - prefilled_at,
                total_seconds=now - self._received_at,
                first_token_seconds=first_token_at - self._received_at,
            ),
            self.sampler.seed,
            tokens=tuple(self.tokens) if self.request.return_tokens else (),
        )

"""Which conversations of a worker are worth a snapshot, and when one is worth loading."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from time import perf_counter

import msgspec

from localllama.engine.api import LoadOptions
from localllama.engine.cache import Cache, common_prefix
from localllama.engine.cache import Sequence as CachedSequence
from localllama.engine.snapshots import Snapshot, Snapshots
from localllama.errors import EngineError
from localllama.native import ggml
from localllama.native.llama import Context

_FEWEST_TOKENS = 256  # of a conversation; fewer are read in no time
_DISK_BYTES_PER_SECOND = 500e6  # a laptop's SSD, until a load has shown what it is here
_WEIGHT = 0.5  # of a new measurement
# Copies that wait for the disk. One more would take memory from the model; the conversation is
# read again if need be.
_MOST_PENDING_BYTES = 256_000_000


def key(options: LoadOptions, rotation: bool) -> str:
    """Return a digest of all that a state depends on besides its tokens.

    ``rotation`` tells the two ways apart in which some models encode positions. The place of the
    layers, threads and batches only round differently, and so are left out.
    """
    parts = (options.snapshots.model, ggml.build(), options.kv_type, options.flash_attention)
    return hashlib.sha256(msgspec.json.encode((*parts, rotation))).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Found:
    """A snapshot in memory, checked; ``useful`` of its tokens begin the prompt."""

    snapshot: Snapshot
    state: memoryview
    useful: int
    read_seconds: float


class Archive:
    """Takes sequences to disk and back; find() and forget() are for any thread, the rest decodes.

    ``whole`` = a state is of use only for prompts that begin with all of its tokens.
    """

    def __init__(
        self,
        context: Context,
        cache: Cache,
        snapshots: Snapshots,
        log: Callable[[str], object],
        *,
        whole: bool,
    ) -> None:
        self._context = context
        self._cache = cache
        self._snapshots = snapshots
        self._whole = whole
        self._log = log
        self._disk_rate = _DISK_BYTES_PER_SECOND
        self._read_tokens = self._read_seconds = 0.0
        self._forgotten: set[str] = set()
        self._writing = threading.Lock()
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._copied_bytes = self._written_bytes = 0  # each counted by one thread
        cache.on_loss = self.save
        threading.Thread(target=self._write_all, daemon=True).start()

    def record_read(self, tokens: int, seconds: float) -> None:
        """A step evaluated so many tokens of prompts and nothing else."""
        self._read_tokens += tokens
        self._read_seconds += seconds

    # to disk

    def due(self, sequence: CachedSequence) -> bool:
        """Whether a snapshot of what a sequence holds now would save time."""
        length = len(sequence.tokens)
        unsaved = length - sequence.saved
        if not sequence.keeps or sequence.conversation in self._forgotten:
            return False
        if length < _FEWEST_TOKENS or length > sequence.exact or not unsaved:
            return False
        size_bytes = self._context.state_bytes(sequence.id)
        return size_bytes <= self._snapshots.limit_bytes and self._pays(unsaved, size_bytes)

    def save(self, sequence: CachedSequence) -> None:
        """Copy a sequence if that is due; another thread writes."""
        if not self.due(sequence):
            return
        size_bytes = self._context.state_bytes(sequence.id)
        pending = self._copied_bytes - self._written_bytes
        if pending and pending + size_bytes > _MOST_PENDING_BYTES:
            return
        tokens, conversation = sequence.tokens[:], sequence.conversation
        sequence.saved = len(tokens)
        try:
            state = self._context.state(sequence.id)
        except (EngineError, MemoryError) as error:
            self._log(f"snapshots: {error or 'there is no memory for a copy'}\n")
            return
        self._copied_bytes += size_bytes
        self._queue.put(lambda: self._write(tokens, conversation, state))

    def close(self, sequences: Iterable[CachedSequence]) -> None:
        """Save all that is due, one after the other, and return when it is written."""
        for sequence in sequences:
            self.flush()
            self.save(sequence)
        self.flush()

    def flush(self) -> None:
        """Return when all copies are written."""
        done = threading.Event()
        self._queue.put(done.set)
        done.wait()

    def forget(self, conversation: str) -> None:
        """Keep nothing of a conversation from now on."""
        with self._writing:
            self._forgotten.add(conversation)

    def _write_all(self) -> None:
        while True:
            self._queue.get()()

    def _write(self, tokens: list[int], conversation: str, state: memoryview) -> None:
        with self._writing:
            if conversation not in self._forgotten:
                self._snapshots.save(tokens, conversation, state)
        self._written_bytes += len(state)

    # back

    def all(self) -> list[Snapshot]:
        """Return what is there for this model."""
        return self._snapshots.all()

    def find(self, prompt: Sequence[int], snapshots: Iterable[Snapshot], held: int) -> Found | None:
        """Return the best snapshot for a prompt of which ``held`` tokens are in a sequence."""
        useful, best = 0, None
        for snapshot in snapshots:
            length = self._useful(snapshot, prompt)
            if length > useful:
                useful, best = length, snapshot
        gained = useful - held
        if best is None or gained < _FEWEST_TOKENS or not self._pays(gained, best.state_bytes):
            return None
        begun = perf_counter()
        state = self._snapshots.open(best)
        return None if state is None else Found(best, state, useful, perf_counter() - begun)

    def restore(self, found: Found, prompt: Sequence[int]) -> None:
        """Put a snapshot into an idle sequence, unless one holds as much of the prompt by now."""
        if found.useful <= self._cache.usable(prompt):
            return
        snapshot, begun = found.snapshot, perf_counter()
        sequence = self._cache.vacate(len(snapshot.tokens))
        if sequence is None:
            return
        if not self._context.restore(sequence.id, found.state):
            self._snapshots.drop(snapshot.path, "this context does not take it")
            return
        self._cache.extend(sequence, snapshot.tokens)
        sequence.saved = len(snapshot.tokens)
        sequence.shortest = len(snapshot.tokens) if self._whole else 0
        rate = snapshot.state_bytes / (found.read_seconds + perf_counter() - begun)
        self._disk_rate += _WEIGHT * (rate - self._disk_rate)

    def _useful(self, snapshot: Snapshot, prompt: Sequence[int]) -> int:
        length = min(common_prefix(snapshot.tokens, prompt), len(prompt) - 1)
        return 0 if self._whole and length < len(snapshot.tokens) else length

    def _pays(self, tokens: int, size_bytes: int) -> bool:
        """Whether a state of that size is read sooner than so many tokens are evaluated."""
        if not self._read_tokens:  # nothing is known yet
            return True
        per_token = self._read_seconds / self._read_tokens
        return size_bytes / self._disk_rate < tokens * per_token

"""The process that holds one model: ``python -m localllama.engine.worker FD``.

Reads LoadOptions from the socket it inherits, then Generate and Cancel; see api.py. Three threads:
the main one loads, decodes and samples and does nothing else, a reader takes requests, a sender
turns bytes into text and writes. The end of the stream ends the process, whatever it is doing.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from queue import SimpleQueue
from time import perf_counter, sleep

import msgspec
import psutil

from localllama.engine import prompt, sampling, templates, wire
from localllama.engine.api import (
    Cancel,
    Done,
    Failed,
    Generate,
    Loading,
    LoadOptions,
    Prefill,
    Ready,
    Reply,
    Request,
    Text,
    Timings,
    Usage,
)
from localllama.engine.cache import PromptCache
from localllama.engine.text import TextStream
from localllama.errors import ContextFull, InvalidParameter, LocalLlamaError
from localllama.native.llama import Library, Sampler, Vocab

# Every message wakes the front end, which takes a core from the decoding threads: on 2 cores 2 % of
# the rate at 100 tokens/s. Text that is gathered this long still looks fluent.
_REST_SECONDS = 0.02
_TURN_BORDER = re.compile(r"<\|.+\|>|<(start|end)_of_turn>|\[/?[A-Z_]+\]")
# Beyond what any rope scaling is used for; llama.cpp spends minutes and all memory on 2**30.
_LONGEST_CONTEXT_FACTOR = 32


class Job:
    """A request under way: what was asked, and what may end it early."""

    def __init__(self, request: Generate) -> None:
        self.request = request
        self.received_at = perf_counter()
        self.cancelled = False  # set by the reader
        self.text = TextStream(request.sampling.stop)  # fed by the sender

    @property
    def over(self) -> bool:
        """Whether nobody wants another token."""
        return self.cancelled or self.text.stopped


Put = Callable[[Job, "bytes | Reply"], None]


class LoadedModel:
    """A model with its context, chat template and prompt cache: one conversation at a time."""

    def __init__(self, options: LoadOptions, on_progress: Callable[[float], None]) -> None:
        """Load; raises what native.llama raises, InvalidParameter, InvalidTemplate."""
        begun = perf_counter()
        library = Library(sys.stderr.write)
        model = library.load(options.paths, gpu_layers=options.gpu_layers, on_progress=on_progress)
        _require_possible(options.context_length, model.trained_context_length)
        self._vocab = model.vocab
        self._template = templates.choose(
            model.chat_template, options.template, options.fallback_template
        )
        self._vocabulary = _vocabulary(model.vocab, self._template)
        self._controls = frozenset(self._vocabulary.controls.values())
        self._context = model.context(
            options.context_length, threads=options.threads or _physical_cores()
        )
        self._context_length = options.context_length  # llama.cpp rounds its own up
        self._cache = PromptCache(self._context)
        self._load_seconds = perf_counter() - begun
        self.ready = Ready(
            context_length=self._context_length,
            trained_context_length=model.trained_context_length,
            template=self._template.origin,
            load_seconds=self._load_seconds,
            system_info=library.system_info,
        )

    def generate(self, job: Job, put: Put) -> None:
        """Reply to a request: Prefill, the bytes of each token, Done; or Failed."""
        try:
            done = self._reply(job, put)
        except LocalLlamaError as error:
            put(job, failed(error))
        else:
            put(job, done)

    def _reply(self, job: Job, put: Put) -> Done:
        sampling.validate(job.request.sampling)
        tokens = self._prompt_tokens(job.request)
        cached = self._cache.keep_prefix(tokens)
        run = _Run(len(tokens), cached, job.received_at, self._load_seconds)
        self._load_seconds = 0.0  # counts for the request that waited for it
        if not self._prefill(job, tokens, put):
            return run.done("cancelled")
        run.prefilled_at = perf_counter()
        sampler = self._sampler(job.request, tokens)
        try:
            return run.done(self._decode(job, sampler, run, put))
        finally:
            sampler.close()

    def _prompt_tokens(self, request: Generate) -> list[int]:
        if request.prompt is not None:
            start = [self._vocab.bos] if self._vocab.add_bos else []
            tokens = start + self._vocab.tokenize(request.prompt)
        else:
            tokens = self._conversation_tokens(request)
        if not tokens:
            raise InvalidParameter("there is nothing to reply to: the prompt is empty")
        needed, available = len(tokens) + request.reserve_tokens, self._context_length
        if needed > available:
            room = f" and {request.reserve_tokens} for the reply" if request.reserve_tokens else ""
            raise ContextFull(
                f"the prompt needs {len(tokens)} tokens{room}, the context holds {available}",
                "shorten it, or load the model with a longer context (--ctx)",
                needed_tokens=needed,
                available_tokens=available,
            )
        return tokens

    def _conversation_tokens(self, request: Generate) -> list[int]:
        thinking = {} if request.think is None else {"enable_thinking": request.think}
        tokens = prompt.build(self._template, request.messages, self._vocabulary, extra=thinking)
        known = self._cache.tokens
        return prompt.reuse(
            known, len(known), tokens, self._vocab.piece, self._controls.__contains__
        )

    def _prefill(self, job: Job, tokens: list[int], put: Put) -> bool:
        """Evaluate what the cache lacks of ``tokens``; False when cancelled."""
        done, total, step = len(self._cache.tokens), len(tokens), self._context.batch_tokens
        put(job, Prefill(done, total))
        with self._context.abortable(lambda: job.cancelled):
            while done < total:
                if job.cancelled or not self._cache.append(tokens[done : done + step]):
                    return False
                done = len(self._cache.tokens)
                put(job, Prefill(done, total))
        return True

    def _sampler(self, request: Generate, tokens: list[int]) -> Sampler:
        wanted = request.sampling
        sampler = Sampler(
            self._context,
            seed=secrets.randbelow(2**32 - 1) if wanted.seed is None else wanted.seed,
            temperature=wanted.temperature,
            top_k=wanted.top_k,
            top_p=wanted.top_p,
            min_p=wanted.min_p,
            typical_p=wanted.typical_p,
            repeat_last_n=wanted.repeat_last_n,
            repeat_penalty=wanted.repeat_penalty,
            presence_penalty=wanted.presence_penalty,
            frequency_penalty=wanted.frequency_penalty,
            grammar=wanted.grammar,
        )
        for token in tokens[len(tokens) - min(sampler.remembered_tokens, len(tokens)) :]:
            sampler.remember(token)
        return sampler

    def _decode(self, job: Job, sampler: Sampler, run: _Run, put: Put) -> str:
        """Sample and evaluate token by token; return the reason why it ended."""
        limit = job.request.sampling.max_tokens
        if limit == 0:
            return "length"
        while True:
            token = sampler.sample()
            if not run.completion_tokens:
                run.first_token_at = perf_counter()
            if self._vocab.ends_reply(token):
                return "stop"
            run.completion_tokens += 1
            put(job, self._vocab.piece(token))
            if run.completion_tokens == limit:
                return "length"
            if len(self._cache.tokens) >= self._context_length:
                return "context"
            if job.over:
                return "cancelled"
            self._cache.append((token,))


class _Run:
    """Counts and times of one request."""

    def __init__(
        self, prompt_tokens: int, cached_tokens: int, received_at: float, load_seconds: float
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = cached_tokens
        self.completion_tokens = 0
        self.received_at = received_at
        self.load_seconds = load_seconds
        self.prefilled_at = self.first_token_at = 0.0

    def done(self, reason: str) -> Done:
        """The request is over now."""
        now = perf_counter()
        prefilled_at = self.prefilled_at or now
        first_token_at = self.first_token_at or now
        return Done(
            reason,
            Usage(self.prompt_tokens, self.cached_tokens, self.completion_tokens),
            Timings(
                load_seconds=self.load_seconds,
                prefill_seconds=prefilled_at - self.received_at,
                decode_seconds=now - prefilled_at,
                total_seconds=now - self.received_at,
                first_token_seconds=first_token_at - self.received_at,
            ),
        )


def _require_possible(context_length: int, trained_context_length: int) -> None:
    longest = _LONGEST_CONTEXT_FACTOR * trained_context_length
    if not 1 <= context_length <= longest:
        raise InvalidParameter(
            f"the context length must be from 1 to {longest} tokens, not {context_length}",
            f"the model was trained with {trained_context_length}",
        )


def _vocabulary(vocab: Vocab, template: templates.Template) -> prompt.Vocabulary:
    # Some files mark the tokens around messages as user-defined, which are found in any text.
    # Not so <think> or <tool_call>: they stand inside replies, and templates look for them.
    structural = {
        text: token
        for text, token in vocab.user_defined.items()
        if _TURN_BORDER.fullmatch(text) and text in template.source
    }
    return prompt.Vocabulary(
        tokenize=vocab.tokenize,
        piece=vocab.piece,
        controls=vocab.control | structural,
        bos_token=vocab.text(vocab.bos),
        eos_token=vocab.text(vocab.eos),
        bos_id=vocab.bos,
        add_bos=vocab.add_bos,
    )


def failed(error: LocalLlamaError) -> Failed:
    """The error as the client gets it."""
    if isinstance(error, ContextFull):
        return Failed(
            error.code, error.message, error.hint, error.needed_tokens, error.available_tokens
        )
    return Failed(error.code, error.message, error.hint)


def replies(job: Job, item: bytes | Reply) -> Iterator[Reply]:
    """What the client gets for the bytes of one token, or for an event, of ``job``."""
    if isinstance(item, bytes):
        if text := job.text.feed(item):
            yield Text(text)
        return
    if isinstance(item, Done):
        if text := job.text.finish():
            yield Text(text)
        if job.text.stopped:  # the decoding thread was a token or two ahead
            usage = msgspec.structs.replace(item.usage, completion_tokens=job.text.tokens)
            item = msgspec.structs.replace(item, reason="stop", usage=usage)
    yield item


def serve(sock: socket.socket) -> None:
    """Load what the other side asks for, then answer until it hangs up."""
    receiver = wire.Receiver[Request](sock, Request)
    options = receiver.receive()
    if not isinstance(options, LoadOptions):
        return
    jobs: SimpleQueue[Job] = SimpleQueue()
    outbox: SimpleQueue[tuple[Job, bytes | Reply]] = SimpleQueue()
    threading.Thread(target=_read, args=(receiver, jobs), daemon=True).start()
    try:
        model = LoadedModel(options, _progress_to(sock))
    except LocalLlamaError as error:
        wire.send(sock, failed(error))
        return
    wire.send(sock, model.ready)
    threading.Thread(target=_write, args=(sock, outbox), daemon=True).start()
    while True:
        model.generate(jobs.get(), lambda job, item: outbox.put((job, item)))


def _read(receiver: wire.Receiver[Request], jobs: SimpleQueue[Job]) -> None:
    current: Job | None = None
    while (request := receiver.receive()) is not None:
        if isinstance(request, Generate):
            current = Job(request)
            jobs.put(current)
        elif isinstance(request, Cancel) and current is not None:
            current.cancelled = True
    os._exit(0)  # nobody is there any more: not even a load in progress is worth finishing


def _write(sock: socket.socket, outbox: SimpleQueue[tuple[Job, bytes | Reply]]) -> None:
    try:
        while True:
            job, item = outbox.get()
            ready = list(replies(job, item))
            while not outbox.empty():
                job, item = outbox.get()
                ready += replies(job, item)
            for reply in _merged(ready):
                wire.send(sock, reply)
            if isinstance(item, bytes) and not job.request.sampling.stop:
                sleep(_REST_SECONDS)
    except OSError:
        os._exit(0)


def _merged(ready: Sequence[Reply]) -> Iterator[Reply]:
    """Put texts that follow one another together."""
    for is_text, group in groupby(ready, lambda reply: isinstance(reply, Text)):
        if is_text:
            yield Text("".join(reply.text for reply in group if isinstance(reply, Text)))
        else:
            yield from group


def _progress_to(sock: socket.socket) -> Callable[[float], None]:
    sent_percent = -1

    def send(fraction: float) -> None:
        nonlocal sent_percent
        if int(100 * fraction) > sent_percent:
            sent_percent = int(100 * fraction)
            wire.send(sock, Loading(fraction))

    return send


def _physical_cores() -> int:
    """Hyper-threads share the units that matter here, and a container may own fewer cores."""
    usable = len(psutil.Process().cpu_affinity()) if hasattr(os, "sched_getaffinity") else 0
    return min(psutil.cpu_count(logical=False) or 1, usable or 1_000)


def _end_process(failure: threading.ExceptHookArgs) -> None:
    """A worker without its reader or sender would only hang: leave a traceback and go."""
    threading.__excepthook__(failure)
    os._exit(1)


def main() -> None:
    """Serve the socket whose file descriptor is the only argument."""
    threading.excepthook = _end_process
    serve(socket.socket(fileno=int(sys.argv[1])))
    sys.stderr.flush()
    os._exit(0)  # llama.cpp must not log into an interpreter that is being taken down


if __name__ == "__main__":
    main()

"""llama.cpp's C API with Python types: library, model, vocabulary, context, sampler chain.

Knows tokens and memory; knows no chat, no sockets, no request.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llama_cpp import llama_cpp as c

from localllama.errors import (
    BadFile,
    DoesNotFit,
    EngineError,
    InvalidGGUF,
    InvalidParameter,
    LocalLlamaError,
    StoreError,
    UnsupportedFile,
)

_SEQUENCE = 0
_INFO, _WARN, _ERROR = 2, 3, 4  # ggml_log_level; 1 is debug, 5 continues the line before
# Tokens read in one llama_decode, and the step in which a cancelled prefill on a GPU stops: there
# the abort callback is not asked.
_BATCH_TOKENS = 512


class Library:
    """llama.cpp, initialised; ``log`` gets every line it would have written to stderr."""

    def __init__(self, log: Callable[[str], object]) -> None:
        self._log = log
        self._problems: deque[str] = deque(maxlen=20)
        self._callback = c.llama_log_callback(self._record)  # lives as long as llama.cpp may log
        c.llama_log_set(self._callback, ctypes.c_void_p())
        c.llama_backend_init()

    def _record(self, level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace")
        if level >= _INFO:
            self._log(line)
        if level in (_WARN, _ERROR):
            self._problems.append(line.strip())

    @property
    def system_info(self) -> str:
        """What the build uses of this machine: instruction sets, backends."""
        info: bytes = c.llama_print_system_info()
        return info.decode().strip()

    @property
    def problems(self) -> str:
        """The latest warnings and errors, one a line."""
        return "\n".join(self._problems)

    def load(
        self, paths: Sequence[str], *, gpu_layers: int, on_progress: Callable[[float], object]
    ) -> Model:
        """Load the model in ``paths`` (its parts in order); ``gpu_layers`` -1 = all.

        Raises StoreError for a file that cannot be read, InvalidGGUF, UnsupportedFile, DoesNotFit.
        """
        for path in paths:
            _require_readable(path)
        params = c.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        # Kept in a name: ctypes does not keep a callback alive that sits in a structure.
        progress = c.llama_progress_callback(lambda done, _: on_progress(done) is not False)
        params.progress_callback = progress
        parts = (ctypes.c_char_p * len(paths))(*(path.encode() for path in paths))
        self._problems.clear()
        pointer = c.llama_model_load_from_splits(parts, len(paths), params)
        if not pointer:
            raise _load_error(self.problems, paths[0])
        return Model(self, pointer)


class Model:
    """Loaded weights and their vocabulary."""

    def __init__(self, library: Library, pointer: int) -> None:
        self._library = library
        self._pointer = pointer
        self.vocab = Vocab(c.llama_model_get_vocab(pointer))
        self.trained_context_length: int = c.llama_model_n_ctx_train(pointer)

    @property
    def chat_template(self) -> str:
        """The Jinja source in the file, or ''."""
        source = c.llama_model_chat_template(self._pointer, None)
        return source.decode("utf-8", "replace") if source else ""

    def context(self, context_length: int, *, threads: int) -> Context:
        """Make a context of ``context_length`` tokens for one sequence; raises DoesNotFit."""
        params = c.llama_context_default_params()
        params.n_ctx = context_length
        params.n_batch = params.n_ubatch = min(_BATCH_TOKENS, context_length)
        params.n_seq_max = 1
        # Only the last token of a batch is sampled. With the default, a row of logits for every
        # token of a batch, a vocabulary of 128k takes 250 MiB more.
        params.n_outputs_max = 1
        params.n_threads = params.n_threads_batch = threads
        self._library._problems.clear()
        pointer = c.llama_init_from_model(self._pointer, params)
        if not pointer:
            raise _context_error(self._library.problems, context_length)
        return Context(self, pointer)

    def close(self) -> None:
        """Free the weights; contexts must be closed before."""
        c.llama_model_free(self._pointer)


class Vocab:
    """Tokens to bytes and text to tokens."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer
        self._pieces: dict[int, bytes] = {}
        self.size: int = c.llama_vocab_n_tokens(pointer)
        self.bos: int = c.llama_vocab_bos(pointer)  # -1 = none
        self.eos: int = c.llama_vocab_eos(pointer)
        self.add_bos: bool = c.llama_vocab_get_add_bos(pointer)
        attributes = [c.llama_vocab_get_attr(pointer, token) for token in range(self.size)]
        hidden = c.LLAMA_TOKEN_ATTR_CONTROL | c.LLAMA_TOKEN_ATTR_UNKNOWN
        # Tokens with a function instead of a text, and those that tokenize() finds in any text.
        self.control = self._spellings(attributes, hidden)
        self.user_defined = self._spellings(attributes, c.LLAMA_TOKEN_ATTR_USER_DEFINED)

    def _spellings(self, attributes: Sequence[int], wanted: int) -> dict[str, int]:
        return {self.text(token): token for token, has in enumerate(attributes) if has & wanted}

    def text(self, token: int) -> str:
        """The token as the vocabulary spells it, control tokens included; '' for no token."""
        if not 0 <= token < self.size:
            return ""
        spelled = c.llama_vocab_get_text(self._pointer, token)
        return spelled.decode("utf-8", "replace") if spelled else ""

    def tokenize(self, text: str, parse_special: bool = False) -> list[int]:
        """Return the tokens of ``text``, without BOS.

        Unless ``parse_special``, the spelling of a control token in it stays text.
        """
        data = text.encode("utf-8", "surrogatepass")
        room = len(data) + 2  # a byte is a token at most, a leading space may be added
        tokens = (c.llama_token * room)()
        count = c.llama_tokenize(self._pointer, data, len(data), tokens, room, False, parse_special)
        if count < 0:
            raise EngineError("llama.cpp could not split the text into tokens")
        return tokens[:count]

    def piece(self, token: int) -> bytes:
        """The bytes a token adds to the text, maybe half a character; b'' for control tokens."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._spell(token)
        return known

    def _spell(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = c.llama_token_to_piece(self._pointer, token, buffer, size, 0, False)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def ends_reply(self, token: int) -> bool:
        """Whether the model says with this token that it is done (EOS, EOT, ...)."""
        ends: bool = c.llama_vocab_is_eog(self._pointer, token)
        return ends


class Context:
    """The memory of one sequence of tokens (KV cache) and the computation on it."""

    def __init__(self, model: Model, pointer: int) -> None:
        self._model = model
        self._pointer = pointer
        self._memory = c.llama_get_memory(pointer)
        self.length: int = c.llama_n_ctx(pointer)
        self.batch_tokens: int = c.llama_n_batch(pointer)
        self._batch = c.llama_batch_init(self.batch_tokens, 0, 1)
        # Reading a field of a ctypes structure makes a new pointer object each time.
        self._tokens, self._positions = self._batch.token, self._batch.pos
        self._wants_logits = self._batch.logits
        for i in range(self.batch_tokens):
            self._batch.n_seq_id[i] = 1
            self._batch.seq_id[i][0] = _SEQUENCE
            self._wants_logits[i] = 0

    def decode(self, tokens: Sequence[int], position: int) -> bool:
        """Evaluate at most ``batch_tokens`` tokens from ``position`` on; logits for the last one.

        False when an abort callback stopped it; raises EngineError when llama.cpp cannot.
        """
        last = len(tokens) - 1
        for i, token in enumerate(tokens):
            self._tokens[i] = token
            self._positions[i] = position + i
        self._batch.n_tokens = last + 1
        self._wants_logits[last] = 1
        status: int = c.llama_decode(self._pointer, self._batch)
        self._wants_logits[last] = 0
        if status == 2:
            return False
        if status != 0:
            raise EngineError(
                f"llama.cpp could not evaluate the text (code {status})",
                "load the model again; if it happens again, use a smaller context",
            )
        return True

    def cut(self, length: int) -> bool:
        """Forget everything from position ``length`` on; False where this memory cannot be cut.

        Recurrent models keep a state, not positions: only clear() goes back for them.
        """
        done: bool = c.llama_memory_seq_rm(self._memory, _SEQUENCE, length, -1)
        return done

    def clear(self) -> None:
        """Forget everything."""
        c.llama_memory_clear(self._memory, False)

    def logit(self, token: int) -> float:
        """The raw score of ``token`` after the last decode."""
        score: float = c.llama_get_logits_ith(self._pointer, -1)[token]
        return score

    @contextmanager
    def abortable(self, stop: Callable[[], bool]) -> Iterator[None]:
        """Within the block, decode() gives up as soon as ``stop()`` is true.

        For prefill only, where it is free: asked after every node of the graph, a Python callback
        costs 14 % of the decode speed of a small model.
        """
        callback = c.ggml_abort_callback(lambda _: stop())
        c.llama_set_abort_callback(self._pointer, callback, ctypes.c_void_p())
        try:
            yield
        finally:
            c.llama_set_abort_callback(self._pointer, c.ggml_abort_callback(0), ctypes.c_void_p())

    def close(self) -> None:
        """Free the memory."""
        c.llama_batch_free(self._batch)
        c.llama_free(self._pointer)


class Sampler:
    """A chain that picks the next token, in llama.cpp's order; neutral stages are left out.

    Raises InvalidParameter for a ``grammar`` (GBNF, '' = none) that does not parse.
    """

    def __init__(
        self,
        context: Context,
        *,
        seed: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
        repeat_last_n: int,
        repeat_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        grammar: str = "",
    ) -> None:
        vocab = context._model.vocab
        self._context = context
        self._chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
        window = context.length if repeat_last_n < 0 else repeat_last_n
        strengths = (repeat_penalty, frequency_penalty, presence_penalty)
        self.remembered_tokens = window if strengths != (1.0, 0.0, 0.0) else 0
        self._penalties = c.llama_sampler_init_penalties(vocab.size, window, *strengths)
        self._add(self._penalties)
        if grammar:
            self._add_grammar(vocab, grammar)
        if temperature == 0:
            self._add(c.llama_sampler_init_greedy())
            return
        if top_k > 0:
            self._add(c.llama_sampler_init_top_k(top_k))
        if typical_p < 1:
            self._add(c.llama_sampler_init_typical(typical_p, 1))
        if top_p < 1:
            self._add(c.llama_sampler_init_top_p(top_p, 1))
        if min_p > 0:
            self._add(c.llama_sampler_init_min_p(min_p, 1))
        if temperature != 1:
            self._add(c.llama_sampler_init_temp(temperature))
        self._add(c.llama_sampler_init_dist(seed))

    def _add(self, stage: int) -> None:
        c.llama_sampler_chain_add(self._chain, stage)

    def _add_grammar(self, vocab: Vocab, grammar: str) -> None:
        stage = c.llama_sampler_init_grammar(vocab._pointer, grammar.encode(), b"root")
        if not stage:
            self.close()
            raise InvalidParameter("the grammar does not parse", "it must be GBNF with a rule root")
        self._add(stage)

    def remember(self, token: int) -> None:
        """Count a token of the prompt for the penalties."""
        c.llama_sampler_accept(self._penalties, token)

    def sample(self) -> int:
        """Pick a token by the context's last logits; raises EngineError if they are no numbers."""
        token: int = c.llama_sampler_sample(self._chain, self._context._pointer, -1)
        score = self._context.logit(token)
        if score != score:
            raise EngineError(
                "the model computed values that are not numbers",
                "the file may be damaged: localllama verify NAME",
            )
        return token

    def close(self) -> None:
        """Free the chain."""
        c.llama_sampler_free(self._chain)


def _require_readable(path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise StoreError(f"cannot read the model file {path}: {error.strerror}") from error


def _load_error(problems: str, path: str) -> LocalLlamaError:
    said = _last_line(problems)
    if "unknown model architecture" in problems or "only supports up to version" in problems:
        kind: type[BadFile] = UnsupportedFile
        hint = "a newer localllama or llama.cpp may know it"
    elif "allocate" in problems or "out of memory" in problems:
        return DoesNotFit(
            f"there is not enough memory for the model: {said}",
            "choose a smaller quantization type or fewer GPU layers",
        )
    else:
        kind, hint = InvalidGGUF, "the file may be cut or damaged: localllama verify NAME"
    return kind(f"llama.cpp cannot load {Path(path).name}: {said}", hint, path)


def _context_error(problems: str, context_length: int) -> LocalLlamaError:
    said = _last_line(problems)
    if "allocate" in problems or "out of memory" in problems or "bad_alloc" in problems:
        return DoesNotFit(
            f"there is not enough memory for a context of {context_length} tokens: {said}",
            "choose a smaller context length (--ctx)",
        )
    return EngineError(f"llama.cpp cannot make a context of {context_length} tokens: {said}")


def _last_line(problems: str) -> str:
    """The reason in llama.cpp's own words: the first error names it, the later ones repeat."""
    lines = [line for line in problems.splitlines() if "error" in line or "failed" in line]
    line = (lines or problems.splitlines() or ["no reason given"])[0]
    return line.split(": ", 1)[-1]

"""llama.cpp's C API with Python types: library, model, vocabulary, context.

Knows tokens and memory; knows no chat, no sockets, no request.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Sequence
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

_INFO, _WARN, _ERROR = 2, 3, 4  # ggml_log_level; 1 is debug, 5 continues the line before
_LOAD_MODES = {  # by mmap, mlock
    (True, False): c.LLAMA_LOAD_MODE_AUTO,
    (True, True): c.LLAMA_LOAD_MODE_MMAP_MLOCK,
    (False, True): c.LLAMA_LOAD_MODE_MLOCK,
    (False, False): c.LLAMA_LOAD_MODE_NONE,
}
KV_TYPES = {
    "f16": c.GGML_TYPE_F16,
    "f32": c.GGML_TYPE_F32,
    "bf16": 30,  # which llama-cpp-python leaves out
    "q8_0": c.GGML_TYPE_Q8_0,
    "q5_1": c.GGML_TYPE_Q5_1,
    "q5_0": c.GGML_TYPE_Q5_0,
    "q4_1": c.GGML_TYPE_Q4_1,
    "q4_0": c.GGML_TYPE_Q4_0,
    "iq4_nl": c.GGML_TYPE_IQ4_NL,
}


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
        self,
        paths: Sequence[str],
        *,
        gpu_layers: int,
        on_progress: Callable[[float], object],
        tensor_split: Sequence[float] = (),
        main_gpu: int = 0,
        mmap: bool = True,
        mlock: bool = False,
        repack: bool = True,
    ) -> Model:
        """Load the model in ``paths`` (its parts in order); ``gpu_layers`` -1 = all.

        ``tensor_split`` is each GPU's share, () = llama.cpp's choice. Raises StoreError for a file
        that cannot be read, InvalidGGUF, UnsupportedFile, DoesNotFit.
        """
        for path in paths:
            _require_readable(path)
        params = c.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.main_gpu = main_gpu
        params.load_mode = _LOAD_MODES[mmap, mlock]
        no_devices = (ctypes.c_void_p * 1)(None)
        if gpu_layers == 0:  # else GPUs would compute long batches, and need memory for that
            params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
        params.use_extra_bufts = repack
        # Kept in names: ctypes does not keep alive what a structure points to.
        split = (ctypes.c_float * c.llama_max_devices())(*tensor_split)
        if tensor_split:
            params.tensor_split = split
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

    @property
    def recurrent(self) -> bool:
        """Whether a sequence is (also) a state, which can neither be cut nor shared in part."""
        return bool(
            c.llama_model_is_recurrent(self._pointer) or c.llama_model_is_hybrid(self._pointer)
        )

    @property
    def pooling(self) -> int | None:
        """How the file says that vectors of tokens become one of a text: llama.cpp's number."""
        key = f"{self._metadata('general.architecture')}.pooling_type"
        said = self._metadata(key)
        return int(said) if said.isdecimal() else None

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of a token in a KV cache of f16, where all layers have one and heads one size."""
        heads: int = max(1, c.llama_model_n_head(self._pointer))  # 0 = a state takes its place
        embedding: int = c.llama_model_n_embd(self._pointer)
        layers: int = c.llama_model_n_layer(self._pointer)
        kv_heads: int = c.llama_model_n_head_kv(self._pointer)
        return 2 * 2 * layers * kv_heads * embedding // heads

    @property
    def windowed(self) -> bool:
        """Whether some layers look at the latest tokens only, so that a state holds no others."""
        return bool(c.llama_model_n_swa(self._pointer) > 0)

    @property
    def original_context_length(self) -> int:
        """Tokens up to which LongRoPE encodes positions in one way, not in another; 0 = no such."""
        architecture = self._metadata("general.architecture")
        found = self._metadata(f"{architecture}.rope.scaling.original_context_length")
        return int(found) if found.isdecimal() else 0

    def _metadata(self, key: str) -> str:
        """A value of the header, '' if there is none."""
        buffer = ctypes.create_string_buffer(128)
        length = c.llama_model_meta_val_str(self._pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else ""

    def context(
        self,
        cells: int,
        *,
        threads: int,
        sequences: int = 1,
        outputs: int = 1,
        batch_tokens: int = 512,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        embeddings: bool = False,
    ) -> Context:
        """Make a context of ``cells`` tokens, which its sequences share; raises DoesNotFit.

        A batch has at most ``batch_tokens`` tokens and ``outputs`` rows of logits. ``embeddings`` =
        each token of a batch gets a row of those, see native.outputs.
        """
        params = context_params(
            cells,
            sequences=sequences,
            outputs=outputs,
            batch_tokens=batch_tokens,
            kv_type=kv_type,
            flash_attention=flash_attention,
        )
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = embeddings
        params.pooling_type = c.LLAMA_POOLING_TYPE_NONE
        self._library._problems.clear()
        pointer = c.llama_init_from_model(self._pointer, params)
        if not pointer:
            raise _context_error(self._library.problems, cells)
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
        self.adds_end: bool = c.llama_vocab_get_add_eos(pointer) or c.llama_vocab_get_add_sep(
            pointer
        )
        fill = (c.llama_vocab_fim_pre, c.llama_vocab_fim_suf, c.llama_vocab_fim_mid)
        # Around what is before and after a gap, and before what fills it; () = the model cannot.
        self.fill_tokens: tuple[int, ...] = tuple(find(pointer) for find in fill)
        if min(self.fill_tokens) < 0:
            self.fill_tokens = ()
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

    def tokenize(
        self, text: str, parse_special: bool = False, *, add_special: bool = False
    ) -> list[int]:
        """Return the tokens of ``text``, with ``add_special`` also those put around any text (BOS).

        Unless ``parse_special``, the spelling of a control token in it stays text.
        """
        data = text.encode("utf-8", "surrogatepass")
        room = len(data) + 4  # a byte is a token at most; a leading space, BOS, EOS may be added
        tokens = (c.llama_token * room)()
        count = c.llama_tokenize(
            self._pointer, data, len(data), tokens, room, add_special, parse_special
        )
        if count < 0:
            raise EngineError("llama.cpp could not split the text into tokens")
        return tokens[:count]

    def checked(self, tokens: Sequence[int]) -> list[int]:
        """Return token ids that somebody sent; raises InvalidParameter for one that is none."""
        if beyond := [token for token in tokens if not 0 <= token < self.size]:
            raise InvalidParameter(
                f"there is no token {beyond[0]}: the vocabulary has {self.size}, the first is 0"
            )
        return list(tokens)

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


def context_params(
    cells: int,
    *,
    sequences: int,
    outputs: int,
    batch_tokens: int,
    kv_type: str,
    flash_attention: bool | None,
) -> c.llama_context_params:
    """Return llama.cpp's parameters of such a context; raises InvalidParameter for a KV type."""
    if kv_type not in KV_TYPES:
        raise InvalidParameter(
            f"{kv_type} is not a type that the KV cache can have", f"use {', '.join(KV_TYPES)}"
        )
    params: c.llama_context_params = c.llama_context_default_params()
    params.n_ctx = cells
    params.n_seq_max = sequences
    # A row of logits for every token of a batch, the default, would take 250 MiB more with a
    # vocabulary of 128k. llama.cpp wants at least one for each sequence.
    params.n_outputs_max = max(outputs, sequences)
    params.n_batch = params.n_ubatch = max(min(batch_tokens, cells), params.n_outputs_max)
    # One pool of cells: with a stream for each sequence, no part of a prefix can be shared.
    params.kv_unified = True
    params.type_k = params.type_v = KV_TYPES[kv_type]
    params.flash_attn_type = -1 if flash_attention is None else int(flash_attention)
    return params


class Context:
    """A pool of ``length`` cells (KV cache) for several sequences, and the computation on them.

    A batch is put together by add() and evaluated by decode().
    """

    def __init__(self, model: Model, pointer: int) -> None:
        self._model = model
        self._pointer = pointer
        self._memory = c.llama_get_memory(pointer)
        self.remembers = bool(self._memory)  # else an encoder, which cannot go on with a text
        self.length: int = c.llama_n_ctx(pointer)
        self.batch_tokens: int = c.llama_n_batch(pointer)
        self._batch = c.llama_batch_init(self.batch_tokens, 0, 1)
        self._filled = 0
        # Reading a field of a ctypes structure makes a new pointer object each time.
        self._tokens, self._positions = self._batch.token, self._batch.pos
        self._wants_logits = self._batch.logits
        self._sequences = [self._batch.seq_id[i] for i in range(self.batch_tokens)]
        for i in range(self.batch_tokens):
            self._batch.n_seq_id[i] = 1

    def add(self, sequence: int, position: int, tokens: Sequence[int], outputs: int = 0) -> int:
        """Put tokens of a sequence from ``position`` on into the next batch.

        Logits are computed for the last ``outputs`` of them; returns the index of the first of
        those for Sampler.sample().
        """
        begin = self._filled
        self._filled = end = begin + len(tokens)
        first_output = end - outputs
        for i, token in enumerate(tokens, begin):
            self._tokens[i] = token
            self._positions[i] = position + i - begin
            self._sequences[i][0] = sequence
            self._wants_logits[i] = i >= first_output
        return first_output

    def decode(self, stop: Callable[[], bool] | None = None) -> bool:
        """Evaluate the batch; False when ``stop``, asked all the time, said so.

        Raises EngineError when llama.cpp cannot. In both cases the sequences of the batch may hold
        some of it: cut() them. ``stop`` is for prefill, where it is free: asked after every node of
        the graph, a Python callback costs 14 % of the decode speed of a small model.
        """
        self._batch.n_tokens, self._filled = self._filled, 0
        if stop is None:
            status: int = c.llama_decode(self._pointer, self._batch)
        else:
            callback = c.ggml_abort_callback(lambda _: stop())
            c.llama_set_abort_callback(self._pointer, callback, None)
            status = c.llama_decode(self._pointer, self._batch)
            c.llama_set_abort_callback(self._pointer, c.ggml_abort_callback(0), None)
        if status not in (0, 2):
            raise EngineError(
                f"llama.cpp could not evaluate the text (code {status})",
                "load the model again; if it happens again, use a smaller context",
            )
        return status == 0

    def clear(self) -> None:
        """Forget all sequences; the cells are filled from the first on again."""
        c.llama_memory_clear(self._memory, False)

    def cut(self, sequence: int, length: int) -> bool:
        """Make a sequence forget all from position ``length`` on; False where it cannot be cut.

        Recurrent models keep a state, not positions: they only forget everything (length 0).
        """
        done: bool = c.llama_memory_seq_rm(self._memory, sequence, length, -1)
        return done

    def share(self, source: int, target: int, length: int) -> None:
        """Let ``target``, which is empty, begin with the first ``length`` cells of ``source``."""
        c.llama_memory_seq_cp(self._memory, source, target, 0, length)

    @property
    def can_shift(self) -> bool:
        """Whether a part in the middle of a sequence can be taken out."""
        able: bool = c.llama_memory_can_shift(self._memory)
        return able

    def shift(self, sequence: int, begin: int, count: int) -> None:
        """Take ``count`` tokens from position ``begin`` on out and move the later ones down.

        These keep what they know of those taken out. Cells that other sequences share would move
        for them too, so none from ``begin`` on may be shared. Needs can_shift.
        """
        c.llama_memory_seq_rm(self._memory, sequence, begin, begin + count)
        c.llama_memory_seq_add(self._memory, sequence, begin + count, -1, -count)

    def state_bytes(self, sequence: int) -> int:
        """How long state() is."""
        size: int = c.llama_state_seq_get_size(self._pointer, sequence)
        return size

    def state(self, sequence: int) -> memoryview:
        """Return a copy of what the cells of a sequence hold; raises EngineError."""
        size = self.state_bytes(sequence)
        buffer = (ctypes.c_uint8 * size)()
        if c.llama_state_seq_get_data(self._pointer, buffer, size, sequence) != size:
            raise EngineError("llama.cpp could not copy the state of a conversation")
        return memoryview(buffer)

    def restore(self, sequence: int, state: memoryview) -> bool:
        """Fill an empty sequence with a state(); False when that does not fit into this context.

        The state must come from the same model, build and context parameters: what llama.cpp checks
        is less than that, and it ends the process over damaged ones.
        """
        size = len(state)
        buffer = (ctypes.c_uint8 * size).from_buffer(state)
        if c.llama_state_seq_set_data(self._pointer, buffer, size, sequence) == size:
            return True
        self.cut(sequence, 0)
        return False

    def close(self) -> None:
        """Free the memory."""
        c.llama_batch_free(self._batch)
        c.llama_free(self._pointer)


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

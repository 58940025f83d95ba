"""The values that cross between front ends and workers; knows no llama.cpp.

They are msgspec structs, because they travel over the worker's socket as msgpack.
"""

from __future__ import annotations

from struct import unpack
from typing import Any, TypedDict

import msgspec

from localllama.engine.speculation import LONGEST_DRAFT

# Conversations that nobody is answering but whose tokens are kept as long as there is room. Their
# cells cost decoding next to nothing; a recurrent model would need a state for each.
IDLE_SEQUENCES = 3


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that the model wants to be called, with its arguments by name."""

    name: str
    arguments: dict[str, Any] = {}
    id: str = ""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message; ``role`` is ``system``, ``user``, ``assistant`` or ``tool``.

    An assistant's has ``tool_calls`` and the ``thinking`` before its content; a tool's has the
    ``name`` of the function and the ``tool_call_id`` that it answers. '' and () = none.
    """

    role: str
    content: str
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    tool_call_id: str = ""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. Names and meanings are llama.cpp's and Ollama's.

    ``temperature`` 0 is greedy. ``seed`` None = a fresh one each time. ``max_tokens`` -1 = until
    the model stops or the context is full. ``repeat_last_n`` and ``dry_penalty_last_n`` -1 = the
    whole context. ``mirostat`` 1 or 2 replaces all but temperature and ``logit_bias`` (token id to
    what is added to its score). ``grammar`` (GBNF) or ``schema`` (JSON Schema), if not empty, binds
    the reply. ``logprobs`` asks for the log probability of each token and of so many of the most
    probable ones in its place; 0 = of the token alone, -1 = none.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = -1
    ignore_eos: bool = False
    logit_bias: dict[int, float] = {}
    grammar: str = ""
    schema: str = ""
    logprobs: int = -1


class SnapshotOptions(msgspec.Struct, frozen=True):
    """Where KV states are kept between loads: at most ``limit_bytes`` in ``folder``, 0 = none.

    ``model`` is a digest of the model's files.
    """

    folder: str = ""
    limit_bytes: int = 0
    model: str = ""


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """What a worker loads and how.

    ``paths`` are the parts of one model in order; ``template`` is Jinja source that replaces the
    file's own (empty = the file's), ``fallback_template`` the name of a built-in one for files
    without any. ``context_length`` in tokens: what one conversation has at most of the ``cells`` of
    the KV cache (0 = all of them). ``gpu_layers`` -1 = all. ``threads`` 0 = physical
    cores.
    """

    paths: tuple[str, ...]
    context_length: int
    cells: int = 0
    template: str = ""
    fallback_template: str = ""
    gpu_layers: int = -1
    threads: int = 0
    slots: int = 1  # conversations that can be answered at once, out of one pool of cells
    batch_tokens: int = 512
    kv_type: str = "f16"  # of K and V, as llama.cpp spells it: f16, q8_0, q4_0
    tensor_split: tuple[float, ...] = ()  # share of each GPU, empty = llama.cpp's choice
    main_gpu: int = 0
    mmap: bool = True
    mlock: bool = False
    repack: bool = True  # CPU: let ggml keep weights in a second, faster layout
    flash_attention: bool | None = None  # None = llama.cpp decides
    speculate: bool = True  # guess tokens by looking them up in the context
    keep_alive_seconds: float = 0.0  # without a client; negative = for ever
    snapshots: SnapshotOptions = SnapshotOptions()

    def sequences(self, *, divisible: bool) -> int:
        """How many sequences the context has; ``divisible`` as in the cache."""
        return self.slots + (IDLE_SEQUENCES if divisible else 0)

    def outputs(self, *, divisible: bool) -> int:
        """How many rows of logits a batch has at most: one a reply, and those of a guess."""
        return self.slots + (LONGEST_DRAFT if self.speculate and divisible else 0)


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one request; ``cached_tokens`` of the prompt were already in the KV cache."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Timings(msgspec.Struct, frozen=True):
    """Durations of one request in seconds; rates are over newly evaluated tokens."""

    load_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    total_seconds: float = 0.0
    first_token_seconds: float = 0.0


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """The model is being read; ``fraction`` from 0 to 1."""

    fraction: float


class DeviceBytes(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded model takes of one device; ``other_bytes``: Python, libraries, vocabulary."""

    device: str  # CPU, or as ggml calls it
    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    other_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.other_bytes


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded. ``template`` says which chat template is used and where it is from.

    ``devices`` has what llama.cpp allocated.
    """

    context_length: int
    trained_context_length: int
    template: str
    load_seconds: float
    system_info: str = ""
    devices: tuple[DeviceBytes, ...] = ()


class Prefill(msgspec.Struct, frozen=True, tag="prefill"):
    """The prompt is being read: ``done`` of ``total`` tokens, those in the cache included."""

    done: int
    total: int


class TokenLogprob(msgspec.Struct, frozen=True, omit_defaults=True):
    """A token, its bytes (maybe part of a character) and the natural logarithm of its probability.

    The probability is the model's own, softmax over all logits: before penalties, temperature,
    grammar and everything else that decides which token is taken. ``top`` are the most probable
    tokens in its place, the likeliest first.
    """

    token: int
    piece: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


class Text(msgspec.Struct, frozen=True, tag="text", omit_defaults=True):
    """More of the reply; whole characters only.

    ``logprobs``, if asked for, are the tokens that the text begins in: a token comes with its first
    character, and those that a stop string takes away never come. The last ones may come without
    a text: half a character at the end of a reply. ``tokens`` were decoded since the text before.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    tokens: int = 1


class Truncated(msgspec.Struct, frozen=True, tag="truncated"):
    """What did not fit into the context: ``messages`` old messages, or (``messages`` 0) a part of
    the prompt's text, or old tokens in the middle of a reply; ``tokens`` tokens in all."""

    messages: int
    tokens: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The reply is over. ``reason``: ``stop``, ``length`` (max_tokens), ``context`` (the context is
    full) or ``cancelled``. ``seed`` is the one that was used.

    ``stop`` is the stop string that came; '' = the model ended its reply itself. ``tokens`` are
    those of prompt and reply, if asked for: a later request can go on from them.
    """

    reason: str
    usage: Usage
    timings: Timings
    seed: int | None = None
    stop: str = ""
    tokens: tuple[int, ...] = ()


class Vector(msgspec.Struct, frozen=True, tag="vector"):
    """The embedding of one text: ``data`` holds its numbers as float32, little endian.

    ``prompt_tokens`` were read, ``truncated_tokens`` of the text's end were left out.
    """

    data: bytes
    prompt_tokens: int
    truncated_tokens: int = 0

    @property
    def numbers(self) -> tuple[float, ...]:
        """The vector's numbers."""
        return unpack(f"<{len(self.data) // 4}f", self.data)


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """The answer to Tokenize."""

    tokens: tuple[int, ...]


class Detokenized(msgspec.Struct, frozen=True, tag="detokenized"):
    """The answer to Detokenize: UTF-8, which may begin and end within a character."""

    data: bytes


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The request failed; the client raises the error class whose ``code`` this is."""

    code: str
    message: str
    hint: str = ""
    needed_tokens: int = 0
    available_tokens: int = 0


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Reply to ``messages`` through the chat template, or continue ``prompt`` as it is.

    ``continue_last``: go on with the last message, the assistant's, instead of a new one. ``think``
    reaches the template as ``enable_thinking``, ``tools`` (JSON objects that describe functions) as
    ``tools``. ``template``, if not empty, replaces the model's: Jinja, or the name of a built-in.

    A prompt's text never becomes control tokens, except with ``parse_special``: for who writes the
    template out. With a ``suffix``, the reply is what belongs between prompt and suffix.

    ``tokens`` come before all that (then no BOS is added): ids, as ``Done.tokens`` has them after
    ``return_tokens``.

    With less than ``reserve_tokens`` of the context left for the reply, the request fails with
    ``context_full``; with ``truncate``, what follows the first ``keep_tokens`` (and BOS; -1 = all
    that can stay) is left out instead, and Truncated says how much.

    When the reply fills the context, it is over, unless ``shift``: then half of the oldest tokens
    go, with a Truncated event, but not the first ``keep_tokens`` (-1 = the prompt) nor those of the
    first ``keep_messages``. The KV state may be written to disk if ``snapshot``, as part of
    ``conversation``, under which it can be forgotten.
    """

    sampling: Sampling
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    reserve_tokens: int = 0
    think: bool | None = None
    tools: tuple[dict[str, Any], ...] = ()
    continue_last: bool = False
    template: str = ""
    parse_special: bool = False
    suffix: str | None = None
    tokens: tuple[int, ...] = ()
    return_tokens: bool = False
    truncate: bool = False
    keep_tokens: int = 0
    keep_messages: int = 0
    shift: bool = False
    conversation: str = ""
    snapshot: bool = True


class Further(TypedDict, total=False):
    """The fields of Generate that a conversation sets."""

    keep_messages: int
    shift: bool
    conversation: str
    snapshot: bool


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """Answer with a Vector for each of the ``inputs`` (texts, or token ids) in order, then Done.

    Vectors have length 1 unless not ``normalise``; ``dimensions`` > 0 keeps their first numbers
    only. An input that is longer than the context fails the request with ``context_full``; with
    ``truncate`` its end is left out.
    """

    inputs: tuple[str | tuple[int, ...], ...]
    truncate: bool = False
    normalise: bool = True
    dimensions: int = 0


class Tokenize(msgspec.Struct, frozen=True, tag="tokenize"):
    """Answer with Tokens: those of a text, without BOS, or those that a request begins with."""

    prompt: str | Generate


class Detokenize(msgspec.Struct, frozen=True, tag="detokenize"):
    """Answer with Detokenized; control tokens add nothing."""

    tokens: tuple[int, ...]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop the running request; it ends with ``Done(reason="cancelled")``."""


Event = Prefill | Text | Truncated | Done
Task = Generate | Embed | Tokenize | Detokenize  # what a loaded model can be asked for
Reply = Loading | Ready | Event | Vector | Tokens | Detokenized | Failed
Request = LoadOptions | Task | Cancel

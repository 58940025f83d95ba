"""The values that cross between front ends and workers; knows no llama.cpp.

They are msgspec structs, because they travel over the worker's socket as msgpack.
"""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message; ``role`` is ``system``, ``user``, ``assistant`` or ``tool``."""

    role: str
    content: str


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. Names and meanings are llama.cpp's and Ollama's.

    ``temperature`` 0 is greedy. ``seed`` None = a fresh one each time. ``max_tokens`` -1 = until
    the model stops or the context is full. ``repeat_last_n`` and ``dry_penalty_last_n`` -1 = the
    whole context. ``mirostat`` 1 or 2 replaces all but temperature and ``logit_bias`` (token id to
    what is added to its score). ``grammar`` (GBNF) or ``schema`` (JSON Schema), if not empty, binds
    the reply.
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


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """What a worker loads and how.

    ``paths`` are the parts of one model in order; ``template`` is Jinja source that replaces the
    file's own (empty = the file's), ``fallback_template`` the name of a built-in one for files
    without any. ``context_length`` in tokens. ``gpu_layers`` -1 = all. ``threads`` 0 = physical
    cores.
    """

    paths: tuple[str, ...]
    context_length: int
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


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded. ``template`` says which chat template is used and where it is from."""

    context_length: int
    trained_context_length: int
    template: str
    load_seconds: float
    system_info: str = ""


class Prefill(msgspec.Struct, frozen=True, tag="prefill"):
    """The prompt is being read: ``done`` of ``total`` tokens, those in the cache included."""

    done: int
    total: int


class Text(msgspec.Struct, frozen=True, tag="text"):
    """More of the reply; whole characters only."""

    text: str


class Truncated(msgspec.Struct, frozen=True, tag="truncated"):
    """The context policy left ``messages`` old messages (``tokens`` tokens) out of the prompt."""

    messages: int
    tokens: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The reply is over. ``reason``: ``stop``, ``length`` (max_tokens), ``context`` (the context is
    full) or ``cancelled``. ``seed`` is the one that was used."""

    reason: str
    usage: Usage
    timings: Timings
    seed: int | None = None


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The request failed; the client raises the error class whose ``code`` this is."""

    code: str
    message: str
    hint: str = ""
    needed_tokens: int = 0
    available_tokens: int = 0


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Reply to ``messages`` through the chat template, or continue ``prompt`` as it is.

    ``continue_last``: go on with the last message, the assistant's, instead of a new one. With less
    than ``reserve_tokens`` of the context left for the reply, the request fails with
    ``context_full``. ``think`` reaches the template as ``enable_thinking``.
    """

    sampling: Sampling
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    reserve_tokens: int = 0
    think: bool | None = None
    continue_last: bool = False


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop the running request; it ends with ``Done(reason="cancelled")``."""


Event = Prefill | Text | Truncated | Done
Reply = Loading | Ready | Prefill | Text | Done | Failed
Request = LoadOptions | Generate | Cancel

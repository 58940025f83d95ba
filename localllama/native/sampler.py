"""llama.cpp's sampler chain: picks the next token of one sequence."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as c
from numpy.typing import NDArray

from localllama.errors import EngineError, InvalidParameter
from localllama.native.llama import Context, Vocab

_MIROSTAT_TOKENS = 100  # how many of the likeliest tokens mirostat 1 estimates by, as in llama.cpp
# A grammar that can go on in many ways at once doubles its states with every token: what takes this
# long takes minutes and all memory a few tokens later. A JSON grammar takes 0.02 s.
_LONGEST_GRAMMAR_SECONDS = 5.0
Candidates = NDArray[Any]
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Sampler:
    """A chain that picks the next token, in llama.cpp's order; neutral stages are left out.

    ``temperature`` 0 takes the most probable token after penalties. A ``grammar`` (GBNF, '' =
    none) must have passed ``engine.grammar.check``. Raises InvalidParameter for one that llama.cpp
    does not parse, and for a ``logit_bias`` on a token that the vocabulary does not have.
    """

    def __init__(
        self,
        context: Context,
        *,
        seed: int,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        repeat_last_n: int = 64,
        repeat_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        dry_multiplier: float = 0.0,
        dry_base: float = 1.75,
        dry_allowed_length: int = 2,
        dry_penalty_last_n: int = -1,
        dry_sequence_breakers: Sequence[str] = (),
        xtc_probability: float = 0.0,
        xtc_threshold: float = 0.1,
        mirostat: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        logit_bias: Mapping[int, float] | None = None,
        ignore_eos: bool = False,
        grammar: str = "",
    ) -> None:
        vocab = context._model.vocab
        self.seed = seed
        self._context = context
        self._vocab = vocab
        self._grammar = _Grammar(vocab, grammar) if grammar else None
        self._chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
        self._memories: list[int] = []  # the stages that look at earlier tokens
        self.remembered_tokens = 0
        never = _ends(vocab) if ignore_eos else ()
        if biases := {**(logit_bias or {}), **dict.fromkeys(never, -math.inf)}:
            self._bias(biases)
        if not mirostat:
            strengths = (repeat_penalty, frequency_penalty, presence_penalty)
            if repeat_last_n and strengths != (1.0, 0.0, 0.0):
                window = self._window(repeat_last_n)
                self._remembering(c.llama_sampler_init_penalties(vocab.size, window, *strengths))
            if dry_multiplier and dry_penalty_last_n:
                breakers = [text.encode() for text in dry_sequence_breakers]
                self._remembering(
                    c.llama_sampler_init_dry(
                        vocab._pointer,
                        dry_multiplier,
                        dry_base,
                        dry_allowed_length,
                        self._window(dry_penalty_last_n),
                        (ctypes.c_char_p * len(breakers))(*breakers),
                        len(breakers),
                    )
                )
        if temperature == 0:
            self._add(c.llama_sampler_init_greedy())
        elif mirostat:
            self._add(c.llama_sampler_init_temp(temperature))
            self._add(
                c.llama_sampler_init_mirostat(
                    vocab.size, seed, mirostat_tau, mirostat_eta, _MIROSTAT_TOKENS
                )
                if mirostat == 1
                else c.llama_sampler_init_mirostat_v2(seed, mirostat_tau, mirostat_eta)
            )
        else:
            if top_k > 0:
                self._add(c.llama_sampler_init_top_k(top_k))
            if typical_p < 1:
                self._add(c.llama_sampler_init_typical(typical_p, 1))
            if top_p < 1:
                self._add(c.llama_sampler_init_top_p(top_p, 1))
            if min_p > 0:
                self._add(c.llama_sampler_init_min_p(min_p, 1))
            if xtc_probability > 0:
                self._add(c.llama_sampler_init_xtc(xtc_probability, xtc_threshold, 1, seed))
            if temperature != 1:
                self._add(c.llama_sampler_init_temp(temperature))
            self._add(c.llama_sampler_init_dist(seed))

    def _add(self, stage: int) -> None:
        c.llama_sampler_chain_add(self._chain, stage)

    def _remembering(self, stage: int) -> None:
        self._memories.append(stage)
        self._add(stage)

    def _window(self, tokens: int) -> int:
        """How many tokens a stage looks back; llama.cpp allocates what it is told."""
        window = self._context.length if tokens < 0 else min(tokens, self._context.length)
        self.remembered_tokens = max(self.remembered_tokens, window)
        return window

    def _bias(self, biases: Mapping[int, float]) -> None:
        if beyond := [token for token in biases if not 0 <= token < self._vocab.size]:
            self.close()
            raise InvalidParameter(
                f"logit_bias names token {beyond[0]}, the vocabulary has {self._vocab.size} tokens"
            )
        pairs = (c.llama_logit_bias(token, bias) for token, bias in biases.items())
        entries = (c.llama_logit_bias * len(biases))(*pairs)
        self._add(c.llama_sampler_init_logit_bias(self._vocab.size, len(biases), entries))

    def remember(self, token: int) -> None:
        """Count a token of the prompt for the penalties; only ``remembered_tokens`` matter."""
        for stage in self._memories:
            c.llama_sampler_accept(stage, token)

    def sample(self, index: int = -1) -> int:
        """Pick a token by the logits of output ``index`` of the last decode, -1 = the last one.

        Raises EngineError if they are no numbers, or the grammar allows no token.
        """
        pointer = self._context._pointer
        logits = c.llama_get_logits_ith(pointer, index)
        if self._grammar is not None:
            return self._sample_by(self._grammar, logits)
        token: int = c.llama_sampler_sample(self._chain, pointer, index)
        _require_number(logits[token])
        return token

    def _sample_by(self, grammar: _Grammar, logits: Any) -> int:
        """Pick as if free, and only if the grammar refuses that token among those it allows.

        As llama.cpp's own programs do: asking a JSON grammar about one token takes 0.15 ms, about
        a vocabulary of 49k 20 ms. A token that the grammar refuses is never accepted: llama.cpp
        would throw a C++ exception, which ends the process.
        """
        everything = np.empty(self._vocab.size, _CANDIDATE)
        everything["id"] = np.arange(self._vocab.size)
        everything["logit"] = np.ctypeslib.as_array(logits, shape=(self._vocab.size,))
        token = self._choose(everything.copy())
        _require_number(logits[token])
        if not grammar.allowed(everything[token : token + 1].copy()).size:
            allowed = grammar.allowed(everything)
            if not allowed.size:
                raise EngineError(
                    "the grammar allows nothing here that the model's vocabulary can spell"
                )
            token = self._choose(allowed)
        grammar.accept(token)
        c.llama_sampler_accept(self._chain, token)
        return token

    def _choose(self, candidates: Candidates) -> int:
        """Run the chain over the candidates, which it reorders."""
        array = _apply(self._chain, candidates)
        return int(candidates["id"][array.selected])

    def close(self) -> None:
        """Free the chain."""
        c.llama_sampler_free(self._chain)
        if self._grammar is not None:
            self._grammar.close()


class _Grammar:
    """The grammar's state after the tokens accepted so far."""

    def __init__(self, vocab: Vocab, text: str) -> None:
        self._stage = c.llama_sampler_init_grammar(vocab._pointer, text.encode(), b"root")
        if not self._stage:
            raise InvalidParameter("llama.cpp does not parse the grammar", "it must be GBNF")

    def allowed(self, candidates: Candidates) -> Candidates:
        """Return those of the candidates that can come next."""
        begun = perf_counter()
        _apply(self._stage, candidates)
        if perf_counter() - begun > _LONGEST_GRAMMAR_SECONDS:
            raise EngineError(
                "the grammar can be read in too many ways at once",
                "rewrite it so that the next character tells which rule applies",
            )
        return candidates[candidates["logit"] > -np.inf]

    def accept(self, token: int) -> None:
        """Go on by a token that is allowed."""
        c.llama_sampler_accept(self._stage, token)

    def close(self) -> None:
        """Free it."""
        c.llama_sampler_free(self._stage)


def _ends(vocab: Vocab) -> list[int]:
    """The tokens that end a reply; llama.cpp makes them all control tokens when it loads."""
    special = {vocab.eos, *vocab.control.values(), *vocab.user_defined.values()}
    return [token for token in special if vocab.ends_reply(token)]


def _require_number(score: float) -> None:
    if score != score:
        raise EngineError(
            "the model computed values that are not numbers",
            "the file may be damaged: localllama verify NAME",
        )


def _apply(stage: int, candidates: Candidates) -> c.llama_token_data_array:
    data = candidates.ctypes.data_as(ctypes.POINTER(c.llama_token_data))
    array = c.llama_token_data_array(data=data, size=candidates.size, selected=-1, sorted=False)
    c.llama_sampler_apply(stage, ctypes.byref(array))
    return array

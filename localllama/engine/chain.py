"""From a request's sampling parameters to the sampler that picks its tokens; worker side."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache

from localllama.engine import grammar, schema
from localllama.engine.api import Sampling
from localllama.errors import InvalidParameter
from localllama.native.json_schema import to_gbnf
from localllama.native.llama import Context
from localllama.native.sampler import Sampler


def sampler(context: Context, wanted: Sampling, prompt: Sequence[int]) -> Sampler:
    """Return the sampler of a reply to the tokens of ``prompt``; raises InvalidParameter."""
    made = Sampler(
        context,
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
        dry_multiplier=wanted.dry_multiplier,
        dry_base=wanted.dry_base,
        dry_allowed_length=wanted.dry_allowed_length,
        dry_penalty_last_n=wanted.dry_penalty_last_n,
        dry_sequence_breakers=wanted.dry_sequence_breakers,
        xtc_probability=wanted.xtc_probability,
        xtc_threshold=wanted.xtc_threshold,
        mirostat=wanted.mirostat,
        mirostat_tau=wanted.mirostat_tau,
        mirostat_eta=wanted.mirostat_eta,
        logit_bias=wanted.logit_bias,
        ignore_eos=wanted.ignore_eos,
        grammar=wanted.grammar or (_grammar(wanted.schema) if wanted.schema else ""),
    )
    for token in prompt[max(0, len(prompt) - made.remembered_tokens) :]:
        made.remember(token)
    return made


@lru_cache(maxsize=64)  # the requests of one program mostly share a schema
def _grammar(text: str) -> str:
    made = to_gbnf(schema.definitions(text))
    try:
        grammar.check(made)
    except InvalidParameter as error:
        raise InvalidParameter(f"the schema asks too much: {error.message}", error.hint) from error
    return made

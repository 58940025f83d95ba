"""What fits where, and why: pure functions of a GGUF header, a machine and a wish."""

from __future__ import annotations

from localllama.plan.correct import corrected, options
from localllama.plan.estimate import context_length, memory_bytes
from localllama.plan.explain import rows, sentence
from localllama.plan.fit import alternatives, fit
from localllama.plan.types import HOST, MOST, SMALLEST_USEFUL_CONTEXT, Plan, Use, Want

__all__ = [
    "HOST",
    "MOST",
    "SMALLEST_USEFUL_CONTEXT",
    "Plan",
    "Use",
    "Want",
    "alternatives",
    "context_length",
    "corrected",
    "fit",
    "memory_bytes",
    "options",
    "rows",
    "sentence",
]

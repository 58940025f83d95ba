"""What fits where, and why: pure functions of a GGUF header, a machine and a wish."""

from __future__ import annotations

from localllama.plan.correct import corrected, options
from localllama.plan.estimate import memory_bytes
from localllama.plan.explain import idle_gpu, parallel, rows, sentence
from localllama.plan.fit import alternatives, fit, require_possible
from localllama.plan.formula import KV_TYPES, recurrent
from localllama.plan.learned import Error, Load, errors, kind_of, loads, ratios, record
from localllama.plan.types import HOST, MOST, SMALLEST_USEFUL_CONTEXT, Plan, Use, Want
from localllama.plan.verdict import CPU, FITS, NO, PARTLY, guess, verdict

__all__ = [
    "CPU",
    "FITS",
    "HOST",
    "KV_TYPES",
    "MOST",
    "NO",
    "PARTLY",
    "SMALLEST_USEFUL_CONTEXT",
    "Error",
    "Load",
    "Plan",
    "Use",
    "Want",
    "alternatives",
    "corrected",
    "errors",
    "fit",
    "guess",
    "idle_gpu",
    "kind_of",
    "loads",
    "memory_bytes",
    "options",
    "parallel",
    "ratios",
    "record",
    "recurrent",
    "require_possible",
    "rows",
    "sentence",
    "verdict",
]

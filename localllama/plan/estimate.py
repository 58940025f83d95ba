"""What a model needs in memory, before its header is known. Pure."""

from __future__ import annotations

# Compute buffers, the tokenizer and Python: 160-300 MB for models from 135M to 8B.
_OVERHEAD_BYTES = 300_000_000


def memory_bytes(weights_bytes: int) -> int:
    """Return the least that running takes: a short context comes on top."""
    return weights_bytes + _OVERHEAD_BYTES

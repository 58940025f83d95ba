"""Pure: what a model needs in memory, and the context that fits. Knows no machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localllama.errors import DoesNotFit

# Below this a chat is no chat: system prompt, a question with a page of text, an answer.
SMALLEST_USEFUL_CONTEXT = 4096
# Compute buffers, the tokenizer and Python: 160-300 MB for models from 135M to 8B.
_OVERHEAD_BYTES = 300_000_000


def kv_bytes(info: Mapping[str, Any], context_length: int, type_bytes: float = 2.0) -> int:
    """Return the bytes of the KV cache: layers x KV heads x (key + value size) x cells."""
    heads = info.get("head_count_kv") or info.get("head_count") or 0
    layers = int(info.get("block_count") or 0)
    total_heads = sum(heads) if isinstance(heads, list | tuple) else int(heads) * layers
    sizes = int(info.get("key_length") or 0) + int(info.get("value_length") or 0)
    return int(total_heads * sizes * context_length * type_bytes)


def memory_bytes(weights_bytes: int, info: Mapping[str, Any], context_length: int) -> int:
    """Return what running needs: weights, KV cache and what llama.cpp and Python take besides."""
    return weights_bytes + kv_bytes(info, context_length) + _OVERHEAD_BYTES


def context_length(
    info: Mapping[str, Any], weights_bytes: int, available_bytes: int, asked: int = 0
) -> int:
    """Return the context to open, in tokens.

    As asked; else the model's own length as long as its KV cache stays within a quarter of the
    memory the weights leave, else the largest that does, but at least 4096 where the model has
    that. Raises DoesNotFit when the weights and the context are more than is available.
    """
    trained = int(info.get("context_length") or SMALLEST_USEFUL_CONTEXT)
    chosen = asked or trained
    if not asked:
        per_token = kv_bytes(info, 1) or 1
        budget = max(0, available_bytes - weights_bytes) // 4
        floor = min(trained, SMALLEST_USEFUL_CONTEXT)
        chosen = max(floor, min(trained, budget // per_token // 256 * 256))
    needed = memory_bytes(weights_bytes, info, chosen)
    if needed > available_bytes:
        raise DoesNotFit(
            f"needs {needed / 1e9:.1f} GB of memory with a context of {chosen} tokens, and "
            f"{available_bytes / 1e9:.1f} GB are available",
            "close other programs, take a smaller context (--ctx), a smaller quantization or a "
            "smaller model; --yes tries all the same",
            needed_bytes=needed,
            available_bytes=available_bytes,
        )
    return chosen

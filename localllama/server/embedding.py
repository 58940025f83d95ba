"""Vectors of texts, for every API that offers them."""

from __future__ import annotations

from collections.abc import Sequence

from localllama.engine.api import Truncated, Vector
from localllama.errors import InvalidParameter
from localllama.server.bridge import Lane, Models
from localllama.store import Installed
from localllama.wants import Want

_MOST_INPUTS = 2048  # OpenAI's own limit


async def vectors(
    models: Models,
    model: Installed,
    want: Want,
    inputs: Sequence[str | tuple[int, ...]],
    *,
    truncate: bool,
    dimensions: int = 0,
) -> list[Vector]:
    """Return a vector of length 1 for each input.

    Raises InvalidParameter, ContextFull unless they may be truncated, and what opening raises.
    """
    if len(inputs) > _MOST_INPUTS:
        raise InvalidParameter(f"at most {_MOST_INPUTS} inputs at once, not {len(inputs)}")
    if not 0 <= dimensions <= 1 << 20:
        raise InvalidParameter("dimensions must be a positive number")

    def work(lane: Lane) -> list[Vector]:
        stream = lane.hold(lane.engine.embed(inputs, truncate=truncate, dimensions=dimensions))
        return [answer for answer in stream if isinstance(answer, Vector)]

    return await models.call(model, want, work)


def truncated(found: Sequence[Vector]) -> Truncated | None:
    """Return what was left out of the inputs, None if nothing was."""
    tokens = sum(vector.truncated_tokens for vector in found)
    return Truncated(0, tokens) if tokens else None

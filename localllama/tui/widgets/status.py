"""One line that says what runs where, how full the context is and how fast it goes."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text
from textual.app import RenderResult
from textual.reactive import reactive
from textual.widget import Widget

_GAUGE_CELLS = 10
UNKNOWN = -1  # the context length of a model whose server does not tell it


@dataclass(frozen=True, slots=True)
class State:
    """What the line says; '', 0 and None are left out.

    ``activity`` is what goes on now: loading, reading, replying. Rates are tokens a second.
    """

    model: str = ""
    quantization: str = ""
    place: str = ""
    activity: str = ""
    used_tokens: int = 0
    context_length: int = 0
    pinned: int = 0
    tokens_per_second: float = 0.0
    first_token_seconds: float = 0.0


class StatusLine(Widget):
    """Shows a State, the most important parts first where there is little room."""

    state: reactive[State] = reactive(State())

    def render(self) -> RenderResult:
        """Return the line."""
        parts = [part for part in _parts(self.state) if part]
        width = max(1, self.size.width)
        while len(parts) > 1 and sum(map(len, parts)) + 3 * (len(parts) - 1) > width:
            parts.pop()
        return Text(" · ".join(parts), no_wrap=True, overflow="ellipsis")


def _parts(state: State) -> list[str]:
    model = f"{state.model} {state.quantization}".strip()
    return [
        model or "no model",
        state.activity,
        _gauge(state),
        f"{state.tokens_per_second:.1f} tok/s" if state.tokens_per_second else "",
        state.place,
        f"first token {state.first_token_seconds:.2f} s" if state.first_token_seconds else "",
    ]


def _gauge(state: State) -> str:
    if not state.context_length:
        return ""
    pinned = f", {state.pinned} pinned" if state.pinned else ""
    if state.context_length == UNKNOWN:
        return f"ctx {state.used_tokens}/unknown{pinned}"
    share = min(1.0, state.used_tokens / state.context_length)
    cells = round(share * _GAUGE_CELLS)
    bar = "█" * cells + "░" * (_GAUGE_CELLS - cells)
    return f"ctx {bar} {state.used_tokens}/{state.context_length}{pinned}"

"""One line that says what runs where, how full the context is and how fast it goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic

from rich.text import Text
from textual.app import RenderResult
from textual.reactive import reactive
from textual.widget import Widget

from localllama.chat.conversation import Conversation, answered
from localllama.chat.records import StoredMessage
from localllama.engine.registry import Label
from localllama.plan import HOST
from localllama.tui.models import Models
from localllama.tui.replies import Reply
from localllama.tui.widgets.message import estimate

_GAUGE_CELLS = 10
UNKNOWN = -1  # the context length of a model whose server does not tell it


@dataclass(frozen=True, slots=True)
class State:
    """What the line says; '', 0 and None are left out.

    ``activity`` is what goes on now: loading, reading, replying. Rates are tokens a second. The
    used tokens are an ``estimate`` where the model has not read the chat.
    """

    model: str = ""
    quantization: str = ""
    place: str = ""
    activity: str = ""
    used_tokens: int = 0
    estimate: bool = False
    context_length: int = 0
    pinned: int = 0
    tokens_per_second: float = 0.0
    first_token_seconds: float = 0.0


def state_of(models: Models, conversation: Conversation | None, reply: Reply | None) -> State:
    """Return what there is to say of the model and a chat."""
    engine, installed = models.engine, models.installed
    branch = conversation.branch if conversation else []
    last = next((m for m in reversed(branch) if m.done and m.done.usage.prompt_tokens), None)
    # What another model made of the chat says nothing of this one.
    same = last and last.origin and installed and last.origin.model == installed.name
    done = last.done if last and same else None
    state = State(
        model=installed.name if installed else "",
        quantization=installed.variant if installed else "",
        place=_place(engine.label) if engine else "",
        activity=_activity(models, reply),
        context_length=(engine.ready.context_length or UNKNOWN) if engine else 0,
        pinned=sum(message.pinned for message in branch),
    )
    if done is not None and reply is None:
        timings, made = done.timings, done.usage.completion_tokens
        rate = made / timings.decode_seconds if timings.decode_seconds else 0.0
        first = timings.first_token_seconds
        state = replace(state, tokens_per_second=rate, first_token_seconds=first)
    if reply is not None and reply.prefill is not None:
        read = reply.prefill.total if reply.begun else reply.prefill.done
        return replace(state, used_tokens=read + reply.tokens)
    if done is not None:
        return replace(state, used_tokens=done.usage.prompt_tokens + done.usage.completion_tokens)
    return replace(state, used_tokens=_about(answered(branch)), estimate=bool(branch))


def _about(branch: Sequence[StoredMessage]) -> int:
    texts = (text for m in branch for text in (m.content, *(file.text for file in m.attachments)))
    return sum(map(estimate, texts))


def _activity(models: Models, reply: Reply | None) -> str:
    if models.error is not None:
        return "could not be loaded"
    if models.loading:
        return f"loading {models.fraction:.0%}"
    if reply is None:
        return ""
    seconds = f"{monotonic() - reply.started_at:.0f} s"
    if reply.begun:
        return f"replying {seconds}, Esc stops"
    prefill = reply.prefill
    return f"reading {prefill.done}/{prefill.total} tokens, {seconds}" if prefill else "waiting"


def _place(label: Label) -> str:
    """Where a model runs: ``24/33 layers on CUDA0``, ``CPU``, ``at desktop``."""
    if label.endpoint:
        return f"at {label.endpoint}"
    if not label.gpu_layers:
        return "CPU"
    devices = " + ".join(held.device for held in label.devices if held.device != HOST)
    return f"{label.gpu_layers}/{label.layers} layers on {devices}"


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
    used = f"~{state.used_tokens}" if state.estimate else str(state.used_tokens)
    if state.context_length == UNKNOWN:
        return f"ctx {used}/unknown{pinned}"
    share = min(1.0, state.used_tokens / state.context_length)
    cells = round(share * _GAUGE_CELLS)
    bar = "█" * cells + "░" * (_GAUGE_CELLS - cells)
    return f"ctx {bar} {used}/{state.context_length}{pinned}"

"""Asks for a context length or a KV type, and shows at each keystroke what it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, Label, Static

from localllama.errors import LocalLlamaError
from localllama.tui.page import Dialog


class CostFound(Message):
    """What the planner says to a value."""

    def __init__(self, value: str, text: str) -> None:
        super().__init__()
        self.value = value
        self.text = text


class Memory(Dialog[str | None]):
    """``cost`` says what a value takes, in a thread; it raises LocalLlamaError."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]

    def __init__(self, question: str, value: str, cost: Callable[[str], str]) -> None:
        super().__init__()
        self._question = question
        self._value = value
        self._cost = cost

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(classes="dialog"):
            yield Label(self._question, markup=False)
            yield Input(self._value, id="answer")
            yield Static("...", id="cost", markup=False)
            yield Label("Enter accepts, Esc cancels", classes="note")

    def on_mount(self) -> None:
        """Say what the present value takes."""
        self._ask(self._value)

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        self._ask(event.value.strip())

    def _ask(self, value: str) -> None:
        def look() -> None:
            try:
                text = self._cost(value)
            except LocalLlamaError as error:
                text = f"{error.message}. {error.hint}"
            self.post_message(CostFound(value, text))

        threading.Thread(target=look, daemon=True).start()

    def on_cost_found(self, event: CostFound) -> None:
        """Show it, unless something else was typed meanwhile."""
        if event.value == self.query_one("#answer", Input).value.strip():
            self.query_one("#cost", Static).update(event.text)

    @on(Input.Submitted)
    def _accept(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value.strip() or None)

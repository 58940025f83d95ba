"""Asks for a context length or a KV type, and shows at each keystroke what it takes."""

from __future__ import annotations

import threading
from collections.abc import Callable

from textual import on
from textual.message import Message
from textual.widgets import Input

from localllama.errors import LocalLlamaError
from localllama.tui.screens.dialogs import Ask


class CostFound(Message):
    """What the planner says to a value."""

    def __init__(self, value: str, text: str) -> None:
        super().__init__()
        self.value = value
        self.text = text


class Memory(Ask):
    """``cost`` says what a value takes, in a thread; it raises LocalLlamaError."""

    def __init__(
        self, question: str, take: Callable[[str], None], value: str, cost: Callable[[str], str]
    ) -> None:
        super().__init__(question, take, value)
        self._cost = cost

    def on_mount(self) -> None:
        """Say what the present value takes."""
        self.say("...")
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
            self.say(event.text)

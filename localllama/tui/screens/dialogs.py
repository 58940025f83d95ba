"""Small questions over a screen: a text, or one of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, Label, OptionList
from textual.widgets.option_list import Option

from localllama.tui.page import Dialog


class Ask(Dialog[str | None]):
    """Asks for a text; None when the user leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]

    def __init__(self, question: str, value: str = "") -> None:
        super().__init__()
        self._question = question
        self._value = value

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(classes="dialog"):
            yield Label(self._question, markup=False)
            yield Input(self._value, id="answer")
            yield Label("Enter accepts, Esc cancels", classes="note")

    @on(Input.Submitted)
    def _accept(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value.strip() or None)


class Choose(Dialog[str | None]):
    """Asks for one of ``options`` (value, what is shown); None when the user leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]

    def __init__(
        self, question: str, options: Sequence[tuple[str, str]], current: str = ""
    ) -> None:
        super().__init__()
        self._question = question
        self._options = options
        self._current = current

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(classes="dialog"):
            yield Label(self._question, markup=False)
            yield OptionList(
                *(
                    Option(Text(shown, no_wrap=True), id=str(i))
                    for i, (_, shown) in enumerate(self._options)
                ),
                id="choices",
            )
            yield Label("Enter chooses, Esc cancels", classes="note")

    def on_mount(self) -> None:
        """Begin at the present choice."""
        values = [value for value, _ in self._options]
        if self._current in values:
            self.query_one(OptionList).highlighted = values.index(self._current)

    @on(OptionList.OptionSelected)
    def _accept(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.dismiss(self._options[event.option_index][0])

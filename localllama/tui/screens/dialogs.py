"""Small questions over a screen: a text, or one of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, Label, OptionList, Static
from textual.widgets.option_list import Option

from localllama.errors import LocalLlamaError
from localllama.harmless import printable
from localllama.tui.page import Dialog


class Ask(Dialog[None]):
    """Asks for a text until ``take`` raises no LocalLlamaError, or the user leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Cancel")]

    def __init__(self, question: str, take: Callable[[str], None], value: str = "") -> None:
        super().__init__()
        self._question = question
        self._take = take
        self._value = value

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(classes="dialog"):
            yield Label(self._question, markup=False)
            yield Input(self._value, id="answer")
            yield Static(id="said", markup=False)
            yield Label("Enter accepts, Esc cancels", classes="note")

    def say(self, text: str) -> None:
        """Say something of what is written."""
        said = self.query_one("#said", Static)
        said.update(printable(text))
        said.display = bool(text)

    @on(Input.Submitted)
    def _accept(self, event: Input.Submitted) -> None:
        event.stop()
        if not self.is_active:
            return
        try:
            if text := event.value.strip():
                self._take(text)
        except LocalLlamaError as error:
            self.say(f"{error.message}. {error.hint}".strip())
        else:
            self.dismiss()


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

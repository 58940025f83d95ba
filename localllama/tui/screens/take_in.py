"""Asks for a GGUF file on this machine and a name for it, and begins to take it in."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.suggester import Suggester
from textual.widgets import Input, Label, Static

from localllama import pull
from localllama.errors import LocalLlamaError
from localllama.harmless import printable
from localllama.tui.file_names import ggufs
from localllama.tui.page import Dialog

if TYPE_CHECKING:
    from localllama.tui.app import LocalLlamaApp

_MOST = 8  # file names that are shown at once


class TakeIn(Dialog[None]):
    """What is wrong with a path is said here, where it can be mended."""

    app: LocalLlamaApp

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Cancel")]

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(classes="dialog"):
            yield Label("Which GGUF file, or folder with one?")
            yield PathInput(suggester=FileNames(), id="path")
            yield Static(id="files", markup=False)
            yield Label("Under which name?")
            yield Input(id="name")
            yield Label("Tab completes a path, Enter takes it in, Esc cancels", classes="note")

    @on(Input.Changed, "#path")
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self._propose(event.value)
        self._list(event.value)

    def _propose(self, path: str) -> None:
        """Name it as the file, unless the user has chosen a name."""
        name = self.query_one("#name", Input)
        if not name.value or name.has_class("proposed"):
            with name.prevent(Input.Changed):
                name.value = str(pull.local_name(path))
            name.add_class("proposed")

    @on(Input.Changed, "#name")
    def _named(self, event: Input.Changed) -> None:
        event.stop()
        event.input.remove_class("proposed")

    @work(exclusive=True)
    async def _list(self, path: str) -> None:
        names = await asyncio.to_thread(ggufs, path)
        more = [f"and {len(names) - _MOST} more"] if len(names) > _MOST else []
        self._say("\n".join([*names[:_MOST], *more]))

    def _say(self, text: str) -> None:
        self.query_one("#files", Static).update(printable(text))

    @on(Input.Submitted)
    def _accept(self, event: Input.Submitted) -> None:
        event.stop()
        path, name = (self.query_one(f"#{field}", Input).value for field in ("path", "name"))
        try:
            self.app.take_in(path, name)
        except LocalLlamaError as error:
            self._say(f"{error.message}. {error.hint}")
        else:
            self.dismiss()


class PathInput(Input):
    """A field in which Tab takes what is suggested, and otherwise goes on."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("tab", "complete", "Complete", show=False)]

    def action_complete(self) -> None:
        """Take the suggestion."""
        before = self.value
        self.action_end()
        self.action_cursor_right()
        if self.value == before:
            self.screen.focus_next()


class FileNames(Suggester):
    """Goes on with the first folder or GGUF file that begins as what is typed."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        """Return the path in full."""
        found = await asyncio.to_thread(ggufs, value)
        return value[: -len(os.path.split(value)[1]) or None] + found[0] if found else None

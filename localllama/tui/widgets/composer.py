"""Where messages are written: several lines, what was written before, large pastes as files."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from localllama.chat.records import Attachment

_LARGE_CHARS, _LARGE_LINES = 2_000, 25


class Composer(TextArea):
    """Enter sends, Shift+Enter or Ctrl+J begins a new line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send"),
        Binding("shift+enter,ctrl+j", "new_line", "New line", key_display="^J"),
        Binding("ctrl+underscore", "undo", "Undo", show=False),  # Ctrl+Z suspends
    ]

    class Sent(Message):
        """A text was sent, with what was pasted beside it."""

        def __init__(self, text: str, attachments: tuple[Attachment, ...]) -> None:
            super().__init__()
            self.text = text
            self.attachments = attachments

    class Attached(Message):
        """The attachments have changed."""

        def __init__(self, attachments: tuple[Attachment, ...]) -> None:
            super().__init__()
            self.attachments = attachments

    def __init__(self, id: str | None = None) -> None:
        super().__init__(
            id=id,
            soft_wrap=True,
            show_line_numbers=False,
            highlight_cursor_line=False,
            placeholder="Write a message (/ for commands, @file attaches a text)",
            tab_behavior="focus",
        )
        self.past: list[str] = []  # what was sent before, the latest last
        self._attachments: tuple[Attachment, ...] = ()
        self._at: int | None = None  # in ``past``
        self._draft = ""

    def action_send(self) -> None:
        """Send what is written."""
        text = self.text
        if not text.strip() and not self._attachments:
            return
        attachments = self._attachments
        if text.strip() and self.past[-1:] != [text]:
            self.past.append(text)
        self.write("")
        self.post_message(self.Sent(text, attachments))

    def action_new_line(self) -> None:
        """Begin a new line."""
        self.insert("\n")

    def write(self, text: str, attachments: tuple[Attachment, ...] = ()) -> None:
        """Put a text in, instead of what is there."""
        self.load_text(text)
        self.move_cursor(self.document.end)
        self._at = None
        self._keep_files(attachments)

    def action_cursor_up(self, select: bool = False) -> None:
        """Go up a line, or in the first one to what was sent before."""
        if self.cursor_location[0] > 0 or select:
            super().action_cursor_up(select)
        else:
            self._recall(-1)

    def action_cursor_down(self, select: bool = False) -> None:
        """Go down a line, or in the last one back to what was being written."""
        if self.cursor_location[0] < self.document.line_count - 1 or select or self._at is None:
            super().action_cursor_down(select)
        else:
            self._recall(1)

    def _recall(self, step: int) -> None:
        if not self.past:
            return
        if self._at is None:
            self._draft, at = self.text, len(self.past)
        else:
            at = self._at
        at = max(0, at + step)
        self.load_text(self.past[at] if at < len(self.past) else self._draft)
        self.move_cursor(self.document.end)
        self._at = at if at < len(self.past) else None

    async def _on_key(self, event: events.Key) -> None:
        # Not by a priority binding: those overtake the characters that were typed just before.
        if event.key == "enter":
            event.prevent_default()
            event.stop()
            self.action_send()

    async def _on_paste(self, event: events.Paste) -> None:
        """Attach a large text instead of showing all of it."""
        text = event.text
        if len(text) <= _LARGE_CHARS and text.count("\n") <= _LARGE_LINES:
            return  # Textual goes on with the handler of TextArea
        event.prevent_default()
        event.stop()
        number = sum(file.name.startswith("pasted") for file in self._attachments) + 1
        self._keep_files((*self._attachments, Attachment(f"pasted-{number}.txt", text)))

    def _keep_files(self, attachments: tuple[Attachment, ...]) -> None:
        if attachments != self._attachments:
            self._attachments = attachments
            self.post_message(self.Attached(attachments))

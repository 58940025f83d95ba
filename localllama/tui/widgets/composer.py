"""Where messages are written: several lines, what was written before, large pastes as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import OptionList, Static, TextArea
from textual.widgets.option_list import Option

from localllama.chat.records import Attachment
from localllama.tui.widgets.message import estimate

_LARGE_CHARS, _LARGE_LINES = 2_000, 25
_SHOWN_CHARS = 40  # of what is offered; a path differs at its end


@dataclass(frozen=True, slots=True)
class Completion:
    """``text`` may take the place of ``typed``, which is before the cursor."""

    typed: str
    text: str
    says: str = ""

    @property
    def shown(self) -> str:
        """The text, or as much of its end as has room in a line."""
        return self.text if len(self.text) <= _SHOWN_CHARS else f"…{self.text[1 - _SHOWN_CHARS :]}"


class Offers(OptionList, can_focus=False):
    """What may become of the word that is written; Tab takes the marked one, or the first."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id, markup=False, compact=True)
        self._completions: Sequence[Completion] = ()
        self.border_subtitle = "Tab completes, ↑ ↓ choose"

    @property
    def marked(self) -> Completion | None:
        """What the user has chosen so far."""
        return None if self.highlighted is None else self._completions[self.highlighted]

    @property
    def first(self) -> Completion | None:
        """What is meant when nothing is marked."""
        return next(iter(self._completions), None)

    def offer(self, completions: Sequence[Completion]) -> None:
        """Show some, or nothing."""
        if completions != self._completions:
            self._completions = completions
            self.clear_options()
            width = max((len(offered.shown) for offered in completions), default=0)
            self.add_options(Option(_line(offered, width)) for offered in completions)
            self.set_class(bool(completions), "some")


class Composer(TextArea):
    """Enter sends, Shift+Enter or Ctrl+J begins a new line.

    ``complete`` returns what the text before the cursor may become, shown in ``offers``.
    """

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

    def __init__(
        self,
        offers: Offers,
        complete: Callable[[str], Sequence[Completion]],
        id: str | None = None,
    ) -> None:
        self._offers = offers
        self._complete = complete
        super().__init__(
            id=id,
            soft_wrap=True,
            show_line_numbers=False,
            highlight_cursor_line=False,
            placeholder="Write a message (/ commands, @file attaches)",
            tab_behavior="focus",
        )
        self.past: list[str] = []  # what was sent before, the latest last
        self._attachments: tuple[Attachment, ...] = ()
        self._at: int | None = None  # in ``past``
        self._draft = ""
        self._aside: tuple[str, tuple[Attachment, ...]] = ("", ())  # while a message is edited

    @property
    def unsent(self) -> tuple[str, tuple[Attachment, ...]]:
        """What was being written, and what goes with it; a message that is edited is saved."""
        return self._aside if self.has_class("editing") else (self.text, self._attachments)

    def begin_edit(self, text: str, attachments: tuple[Attachment, ...]) -> None:
        """Put a sent message in; what is there comes back when that is left."""
        self._aside = self.unsent
        self.write(text, attachments)
        self.add_class("editing")
        self.border_title = "an earlier message: Enter sends another version, Esc leaves it"

    def leave_edit(self) -> None:
        """Bring back what was being written, if a message is edited."""
        if self.has_class("editing"):
            self.write(*self._aside)
            self.remove_class("editing")
            self.border_title = ""

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

    def action_delete_left(self) -> None:
        """Delete a character, or before the first one what was attached last."""
        if self.selection.is_empty and self.cursor_location == (0, 0):
            self._keep_files(self._attachments[:-1])
        else:
            super().action_delete_left()

    def write(self, text: str, attachments: tuple[Attachment, ...] = ()) -> None:
        """Put a text in, instead of what is there."""
        self.load_text(text)
        self.move_cursor(self.document.end)
        self._at = None
        self._keep_files(attachments)

    def action_cursor_up(self, select: bool = False) -> None:
        """Go up a line or an offer, or in the first line to what was sent before."""
        if self._offers.first and not select:
            self._offers.action_cursor_up()
        elif self.cursor_location[0] > 0 or select:
            super().action_cursor_up(select)
        else:
            self._recall(-1)

    def action_cursor_down(self, select: bool = False) -> None:
        """Go down a line or an offer, or in the last line back to what was being written."""
        if self._offers.first and not select:
            self._offers.action_cursor_down()
        elif self.cursor_location[0] < self.document.line_count - 1 or select or self._at is None:
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
        marked = self._offers.marked
        if event.key == "tab" and (offered := marked or self._offers.first):
            self.take(offered)
        elif event.key == "enter" and marked:
            self.take(marked)
        elif event.key == "enter":
            self.action_send()
        else:
            return
        event.prevent_default()
        event.stop()

    def update_suggestion(self) -> None:
        """Offer what the text before the cursor may become."""
        self._offers.offer(self._complete(self.get_text_range((0, 0), self.cursor_location)))

    def take(self, offered: Completion) -> None:
        """Put an offer in the place of what was typed."""
        line, column = self.cursor_location
        self.replace(offered.text, (line, column - len(offered.typed)), (line, column))

    def on_blur(self) -> None:
        """Offer nothing to somebody who is elsewhere."""
        self._offers.offer(())

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


class Writing(Vertical):
    """The composer, and above it what is attached and what is offered."""

    def __init__(self, complete: Callable[[str], Sequence[Completion]]) -> None:
        super().__init__()
        self._complete = complete

    def compose(self) -> ComposeResult:
        """Make the parts."""
        yield Static(id="attached", markup=False)
        yield (offers := Offers(id="offers"))
        yield Composer(offers, self._complete, id="composer")

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if marked := self.query_one(Offers).marked:
            self.query_one(Composer).take(marked)

    @on(Composer.Attached)
    def _show_attached(self, event: Composer.Attached) -> None:
        event.stop()
        files = (f"+ {a.name} (about {estimate(a.text)} tokens)" for a in event.attachments)
        line = self.query_one("#attached", Static)
        line.update("\n".join(files) + " · Backspace before the text takes it away")
        line.set_class(bool(event.attachments), "some")


def _line(offered: Completion, width: int) -> Text:
    return Text.assemble(offered.shown.ljust(width), (f"  {offered.says}", "dim"))

"""One message of the transcript, drawn line by line: a reply that grows redraws its last lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import Reactive
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget

from localllama.chat.records import FAILED, StoredMessage
from localllama.harmless import printable

if TYPE_CHECKING:
    from localllama.tui.markdown import Lines

_ENDINGS = {
    "length": "cut at max_tokens",
    "context": "cut: the context is full",
    "cancelled": "stopped",
    FAILED: "broken off",
}
# A reply that is coming takes so many lines at once: only then does all above it move, which costs
# many times what one more line does.
_GROWTH = 8


class MessageView(Widget, can_focus=True):
    """Shows ``message``; ``place`` is which version of how many it is."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "app.focus_previous_message", "Up", show=False),
        Binding("down,j", "app.focus_next_message", "Down", show=False),
        Binding("y", "copy", "Copy"),
        Binding("c", "copy_code", "Copy code"),
        Binding("e", "ask('edit')", "Edit"),
        Binding("r", "ask('again')", "Again"),
        Binding("p", "ask('pin')", "Pin"),
        Binding("left,[", "ask('older')", "Earlier version", show=False),
        Binding("right,]", "ask('newer')", "Later version", show=False),
        Binding("t", "fold", "Thinking", show=False),
    ]

    class Asked(Message):
        """Somebody wants something done with the message: ``what`` names it."""

        def __init__(self, view: MessageView, what: str) -> None:
            super().__init__()
            self.view = view
            self.what = what

        @property
        def control(self) -> MessageView:
            """The view of the message."""
            return self.view

    # Textual lays out and paints again when this changes, after it has done both for what grew.
    virtual_size: Reactive[Size] = Reactive(Size(0, 0), repaint=False)

    def __init__(
        self, message: StoredMessage, place: tuple[int, int] = (1, 1), *, live: bool = False
    ) -> None:
        super().__init__(classes=message.role)
        self.message = message
        self.place = place
        self.live = live  # the reply is still coming
        self._unfolded = False
        self._text = _lines()
        self._strips: list[Strip] = []
        self._made_for: tuple[int, bool] | None = None

    def show(self, message: StoredMessage, *, live: bool = False) -> None:
        """Show what became of the message."""
        ended = self.live and not live
        self.message, self.live = message, live
        if self._made_for is None or ended:
            self._made_for = None
            self.refresh(layout=True)
            return
        lines, height = len(self._strips), self._height
        same = self._make(*self._made_for)
        if self._height != height:
            self.refresh(layout=True)
        else:
            lines = max(lines, len(self._strips))
            self.refresh(Region(0, same, self.size.width, lines - same))

    def has_version(self, which: str) -> bool:
        """Whether there is an ``older`` or a ``newer`` version."""
        number, count = self.place
        return number > 1 if which == "older" else number < count

    def on_mount(self) -> None:
        """Follow the theme."""
        self.app.theme_changed_signal.subscribe(self, lambda _: self._forget())

    def _forget(self) -> None:
        self._made_for = None
        self.refresh(layout=True)

    # drawing

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return the number of lines at that width."""
        made_for = (width, self.app.current_theme.dark)
        if made_for != self._made_for:
            self._make(*made_for)
        return self._height

    @property
    def _height(self) -> int:
        lines = len(self._strips)
        return lines + -lines % _GROWTH if self.live else lines

    def render_line(self, y: int) -> Strip:
        """Return one line."""
        width = self.size.width
        if self._made_for is None or self._made_for[0] != width:
            self._make(width, self.app.current_theme.dark)
        style = self.rich_style
        strip = self._strips[y] if y < len(self._strips) else Strip.blank(width)
        strip = strip.apply_style(style).adjust_cell_length(width, style)
        if (selection := self.text_selection) and (span := selection.get_span(y)):
            strip = _highlighted(
                strip, *span, self.screen.get_component_rich_style("screen--selection")
            )
        return strip.apply_offsets(0, y)

    def _make(self, width: int, dark: bool) -> int:
        """Make all lines and return how many of the first ones stayed as they were."""
        width = max(1, width)
        message, before = self.message, self._strips
        above = [self._head(), *self._attached(), *self._thinking(width, dark)]
        content = printable(message.content)
        if message.role == "user":
            body = _plain(content, width, dark=dark)
        else:
            self._text.show(content.lstrip("\n"), width, dark=dark)
            body = self._text.strips
        self._strips = [*above, *body, *self._foot()]
        self._made_for = (width, dark)
        return _common(before, self._strips)

    def _head(self) -> Strip:
        message, (number, count) = self.message, self.place
        who = "You" if message.role == "user" else message.role.capitalize()
        if message.role == "assistant" and message.origin is not None:
            who = message.origin.model
        dim = Style(dim=True)
        strip = [Segment(who, Style(bold=True)), Segment("  pinned" * message.pinned, dim)]
        if count > 1:
            strip.append(Segment(f"  version {number}/{count}", dim))
        if self.has_version("older"):
            strip.append(Segment(" · Alt+← earlier", dim + _click("ask('older')")))
        if self.has_version("newer"):
            strip.append(Segment(" · Alt+→ later", dim + _click("ask('newer')")))
        return Strip(strip)

    def _attached(self) -> list[Strip]:
        return [
            Strip([Segment(f"+ {file.name} (about {estimate(file.text)} tokens)", Style(dim=True))])
            for file in self.message.attachments
        ]

    def _thinking(self, width: int, dark: bool) -> list[Strip]:
        thought = printable(self.message.thinking)
        if not thought:
            return []
        words = len(thought.split())
        fold = _click("fold") + Style(dim=True)
        mark = "▾" if self._unfolded else "▸"
        over = "" if self.message.content or not self.live else "…"
        head = Strip([Segment(f"{mark} thought in {words} words{over}  (t)", fold)])
        if not self._unfolded:
            return [head]
        lines = _plain(thought, max(1, width - 2), dark=dark, style="dim")
        return [
            head,
            *(Strip([Segment("│ ", Style(dim=True)), *line]) for line in lines),
            Strip([]),
        ]

    def _foot(self) -> list[Strip]:
        message = self.message
        if message.role != "assistant" or self.live or not message.cut:
            return []
        reason = message.done.reason if message.done else FAILED
        # A reply that fills the context alone has no room to go on in.
        first = "a longer one (F3) helps, " if reason == "context" else ""
        note = f"[{_ENDINGS.get(reason, reason)}; {first}Ctrl+G goes on]"
        return [Strip([Segment(note, Style(dim=True, italic=True))])]

    # what can be done with it

    def action_ask(self, what: str) -> None:
        """Pass a wish on to the screen."""
        self.post_message(self.Asked(self, what))

    def action_fold(self) -> None:
        """Show the thinking, or hide it."""
        if not self.message.thinking:
            self.notify("there is no thinking in this message", severity="warning")
            return
        self._unfolded = not self._unfolded
        self._forget()

    def action_copy(self) -> None:
        """Copy the message as it was written."""
        self._copy(self.message.content, "message")

    def action_copy_code(self, number: int = -1) -> None:
        """Copy a code block, the last one unless told."""
        if self._text.codes:
            self._copy(self._text.codes[number].text, "code")
        else:
            self.notify("there is no code in this message", severity="warning")

    def _copy(self, text: str, what: str) -> None:
        self.app.copy_to_clipboard(text)
        self.notify(f"{what} copied")

    # selecting with the mouse

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Return the selected text."""
        return selection.extract("\n".join(strip.text.rstrip() for strip in self._strips)), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        """Redraw what is marked."""
        self.refresh()


def estimate(text: str) -> int:
    """About how many tokens a text is, without a tokenizer at hand."""
    return max(1, len(text.encode()) // 4) if text else 0


# What draws Markdown is an eighth of the app's imports, and an empty chat has none.


def _lines() -> Lines:
    from localllama.tui.markdown import Lines

    return Lines()


def _plain(text: str, width: int, *, dark: bool, style: str = "") -> list[Strip]:
    from localllama.tui.markdown import plain

    return plain(text, width, dark=dark, style=style)


def _click(action: str) -> Style:
    return Style.from_meta({"@click": action})


def _common(before: list[Strip], now: list[Strip]) -> int:
    """Return how many lines at the beginning are the same."""
    for index, (old, new) in enumerate(zip(before, now, strict=False)):
        if old is not new and old != new:  # most are the very same: each frame comes here
            return index
    return min(len(before), len(now))


def _highlighted(strip: Strip, start: int, end: int, style: Style) -> Strip:
    length = strip.cell_length
    end = length if end == -1 else min(end, length)
    before, marked, after = strip.divide([start, end, length])
    return Strip.join([before, Strip(_styled(marked, style)), after])


def _styled(segments: Sequence[Segment] | Strip, style: Style) -> list[Segment]:
    return [Segment(s.text, (s.style or Style()) + style, s.control) for s in segments]

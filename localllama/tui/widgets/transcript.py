"""The messages of a chat: the latest are mounted, earlier ones when somebody scrolls there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.containers import VerticalScroll
from textual.geometry import Size
from textual.reactive import Reactive
from textual.widgets import Static

from localllama.chat.records import StoredMessage
from localllama.engine.api import Truncated
from localllama.tui.widgets.message import MessageView

_CHUNK_SCREENS = 2  # so much is mounted at a time: more costs time before anything is seen
_LEAST_LINES, _LEAST_COLUMNS = 20, 40  # of a screen whose size is not known yet
_NEAR_TOP_LINES = 6

Places = Mapping[int, Sequence[int]]


class Transcript(VerticalScroll, can_focus=False):
    """Shows one branch of a chat; follows its end until somebody scrolls up."""

    # As with a message; a scroll bar that comes or goes asks for a layout itself.
    virtual_size: Reactive[Size] = Reactive(Size(0, 0), repaint=False)

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._earlier: list[StoredMessage] = []  # not mounted yet
        self._places: Places = {}
        self._mounting = False

    async def open(self, branch: Sequence[StoredMessage], places: Places) -> None:
        """Show another chat, from its end."""
        self._places = places
        self._earlier = list(branch)
        async with self.batch():
            await self.remove_children()
            await self.mount_all(self._next_chunk())
        self.anchor()

    async def add(self, message: StoredMessage, *, live: bool = False) -> MessageView:
        """Show one more message at the end, and go there."""
        view = MessageView(message, place_of(message, self._places), live=live)
        await self.mount(view)
        self.anchor()
        return view

    async def left_out(self, truncated: Truncated, before: MessageView) -> None:
        """Say, where it happened, what no longer goes to the model."""
        await self.mount(_truncation(truncated), before=before)

    @property
    def views(self) -> list[MessageView]:
        """The mounted messages, the first one first."""
        return [child for child in self.children if isinstance(child, MessageView)]

    def watch_scroll_y(self, old: float, new: float) -> None:
        """Mount earlier messages before their place comes into sight."""
        super().watch_scroll_y(old, new)
        if new < _NEAR_TOP_LINES and new < old and self._earlier and not self._mounting:
            self.call_later(self._mount_earlier)

    async def _mount_earlier(self) -> None:
        if self._mounting or not self._earlier:
            return
        self._mounting = True
        height = self.virtual_size.height
        await self.mount_all(self._next_chunk(), before=0)

        def keep_place() -> None:
            added = self.virtual_size.height - height
            self.scroll_to(y=self.scroll_y + added, animate=False, immediate=True)
            self._mounting = False

        self.call_after_refresh(keep_place)

    def _next_chunk(self) -> list[MessageView | Static]:
        columns, lines = max(_LEAST_COLUMNS, self.size.width), 0
        enough = _CHUNK_SCREENS * max(_LEAST_LINES, self.size.height)
        chunk: list[StoredMessage] = []
        while self._earlier and lines < enough:
            chunk.insert(0, self._earlier.pop())
            lines += _lines(chunk[0], columns)
        widgets: list[MessageView | Static] = []
        for message in chunk:
            if message.truncated is not None:
                widgets.append(_truncation(message.truncated))
            widgets.append(MessageView(message, place_of(message, self._places)))
        return widgets


def place_of(message: StoredMessage, places: Places) -> tuple[int, int]:
    """Return which version of how many a message is."""
    ids = places.get(message.id, [message.id])
    return ids.index(message.id) + 1, len(ids)


def _lines(message: StoredMessage, columns: int) -> int:
    """About how many lines a message takes: its name and the gap are two, blank lines may go."""
    said = (line for line in message.content.splitlines() if line.strip())
    return 2 + sum(1 + len(line) // columns for line in said)


def _truncation(truncated: Truncated) -> Static:
    plural = "" if truncated.messages == 1 else "s"
    text = (
        f"─ {truncated.messages} older message{plural} ({truncated.tokens} tokens) no longer go to "
        "the model: the context is full; pin what must stay ─"
    )
    return Static(text, classes="truncated", markup=False)

"""The conversations: by day, or those that a search finds with what it found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option, OptionDoesNotExist

from localllama.chat.records import Chat, Hit
from localllama.harmless import printable

_NOTHING = "Nothing is found. Esc clears the search."
WISHES = (  # key, what is to be done with a chat, how that is called
    ("r", "rename", "Rename"),
    ("p", "pin", "Pin"),
    ("d,delete", "delete", "Delete"),
    ("u", "undo", "Undo delete"),
    ("c", "duplicate", "Duplicate"),
    ("x", "export", "Export"),
    ("i", "import", "Import"),
)


class ChatList(OptionList):
    """The list, with what can be done with a chat."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "Open"),
        *(Binding(key, f"wish('{what}')", called) for key, what, called in WISHES),
        Binding("j", "cursor_down", "Down", show=False),
        Binding("k", "cursor_up", "Up", show=False),
    ]

    class Wish(Message):
        """Something is to be done with a chat; 0 = none is marked."""

        def __init__(self, what: str, chat: int) -> None:
            super().__init__()
            self.what = what
            self.chat = chat

    def begin(self) -> None:
        """Put the cursor on the first chat, unless it is on one."""
        if self.highlighted is None and self.option_count:
            self.action_first()

    def action_wish(self, what: str) -> None:
        """Tell the screen."""
        self.post_message(self.Wish(what, self.marked))

    @property
    def marked(self) -> int:
        """The chat under the cursor; 0 = none."""
        option = self.highlighted_option
        return _chat_of(option.id) if option else 0


class Search(Input):
    """The search field; Enter or the arrow down goes on to the list."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("down", "submit", "To the list")]


class Sidebar(Vertical):
    """A search field and the list."""

    class Opened(Message):
        """A chat was chosen; ``message`` is the one that a search found, else 0."""

        def __init__(self, chat: int, message: int) -> None:
            super().__init__()
            self.chat = chat
            self.message = message

    class Searched(Message):
        """The words of the search have changed."""

        def __init__(self, words: str) -> None:
            super().__init__()
            self.words = words

    def compose(self) -> ComposeResult:
        """Make the parts."""
        yield Search(placeholder="Search all chats", id="search")
        yield ChatList(id="chats", markup=False)

    @property
    def _narrow(self) -> bool:
        return self.screen.has_class("-narrow")

    def open(self) -> None:
        """Be there: in a narrow terminal until put_away()."""
        if self._narrow:
            self.add_class("opened")
        else:
            self.remove_class("hidden")

    def put_away(self) -> None:
        """Give the room back where there is little."""
        self.remove_class("opened")

    def toggle(self) -> None:
        """Show the sidebar, or hide it; in a wide terminal until the user wants it again."""
        self.toggle_class("opened" if self._narrow else "hidden")

    @property
    def words(self) -> str:
        """What is searched for."""
        return self.query_one(Input).value.strip()

    def show_chats(self, chats: Sequence[Chat], current: int | None) -> None:
        """List chats: pinned ones, then by day."""
        self._fill(_grouped(chats), current)

    def show_hits(self, hits: Sequence[Hit], current: int | None) -> None:
        """List what a search found."""
        found = [_found(hit, number) for number, hit in enumerate(hits)]
        self._fill(found or [Option(_NOTHING, disabled=True)], current)

    def search(self, words: str) -> None:
        """Search for other words."""
        self.query_one(Input).value = words

    def list_all(self) -> None:
        """Search for nothing from the next show_chats() on."""
        with self.prevent(Input.Changed):
            self.query_one(Input).value = ""

    def mark(self, chat: int | None) -> None:
        """Put the cursor on a chat."""
        options = self.query_one(ChatList)
        for index, option in enumerate(options.options):
            if chat is not None and option.id and _chat_of(option.id) == chat:
                options.highlighted = index
                return

    def entitle(self, chat: int, title: str) -> None:
        """Show another title of a chat, where it is listed by day."""
        with suppress(OptionDoesNotExist):
            self.query_one(ChatList).replace_option_prompt(f"{chat}-0-0", _title(title))

    def _fill(self, options: Sequence[Option], current: int | None) -> None:
        chats = self.query_one(ChatList)
        chats.clear_options()
        chats.add_options(options)
        self.mark(current)
        if chats.has_focus:  # who types fast is here before what was found
            chats.begin()

    @on(Input.Changed)
    def _search(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Searched(event.value.strip()))

    @on(Input.Submitted)
    def _to_list(self, event: Input.Submitted) -> None:
        event.stop()
        chats = self.query_one(ChatList)
        chats.focus()
        chats.begin()

    @on(OptionList.OptionSelected)
    def _open(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        assert event.option.id is not None  # those without cannot be chosen
        chat, message, _ = event.option.id.split("-")
        self.post_message(self.Opened(int(chat), int(message)))


def _grouped(chats: Sequence[Chat]) -> list[Option]:
    options: list[Option] = []
    group = ""
    today = datetime.now().date()
    for chat in chats:
        label = "Pinned" if chat.pinned else _day(chat.updated_at, today)
        if label != group:
            options.append(Option(Text(label, style="bold dim"), disabled=True))
            group = label
        options.append(Option(_title(chat.title), id=f"{chat.id}-0-0"))
    return options


def _found(hit: Hit, number: int) -> Option:
    label = _title(hit.title)
    if hit.message:
        label.append("\n")
        label.append_text(Text.assemble(*_pieces(hit), no_wrap=True, overflow="ellipsis"))
    return Option(label, id=f"{hit.chat}-{hit.message}-{number}")


def _pieces(hit: Hit) -> Iterator[tuple[str, str]]:
    yield "  ", ""
    for text, marked in hit.excerpt:
        yield printable(text).replace("\n", " "), "bold reverse" if marked else "dim"


def _title(title: str) -> Text:
    text = " ".join(printable(title).split()) or "Untitled chat"
    return Text(text, no_wrap=True, overflow="ellipsis")


def _day(moment: str, today: date) -> str:
    day = datetime.fromisoformat(moment).astimezone().date()
    if day == today:
        return "Today"
    if day == today - timedelta(days=1):
        return "Yesterday"
    return day.strftime("%A, %d %B") if day.year == today.year else day.strftime("%d %B %Y")


def _chat_of(option: str | None) -> int:
    return int(option.split("-")[0]) if option else 0

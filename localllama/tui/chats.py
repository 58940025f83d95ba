"""What is done with whole chats: listed, searched, renamed, deleted, taken along."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import SystemCommand

from localllama.chat import export
from localllama.chat.conversation import Conversation, session_name
from localllama.chat.records import Chat
from localllama.errors import InvalidParameter
from localllama.files import storing, write_atomic
from localllama.tui.screens.dialogs import Ask
from localllama.tui.widgets.sidebar import WISHES, ChatList, Sidebar

if TYPE_CHECKING:
    from localllama.tui.screens.chat import ChatScreen


class ChatActions:
    """The chats beside a chat screen."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen

    def begin(self) -> Conversation:
        """Begin the chat that the screen shows; there is a model."""
        screen, app = self._screen, self._screen.app
        installed = app.models.installed
        assert installed is not None
        chat = app.history.create(
            model=installed.name,
            system=installed.system if screen.system is None else screen.system,
            parameters=screen.settings,
            context_length=app.models.want.context_length,
        )
        screen.conversation = conversation = Conversation(app.history, chat)
        for preset in installed.messages:
            conversation.add(preset["role"], preset["content"])
        return conversation

    def load_model(self, chat: Chat | None) -> None:
        """Load what a chat was with, if it is there and no other reply would break off.

        A new one takes the present model, but not the context length of the chat before.
        """
        screen, models = self._screen, self._screen.app.models
        present, want = models.installed, models.want
        name = present.name if present else ""
        wanted = model_of(chat) if chat else (name, screen.context_length)
        if (name, want.context_length) == wanted:
            return
        if screen.replies:
            if name == wanted[0]:  # from the next message on
                models.want = replace(want, context_length=wanted[1])
                models.outdated = True
        elif chat is None:
            if present is not None:
                models.choose(present, replace(want, context_length=wanted[1]))
        elif (model := screen.app.known_model(chat.model)) is not None:
            screen.app.load(model)

    def refresh(self) -> None:
        """List the chats anew, or what is searched for."""
        sidebar, history = self._screen.query_one(Sidebar), self._screen.app.history
        if sidebar.words:
            sidebar.show_hits(history.search(sidebar.words), self._current)
        else:
            sidebar.show_chats(history.chats(), self._current)

    def mark(self, chat: int | None) -> None:
        """Put the cursor of the list on a chat."""
        self._screen.query_one(Sidebar).mark(chat)

    @property
    def _current(self) -> int | None:
        conversation = self._screen.conversation
        return conversation.chat.id if conversation else None

    async def wish(self, what: str, chat: int) -> None:
        """Do with a chat what a key of the list says."""
        if what == "undo":
            await self.undo()
        elif what == "import":
            self.take_in()
        elif chat:
            wishes = {
                "rename": self.rename,
                "pin": self.pin,
                "delete": self.delete,
                "duplicate": self.duplicate,
                "export": self.export,
            }
            await wishes[what](chat)

    def palette(self) -> Iterator[SystemCommand]:
        """Yield what can be done with the chat that is marked in the list, or with the present one.

        The mark counts only for who is in the list: elsewhere nobody looks at it.
        """
        screen, chats = self._screen, self._screen.query_one(ChatList)
        chat = chats.marked if screen.focused is chats else self._current or 0
        title = screen.app.history.chat(chat).title if chat else ""
        for _, what, called in WISHES:
            if chat or what in ("undo", "import"):
                wish = partial(screen.post_message, ChatList.Wish(what, chat))
                about = "" if what in ("undo", "import") else title
                yield SystemCommand(f"Chat: {called}", about or "the chats", wish)

    async def rename(self, chat: int) -> None:
        """Ask for another title."""
        screen = self._screen

        def change(title: str) -> None:
            screen.app.history.change(chat, title=title)
            self.refresh()

        title = screen.app.history.chat(chat).title
        screen.app.push_screen(Ask("The title of the chat", change, title))

    async def pin(self, chat: int) -> None:
        """Keep a chat at the top, or no longer."""
        history = self._screen.app.history
        history.change(chat, pinned=not history.chat(chat).pinned)
        self.refresh()

    async def delete(self, chat: int) -> None:
        """Delete a chat; undo() brings it back."""
        screen = self._screen
        if screen.replies.get(chat) is not None:
            raise InvalidParameter("the model is still replying in that chat", "Esc stops it")
        title = screen.app.history.chat(chat).title
        screen.app.history.delete(chat)
        screen.app.models.forget(session_name(chat))
        if chat == self._current:
            await screen.action_new()
        self.refresh()
        screen.query_one(ChatList).focus()  # where u brings it back
        screen.notify(f"{title!r} is deleted; u brings it back", markup=False)

    async def undo(self) -> None:
        """Bring back what was deleted last, in an earlier session, too."""
        history = self._screen.app.history
        deleted = history.chats(deleted=True)
        if not deleted:
            raise InvalidParameter("no chat was deleted", "after 30 days they are gone for good")
        chat = history.restore(max(deleted, key=lambda chat: chat.deleted_at).id)
        self._reveal(chat.id)
        self._screen.notify(f"brought back: {chat.title}", markup=False)

    async def duplicate(self, chat: int) -> None:
        """Copy a chat."""
        self._reveal(self._screen.app.history.duplicate(chat).id)

    def _reveal(self, chat: int) -> None:
        """Put the cursor on a chat that has come into the list, whatever was searched for."""
        self._screen.query_one(Sidebar).list_all()
        self.refresh()
        self.mark(chat)

    async def export(self, chat: int) -> None:
        """Ask for a file, whose name says whether it is Markdown or JSON."""
        screen, history = self._screen, self._screen.app.history
        words = re.sub(r"[^\w-]+", "-", history.chat(chat).title).strip("-").lower()

        def write(name: str) -> None:
            self._write(chat, _path(name))

        question = "Write the chat to this file (.md to read, .json to import elsewhere)"
        screen.app.push_screen(Ask(question, write, f"~/{words or 'chat'}.md"))

    def _write(self, chat: int, file: Path) -> None:
        history = self._screen.app.history
        kept = history.chat(chat)
        if file.suffix == ".json":
            text = export.to_json(history, [kept])
        else:
            text = export.to_markdown(kept, history.messages(chat))
        if file.exists():
            raise InvalidParameter(f"{file} is there already", "choose another name")
        if not file.parent.is_dir():
            raise InvalidParameter(f"there is no folder {file.parent}", "choose another one")
        with storing(file):
            write_atomic(file, text.encode(), 0o600)
        self._screen.notify(f"written to {file}", markup=False)

    def take_in(self) -> None:
        """Ask for a file of exported chats."""
        screen = self._screen

        def read(name: str) -> None:
            chats = export.from_json(screen.app.history, _bytes_of(_path(name)))
            for chat in chats[:1]:
                self._reveal(chat.id)
            screen.notify(f"{len(chats)} imported; Ctrl+S shows all chats")

        screen.app.push_screen(Ask("Import chats from this JSON file", read, "~/"))


def model_of(chat: Chat) -> tuple[str, int]:
    """Return with what a chat was held: the model, and the context length or 0."""
    return chat.model, chat.context_length


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # ~somebody whom this machine does not know
        raise InvalidParameter(f"whose home {name} means is not known") from error


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidParameter(f"cannot read {file}: {error.strerror}") from error

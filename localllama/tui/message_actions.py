"""What is done with single messages: edited, replied to again, pinned, gone through in versions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from textual.app import SystemCommand

from localllama.chat.records import StoredMessage
from localllama.errors import InvalidParameter
from localllama.harmless import printable
from localllama.tui.widgets.composer import Composer
from localllama.tui.widgets.keys import actions
from localllama.tui.widgets.message import MessageView
from localllama.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from localllama.tui.screens.chat import ChatScreen

_SHOWN = 60  # characters of a message


class MessageActions:
    """The messages of the chat that a screen shows."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen

    def palette(self) -> Iterator[SystemCommand]:
        """Yield what can be done with the message that has the focus, else with the last one."""
        screen = self._screen
        views, focused = screen.query_one(Transcript).views, screen.focused
        for binding in actions(MessageView):
            fitting = [v for v in views if "edit" not in binding.action or v.message.role == "user"]
            view = focused if isinstance(focused, MessageView) else next(reversed(fitting), None)
            if view is not None:
                run = partial(screen.app.run_action, binding.action, view)
                about = " ".join(printable(view.message.content[:_SHOWN]).split())
                yield SystemCommand(f"Message: {binding.description}", about, run)

    async def wish(self, what: str, message: StoredMessage) -> None:
        """Do with a message what one of its keys says; raises InvalidParameter."""
        if what == "edit":
            self._edit(message)
        elif what == "again":
            await self._again(message)
        elif what == "pin":
            await self._pin(message)
        else:
            await self._other_version(message, 1 if what == "newer" else -1)

    async def turn(self, which: str) -> None:
        """Show the ``older`` or ``newer`` version of the message in focus, else of the last one
        that has one.

        Raises InvalidParameter where there is none.
        """
        screen = self._screen
        focused, views = screen.focused, screen.query_one(Transcript).views
        asked = [focused] if isinstance(focused, MessageView) else views
        fitting = [view for view in asked if view.has_version(which)]
        if not fitting:
            known = "earlier" if which == "older" else "later"
            raise InvalidParameter(f"there is no {known} version")
        view = fitting[-1]
        await self.wish(which, view.message)
        if focused is not None and focused is not view:
            focused.focus()  # who was writing goes on

    def _edit(self, message: StoredMessage) -> None:
        if message.role != "user":
            raise InvalidParameter("only your own messages can be edited", "r replies anew")
        screen = self._screen
        composer = screen.query_one(Composer)
        composer.begin_edit(message.content, message.attachments)
        screen.set_focus(composer)
        screen.editing = message.id
        screen.notify("Enter sends it as another version, Esc leaves it as it was")

    async def _again(self, message: StoredMessage) -> None:
        screen = self._screen
        conversation = screen.answerable()
        branch = conversation.branch
        at = next(i for i, shown in enumerate(branch) if shown.id == message.id)
        if message.role == "user" and at + 1 < len(branch):
            at += 1
        if branch[at].role == "assistant":
            conversation.again(branch[at].id)
        await screen.show()
        await screen.reply(conversation)
        screen.set_focus(screen.query_one(Composer))

    async def _pin(self, message: StoredMessage) -> None:
        screen = self._screen
        assert screen.conversation is not None
        screen.conversation.pin(message.id, not message.pinned)
        if not message.pinned:
            screen.notify("pinned: it still goes to the model when older messages no longer do")
        await screen.show()
        screen.go_to(message.id)

    async def _other_version(self, message: StoredMessage, step: int) -> None:
        screen = self._screen
        assert screen.conversation is not None
        ids = screen.versions(screen.conversation.chat.id)[message.id]
        at = ids.index(message.id) + step
        if 0 <= at < len(ids):
            screen.conversation.show(ids[at])
            await screen.show()
            screen.go_to(ids[at])

"""The replies on their way to a chat screen: begun, drawn while they come, ended."""

from __future__ import annotations

from functools import partial
from time import monotonic, thread_time
from typing import TYPE_CHECKING

from textual.widgets import Static

from localllama.chat.conversation import Conversation
from localllama.errors import ContextFull, LocalLlamaError, WorkerDied
from localllama.tui.messages import ReplyChanged
from localllama.tui.replies import Reply
from localllama.tui.widgets.message import MessageView
from localllama.tui.widgets.transcript import Transcript, place_of

if TYPE_CHECKING:
    from localllama.tui.screens.chat import ChatScreen

_FRAME_SECONDS = 1 / 30
# About so much of the time goes into drawing a reply: on a small machine the model decodes on all
# cores and waits meanwhile. But it is drawn so often at least.
_DRAWING_SHARE = 0.03
_LONGEST_FRAME_SECONDS = 0.2
_GOOD_BYE_SECONDS = 3.0
_NOTHING = "[there is no reply; Ctrl+R asks for one]"
_TOO_LONG = "edit it (Ctrl+T, e), or choose a longer context (F3)"


class ReplyViews:
    """At most one reply a chat; those of chats that are not shown go on unseen."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._replies: dict[int, Reply] = {}
        self._views: dict[int, MessageView] = {}  # where their chat is shown
        self._drawn_at = self._drawn_time = 0.0  # by the clock, and in time of this thread
        self._frame_cost = 0.0  # seconds of this thread from one drawing to the next

    def __len__(self) -> int:
        return len(self._replies)

    def of(self, conversation: Conversation | None) -> Reply | None:
        """Return the reply that is on its way in a chat."""
        return self._replies.get(conversation.chat.id) if conversation else None

    def get(self, chat: int) -> Reply | None:
        """Return the reply that is on its way in the chat of that number."""
        return self._replies.get(chat)

    async def begin(self, conversation: Conversation) -> None:
        """Let the model answer the end of the branch."""
        screen = self._screen
        reply = Reply(
            conversation,
            screen.app.sampling(conversation.chat.parameters),
            screen.think,
            screen.app.models.wait,
            self._changed,
        )
        self._replies[conversation.chat.id] = reply
        await self.follow(reply)
        reply.start()

    async def follow(self, reply: Reply) -> None:
        """Show a reply in the transcript, whose chat it is; what was told of one before goes."""
        await self._transcript.query(".passing").remove()
        view = await self._transcript.add(reply.message, live=True)
        self._views[reply.conversation.chat.id] = view

    def forget_views(self) -> None:
        """Draw none until follow(): the transcript shows something else."""
        self._views.clear()

    def stop(self, reply: Reply) -> None:
        """End a reply and keep what came of it."""
        reply.stop(alone=len(self._replies) == 1)

    def leave(self) -> None:
        """Stop all replies and wait a little until they are saved."""
        for reply in self._replies.values():
            reply.stop(alone=True)
        for reply in self._replies.values():
            reply.wait(_GOOD_BYE_SECONDS)

    @property
    def _transcript(self) -> Transcript:
        return self._screen.query_one(Transcript)

    def _changed(self, reply: Reply) -> None:
        """Called in the reply's thread: ask for one drawing at a time."""
        if not reply.told or reply.over:
            reply.told = True
            self._screen.post_message(ReplyChanged(reply))

    async def show(self, reply: Reply) -> None:
        """Draw what there is of a reply, but neither too often nor for too long."""
        wait = self._drawn_at + self._frame_seconds() - monotonic()
        if wait > 0 and not reply.over:
            self._screen.set_timer(wait, partial(self._draw, reply))
        else:
            await self._draw(reply)

    def _frame_seconds(self) -> float:
        """Return how long what was drawn last stays, by what drawing has cost of late."""
        cost = self._frame_cost / _DRAWING_SHARE
        return min(max(_FRAME_SECONDS, cost), _LONGEST_FRAME_SECONDS)

    async def _draw(self, reply: Reply) -> None:
        before, self._drawn_time = self._drawn_time, thread_time()
        self._drawn_at, self._frame_cost = monotonic(), self._drawn_time - before
        reply.told = False  # what comes from here on is told again
        view = self._views.get(reply.conversation.chat.id)
        if view is not None and reply.truncated is not None and not reply.truncation_shown:
            reply.truncation_shown = True
            await self._transcript.left_out(reply.truncated, view)
        if reply.over:
            with self._screen.app.telling():  # the history may be in use elsewhere
                await self._ended(reply)
        elif view is not None:
            view.show(reply.message, live=True)
        if reply.over or not reply.message.content:
            self._screen.update_status()  # else the screen looks after it, once a second

    async def _ended(self, reply: Reply) -> None:
        screen, chat = self._screen, reply.conversation.chat.id
        if self._replies.get(chat) is not reply:
            return  # it was told twice
        del self._replies[chat]
        view = self._views.pop(chat, None)
        if isinstance(reply.error, WorkerDied):
            screen.app.models.again()
        if view is not None:
            await self._settle(reply, view)
        elif reply.error is not None:
            screen.app.tell(reply.error)
        if reply.begun and screen.app.config.tui.model_titles:
            screen.titles.add(chat, reply.conversation.branch[-1])
        screen.chats.refresh()

    async def _settle(self, reply: Reply, view: MessageView) -> None:
        """Show the reply as it was saved, and what went wrong."""
        last = reply.conversation.branch[-1]
        if reply.begun or reply.goes_on:
            view.place = place_of(last, self._screen.versions(reply.conversation.chat.id))
            view.show(last)
        else:
            await view.remove()
            if reply.error is None:
                await self._tell(_NOTHING, "truncated")
        if reply.error is not None:
            await self._tell(_trouble(reply.error), "trouble")

    async def _tell(self, text: str, classes: str) -> None:
        await self._transcript.mount(Static(text, classes=f"{classes} passing", markup=False))


def _trouble(error: LocalLlamaError) -> str:
    # The engine's own hint is a flag of the command line.
    hint = _TOO_LONG if isinstance(error, ContextFull) else error.hint
    return f"{error.message}. {hint}\nCtrl+R tries again."

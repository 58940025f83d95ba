"""The chat: conversations at the left, what was said, where one writes, what the model does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, Static

from localllama.chat.conversation import Conversation
from localllama.chat.records import Attachment, versions
from localllama.errors import InvalidParameter, LocalLlamaError
from localllama.tui import attach
from localllama.tui.chats import ChatActions, model_of
from localllama.tui.commands import Commands
from localllama.tui.message_actions import MessageActions
from localllama.tui.messages import ChatNamed, ModelChanged, PullChanged, ReplyChanged
from localllama.tui.pulls import Pull
from localllama.tui.pulls import State as PullState
from localllama.tui.reply_views import ReplyViews
from localllama.tui.titles import Titles
from localllama.tui.widgets.composer import Completion, Composer, Offers, Writing
from localllama.tui.widgets.keys import Keys
from localllama.tui.widgets.message import MessageView
from localllama.tui.widgets.sidebar import ChatList, Sidebar
from localllama.tui.widgets.status import StatusLine, state_of
from localllama.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from localllama.tui.app import LocalLlamaApp

_LOOK_SECONDS = 1.0  # between two looks at what nobody tells

_EMPTY = """\
A new conversation. Write below; Enter sends.

F1 shows all keys, Ctrl+P finds every action, / begins a command, @file attaches a text.
F2 models, F3 settings, F4 hardware, F5 compares two models."""


class ChatScreen(Screen[None]):
    """One chat at a time; replies to others go on behind it."""

    app: LocalLlamaApp

    # Columns; in a narrow terminal the sidebar is opened only to choose.
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012  # as Textual has it
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", priority=True),
        Binding("ctrl+n", "new", "New chat", priority=True),
        Binding("ctrl+s", "search", "Chats", priority=True),
        Binding("ctrl+b", "sidebar", "Sidebar", show=False, priority=True),
        Binding("ctrl+o", "model", "Model", priority=True),
        Binding("ctrl+r", "again", "Again", priority=True),
        Binding("ctrl+g", "go_on", "Go on", show=False, priority=True),
        Binding("ctrl+t", "messages", "Messages", priority=True),
        Binding("alt+left", "version('older')", "Earlier version", show=False),
        Binding("alt+right", "version('newer')", "Later version", show=False),
    ]

    PARTS: ClassVar[Mapping[str, type[Widget]]] = {
        "On a message (Ctrl+T)": MessageView,
        "In the list of chats (Ctrl+S, then Enter)": ChatList,
    }

    def __init__(self) -> None:
        super().__init__()
        self.conversation: Conversation | None = None  # a chat begins with its first message
        self.chats = ChatActions(self)
        self.messages = MessageActions(self)
        self.commands = Commands(self)
        self.replies = ReplyViews(self)
        self.settings: dict[str, object] = {}  # of a chat that is not begun
        self.context_length = 0
        self.system: str | None = None
        self.think: bool | None = None
        self.awaited: Pull | None = None  # whose model replies when it is there
        self.editing: int | None = None
        self._refused = ""  # what was not sent; sent once more, its missing files are words
        self._told: LocalLlamaError | None = None  # why the model could not be loaded

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Horizontal(id="body"):
            yield Sidebar(id="sidebar")
            with Vertical(id="talk"):
                yield Transcript(id="transcript")
                yield Writing(self._completions)
        yield StatusLine(id="status")
        yield Keys()

    async def on_mount(self) -> None:
        """Begin with a new chat."""
        composer = self.query_one(Composer)
        composer.past = self.app.history.questions()
        with self.app.telling():
            composer.write(*self.app.history.draft())
        self.titles = Titles(self.app.history, self._named)
        self.set_interval(_LOOK_SECONDS, self._look)
        self.chats.refresh()
        await self.open(None)

    # which chat

    async def open(self, chat: int | None, message: int = 0) -> None:
        """Show a chat, or a new one; ``message`` is the one to go to."""
        reply = self.replies.get(chat) if chat is not None else None
        if chat is None:
            self.conversation = None
            self.chats.load_model(None)
        elif reply is not None:
            self.conversation = reply.conversation
        else:
            self.conversation = Conversation(self.app.history, self.app.history.chat(chat))
            if message and all(shown.id != message for shown in self.conversation.branch):
                self.conversation.show(message)
            self.chats.load_model(self.conversation.chat)
        self.editing = None
        composer = self.query_one(Composer)
        composer.leave_edit()
        self.set_focus(composer)  # before anything is waited for: the next keys may go elsewhere
        await self.show()
        self.chats.mark(chat)
        if message:
            self.go_to(message)

    @property
    def own_context(self) -> int:
        """The context length that somebody chose for this chat; 0 = nobody did."""
        conversation = self.conversation
        return conversation.chat.context_length if conversation else self.context_length

    def keep_model(self) -> None:
        """Remember with the chat which model replies, and with what context length."""
        models, conversation = self.app.models, self.conversation
        if conversation is None:
            self.context_length = models.want.context_length
        elif models.installed is not None:
            now = models.installed.name, models.want.context_length
            if now != model_of(conversation.chat):
                conversation.change(model=now[0], context_length=now[1])

    async def show(self) -> None:
        """Show all of the present chat."""
        transcript = self.query_one(Transcript)
        self.replies.forget_views()
        conversation = self.conversation
        if conversation is None:
            await transcript.open([], {})
            await transcript.mount(Static(_EMPTY, classes="empty", markup=False))
        else:
            reply = self.replies.of(conversation)
            branch = conversation.branch
            shown = branch[:-1] if reply is not None and reply.goes_on else branch
            await transcript.open(shown, self.versions(conversation.chat.id))
            if reply is not None:
                await self.replies.follow(reply)
        self.update_status()

    def versions(self, chat: int) -> dict[int, list[int]]:
        """Return the versions of each message of a chat."""
        return versions(self.app.history.messages(chat))

    def go_to(self, message: int) -> None:
        """Put the cursor on a message, if it is mounted."""
        for view in self.query_one(Transcript).views:
            if view.message.id == message:
                view.focus()
                return

    # saying something

    @on(Composer.Sent)
    async def _sent(self, event: Composer.Sent) -> None:
        event.stop()
        try:
            if event.text.lstrip().startswith("/"):
                self.query_one(Composer).write("", event.attachments)  # for the next message
                await self.commands.run(event.text.strip())
                return
            missing = event.text == self._refused
            named = attach.named_in(event.text, Path.cwd(), missing=missing)
            # A message that is edited has its files already; one may have changed since.
            files = {file.name: file for file in (*event.attachments, *named)}
            await self.say(event.text.strip(), tuple(files.values()))
        except LocalLlamaError as error:
            self._refused = event.text
            self.query_one(Composer).write(event.text, event.attachments)  # nothing is lost
            self.app.tell(error)

    def _completions(self, text: str) -> list[Completion]:
        return self.commands.completions(text) or attach.completions(text, Path.cwd())

    async def say(self, text: str, files: tuple[Attachment, ...] = ()) -> None:
        """Send a message, or another version of the one that is edited."""
        self.need_model()
        self.need_silence()
        conversation = self.conversation or self.chats.begin()
        edited, self.editing = self.editing, None
        self.query_one(Composer).leave_edit()
        message = conversation.say(text, files, at=edited)
        if edited is not None or len(conversation.branch) == 1:
            await self.show()
        else:
            await self.query_one(Transcript).add(message)
        self.app.history.keep_draft(*self.query_one(Composer).unsent)  # what was sent is none
        await self.reply(conversation)
        self.chats.refresh()

    async def reply(self, conversation: Conversation) -> None:
        """Let the model answer the end of the branch."""
        models = self.app.models
        if models.broken or (models.outdated and not self.busy):
            models.again()  # somebody may have unloaded it meanwhile
        self.keep_model()
        self.titles.stop()
        await self.replies.begin(conversation)
        self.update_status()

    def need_model(self) -> None:
        """Raise InvalidParameter while there is no model to reply."""
        if self.app.models.installed is None:
            raise InvalidParameter("no model is chosen", "Ctrl+O shows the installed ones")

    def need_silence(self) -> None:
        """Raise InvalidParameter while the model replies in this chat."""
        if self.replies.of(self.conversation) is not None:
            raise InvalidParameter("the model is still replying", "Esc stops it")

    async def on_reply_changed(self, event: ReplyChanged) -> None:
        """Draw the reply."""
        await self.replies.show(event.reply)

    @property
    def busy(self) -> bool:
        """Whether a reply is on its way in any chat."""
        return bool(self.replies)

    def leave(self) -> None:
        """Keep what is not sent, stop all replies and wait a little until they are saved."""
        with self.app.telling():
            self.app.history.keep_draft(*self.query_one(Composer).unsent)
        self.titles.stop()
        self.replies.leave()

    # titles

    def _look(self) -> None:
        """Count the seconds of a reply, or use the time in which there is none."""
        if self.replies.of(self.conversation) is not None:
            self.update_status()
        self.query_one(Composer).cursor_blink = not self.busy  # the model needs the processor
        self._make_titles()

    def _make_titles(self) -> None:
        """Ask the model for a title while nobody needs it."""
        app, engine = self.app, self.app.models.engine
        if engine is None or engine.label.endpoint:  # nobody else's machine is asked unbidden
            return
        if app.screen is self and app.idle and not self.replies:
            self.titles.begin(engine)

    def _named(self, chat: int, title: str) -> None:
        """Called in the thread of the titles."""
        self.post_message(ChatNamed(chat, title))

    def on_chat_named(self, event: ChatNamed) -> None:
        """Show the title in the list."""
        self.query_one(Sidebar).entitle(event.chat, event.title)

    # keys

    def action_stop(self) -> None:
        """Stop the reply; else leave what is being edited, or the search, for the composer."""
        composer = self.query_one(Composer)
        reply, offers = self.replies.of(self.conversation), self.query_one(Offers)
        if reply is not None:
            self.replies.stop(reply)
        elif offers.first:
            offers.offer(())
        elif self.editing is not None:
            self.editing = None
            composer.leave_edit()
        else:
            self.query_one(Sidebar).put_away()
        self.query_one(Sidebar).search("")
        composer.focus()

    async def action_new(self) -> None:
        """Begin a new chat."""
        self.settings, self.system, self.context_length = {}, None, 0
        await self.open(None)

    def action_sidebar(self) -> None:
        """Show the conversations, or hide them."""
        self.query_one(Sidebar).toggle()
        self.chats.refresh()
        # Never to the list: a letter typed there by mistake may delete a chat.
        self.set_focus(self.query_one(Composer))

    def action_search(self) -> None:
        """Search all chats."""
        self.query_one(Sidebar).open()
        self.chats.refresh()  # somebody may have changed them elsewhere
        self.set_focus(self.query_one("#search", Input))  # focus() comes after keys typed ahead

    def action_model(self) -> None:
        """Choose another model."""
        self.app.choose_model()

    async def action_again(self) -> None:
        """Reply to the last message: for the first time, or with another version."""
        with self.app.telling():
            conversation = self.answerable()
            last = conversation.branch[-1]
            if last.role == "assistant":
                conversation.again(last.id)
                await self.show()
            await self._try_again(conversation)

    async def action_go_on(self) -> None:
        """Go on with a reply that was cut."""
        with self.app.telling():
            conversation = self.answerable()
            if not conversation.branch[-1].cut:
                raise InvalidParameter("the last reply was not cut", "Ctrl+R makes another one")
            await self.query_one(Transcript).views[-1].remove()
            await self._try_again(conversation)

    async def _try_again(self, conversation: Conversation) -> None:
        for trouble in self.query(".trouble"):
            await trouble.remove()
        await self.reply(conversation)

    def answerable(self) -> Conversation:
        """The present chat, if there is something to reply to and a model to do it."""
        self.need_model()
        self.need_silence()
        if self.conversation is None or not self.conversation.branch:
            raise InvalidParameter("nothing was said yet", "write a message first")
        return self.conversation

    def action_messages(self) -> None:
        """Go to the last message, where arrows, y, c, e, r and p do what the footer says."""
        if views := self.query_one(Transcript).views:
            views[-1].focus()

    async def action_version(self, which: str) -> None:
        """Show another version of the message in focus, or of the last one that has one."""
        with self.app.telling():
            self.need_silence()
            await self.messages.turn(which)

    @on(MessageView.Asked)
    async def _asked(self, event: MessageView.Asked) -> None:
        event.stop()
        with self.app.telling():
            self.need_silence()
            await self.messages.wish(event.what, event.view.message)

    # the list of chats

    @on(Sidebar.Opened)
    async def _opened(self, event: Sidebar.Opened) -> None:
        event.stop()
        with self.app.telling():
            await self.open(event.chat, event.message)
            self.query_one(Sidebar).put_away()

    @on(Sidebar.Searched)
    def _searched(self, event: Sidebar.Searched) -> None:
        event.stop()
        with self.app.telling():
            self.chats.refresh()

    @on(ChatList.Wish)
    async def _wished(self, event: ChatList.Wish) -> None:
        event.stop()
        with self.app.telling():
            await self.chats.wish(event.what, event.chat)

    # the lines below

    def on_model_changed(self, event: ModelChanged) -> None:
        """Show how far the model is loaded, or why it cannot be."""
        error = self.app.models.error
        if error is not None and error is not self._told:
            self.app.tell(error)
        self._told = error
        self.update_status()

    def on_pull_changed(self, event: PullChanged) -> None:
        """Load what was named to be loaded, once it is installed."""
        if event.pull is self.awaited and event.pull.state is PullState.DONE:
            self.awaited = None
            if (model := self.app.known_model(event.pull.name)) is not None:
                self.app.load(model)

    def update_status(self) -> None:
        """Show what the model does, and how full its context is."""
        reply = self.replies.of(self.conversation)
        state = state_of(self.app.models, self.conversation, reply)
        self.query_one(StatusLine).state = state

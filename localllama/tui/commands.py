"""The slash commands of the chat screen: those of ``localllama run`` that make sense here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from localllama.engine import sampling
from localllama.errors import InvalidParameter
from localllama.tui import file_names
from localllama.tui.settings import CONTEXT, Scope, Settings
from localllama.tui.widgets.composer import Completion
from localllama.tui.widgets.keys import Help, Section
from localllama.tui.widgets.sidebar import Sidebar

if TYPE_CHECKING:
    from localllama.tui.screens.chat import ChatScreen

_SET = "/set parameter "
_LOAD = "/load "
_COMMANDS = (  # what is written, what follows it, what that does
    (_SET, "NAME VALUE", "a sampling parameter, or num_ctx: the context length"),
    ("/set system ", "TEXT", "the system prompt"),
    ("/set think", "", "ask a thinking model to think"),
    ("/set nothink", "", "ask a thinking model not to think"),
    (_LOAD, "MODEL", "another model, or a .gguf file, which is then installed"),
    ("/clear", "", "a new chat"),
    ("/history ", "WORDS", "search the chats"),
    ("/export", "", "write this chat to a file"),
    ("/import", "", "take in exported chats"),
    ("/help", "", "these commands"),
    ("/bye", "", "leave"),
)
_FILES = (
    ("@notes.txt", "attaches that text file"),
    ('@"my notes.txt"', "one with spaces in its name"),
    ("Tab", "completes names of files, commands, parameters, models"),
    (
        "Enter twice",
        "sends @ and a name with a . or / in it as plain words where there is no such file; "
        "other words with an @ are plain words anyway",
    ),
)
HELP = (
    Section("Commands", [(command + words, says) for command, words, says in _COMMANDS]),
    Section("Files", _FILES),
)


class Commands:
    """Carries out what begins with a slash."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._known: dict[str, Callable[[str], Awaitable[None]]] = {
            "/set": self._set,
            "/load": self._load,
            "/clear": self._clear,
            "/history": self._history,
            "/export": self._export,
            "/import": self._import,
            "/help": self._help,
            "/?": self._help,
            "/bye": self._bye,
        }

    async def run(self, line: str) -> None:
        """Carry out a command; raises InvalidParameter and what it raises."""
        word, _, rest = line.partition(" ")
        if word not in self._known:
            raise InvalidParameter(f"there is no command {word}", "/help lists them")
        await self._known[word](rest.strip())

    def completions(self, text: str) -> list[Completion]:
        """Return what a command that is begun may become."""
        if not text.startswith("/") or "\n" in text:
            return []
        return [
            Completion(text, line, says)
            for line, says in self._lines(text)
            if line.startswith(text) and line != text
        ]

    def _lines(self, text: str) -> Iterator[tuple[str, str]]:
        """The commands, each with its next word as soon as it is written."""
        yield from ((command, says) for command, _, says in _COMMANDS)
        if text.startswith(_SET):
            yield f"{_SET}num_ctx ", "The context length in tokens."
            for parameter in sampling.PARAMETERS:
                yield f"{_SET}{parameter.name} ", parameter.help
        elif text.startswith(_LOAD):
            for model in self._screen.app.known_models():
                yield f"{_LOAD}{model.name}", model.variant
            path = text.removeprefix(_LOAD)
            for name in file_names.ggufs(path):
                yield f"{_LOAD}{path[: path.rfind('/') + 1]}{name}", "on this machine"

    async def _set(self, text: str) -> None:
        switch, _, value = text.partition(" ")
        screen, value = self._screen, value.strip()
        if switch == "parameter" and value:
            self._parameter(*value.partition(" ")[::2])
        elif switch == "system":
            screen.system = value
            if screen.conversation is not None:
                screen.conversation.change(system=value)
        elif switch in ("think", "nothink"):
            screen.think = switch == "think"
        else:
            raise InvalidParameter(
                f"there is no /set {text}", "/set parameter NAME VALUE | system TEXT | think"
            )
        screen.notify(f"set: {text}", markup=False)

    def _parameter(self, name: str, value: str) -> None:
        screen, value = self._screen, value.strip()
        if name == "num_ctx":
            screen.need_model()
            if not value:
                raise InvalidParameter(
                    "num_ctx is a number of tokens", "/set parameter num_ctx 4096"
                )
            Settings(screen.app, screen).change(CONTEXT, value, Scope.CHAT)
            return
        parameter = sampling.lookup(name)
        conversation = screen.conversation
        settings = conversation.chat.parameters if conversation else screen.settings
        changed = {**settings, parameter.name: parameter.convert(value)}
        screen.settings = changed
        if conversation is not None:
            conversation.change(parameters=changed)

    async def _load(self, text: str) -> None:
        app = self._screen.app
        if (found := app.known_model(text)) is not None:
            app.load(found)
            return
        if text.lower().endswith(".gguf"):
            self._screen.awaited = app.take_in(text)
            return
        raise InvalidParameter(
            f"the model {text!r} is not installed", "Ctrl+O shows those that are"
        )

    async def _clear(self, _: str) -> None:
        await self._screen.action_new()

    async def _history(self, words: str) -> None:
        self._screen.action_search()
        self._screen.query_one(Sidebar).search(words)

    async def _export(self, _: str) -> None:
        if (conversation := self._screen.conversation) is None:
            raise InvalidParameter("there is nothing to export", "a chat begins with a message")
        await self._screen.chats.export(conversation.chat.id)

    async def _import(self, _: str) -> None:
        self._screen.chats.take_in()

    async def _help(self, _: str) -> None:
        self._screen.app.push_screen(Help(HELP))

    async def _bye(self, _: str) -> None:
        await self._screen.app.action_quit()

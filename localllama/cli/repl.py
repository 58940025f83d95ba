"""The conversation at the terminal: a line editor, slash commands, and one session at a time."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import msgspec

from localllama import endpoints, names
from localllama.chat.conversation import Conversation, LoadedModel
from localllama.chat.history import History
from localllama.chat.records import Chat, StoredMessage, first_words, spoken
from localllama.chat.session import POLICIES
from localllama.cli import output, reply, run, show
from localllama.cli.app import App
from localllama.cli.editor import Editor
from localllama.engine import sampling
from localllama.engine.api import Message
from localllama.engine.client import Engine
from localllama.engine.remote import RemoteEngine
from localllama.errors import InvalidParameter, LocalLlamaError, WorkerDied
from localllama.store import Installed
from localllama.wants import Want, parameter_layers

_HELP = """\
Commands:
  /set parameter NAME VALUE   a sampling parameter, or num_ctx
  /set system TEXT            the system prompt
  /set history | nohistory    keep this chat on the disk, or do not
  /set wordwrap | nowordwrap  break lines between words
  /set format json | FILE     replies in JSON, or as a file's JSON Schema says
  /set noformat               leave their form to the model again
  /set verbose | quiet        show the timings of each reply
  /set think | nothink        ask a thinking model to think, or not to
  /show [info|license|modelfile|parameters|system|template]
  /load MODEL                 another model, a new conversation
  /save NAME                  keep model, settings and messages under a name
  /clear                      begin a new conversation
  /history [WORDS]            the saved chats, or those with these words
  /open NUMBER                go on with a saved chat
  /list                       the installed models
  /bye                        leave (also Ctrl-D)

  \"\"\" begins and ends a message of several lines.
  Ctrl-C stops a reply; once more leaves.
"""
_SWITCHES = (
    *("parameter", "system", "history", "nohistory", "wordwrap", "nowordwrap"),
    *("format", "noformat", "verbose", "quiet", "think", "nothink"),
)
_LISTED = 20  # chats of /history
_PARTS = ("info", "license", "modelfile", "parameters", "system", "template")


class Repl:
    """One sitting: the model may change, the settings stay."""

    def __init__(
        self,
        app: App,
        want: Want,
        settings: dict[str, Any],
        history: History,
        *,
        verbose: bool = False,
        wrap: bool = True,
        bound: dict[str, str] | None = None,
        policy: str = POLICIES[0],
    ) -> None:
        self._app = app
        self._want = want
        self._given = settings  # on the command line
        self._settings = {**settings}  # this chat's own sampling parameters
        self._history = history
        self._verbose = verbose
        self._wrap = wrap
        self._bound = bound or {}  # the fields of Sampling that say what replies must follow
        self._policy = policy  # for a full context
        self._think: bool | None = None
        self._stack = ExitStack()
        self._dead = False
        self._chat: Conversation | None = None  # before the first message there is none to save
        self._system = ""
        self._model: Installed
        self._engine: Engine | RemoteEngine

    def talk(self, model: Installed, system: str | None, chat: Chat | None = None) -> int:
        """Converse until the user leaves; returns the exit code."""
        with self._stack, ExitStack() as ours:
            ours.callback(lambda: self._history.close())
            self._load_model(model)
            self._system = model.system if system is None else system
            if chat is not None:
                self._enter(
                    chat if system is None else self._history.change(chat.id, system=system)
                )
            editor = Editor(self._app.paths.history_file, self._completions())
            editor.remember(not self._history.in_memory)
            while (text := editor.read()) is not None:
                try:
                    if text.strip().startswith("/"):
                        if not self._command(text, editor):
                            return 0
                    elif text.strip() and not self._say(text):
                        editor.stopped = True
                except LocalLlamaError as error:
                    output.fail(error)
        return 0

    def _load_model(self, model: Installed) -> None:
        opened = run.opened(self._app, model, self._want, tell=True)
        self._engine = self._stack.enter_context(opened)
        self._model = model

    def _switch(self, model: Installed, want: Want) -> None:
        """Load another model, or the same in another way; when that fails, go back."""
        before = self._model, self._want
        self._stack.close()  # first: two models may not fit
        self._want = want
        try:
            self._load_model(model)
        except LocalLlamaError:
            self._model, self._want = before
            self._load_model(self._model)
            raise

    def _begun(self) -> Conversation:
        """The conversation, which its first message begins."""
        if self._chat is None:
            chat = self._history.create(
                model=self._model.name,
                system=self._system,
                parameters=self._settings,
                context_length=self._want.context_length,
            )
            self._chat = Conversation(self._history, chat, policy=self._policy)
            for message in self._model.messages:
                self._chat.add(message["role"], message["content"])
        return self._chat

    def _enter(self, chat: Chat) -> None:
        """Go on with a saved chat, with the model that is loaded."""
        self._chat = Conversation(self._history, chat, policy=self._policy)
        self._system = chat.system
        self._settings = {**chat.parameters, **self._given}
        output.say(f"chat {chat.id}: {chat.title} ({len(self._chat.branch)} messages)")
        for message in self._chat.branch[-2:]:
            output.say(_reminder(message))

    def _say(self, text: str) -> bool:
        """Send a message and show the reply; False when the user stopped it."""
        layers = [("chat", self._settings), *parameter_layers(self._model, self._app.config)]
        chosen = msgspec.structs.replace(sampling.resolve(layers).sampling, **self._bound)
        if self._dead:  # the process that held the model is gone, not so the conversation
            self._stack.close()
            self._load_model(self._model)
            self._dead = False
        chat, context = self._begun(), self._engine.ready.context_length
        chat.say(text)
        model = LoadedModel(self._engine, self._model.name, self._model.digest)
        events = chat.reply(model, chosen, think=self._think)
        screen = reply.Shown(context, wrap=self._wrap)
        try:
            answer = reply.follow(events, screen, cancel=self._engine.cancel)
        except WorkerDied:
            self._dead = True
            raise
        output.say("")
        if note := reply.cut_note(answer.done, context):
            output.say(note)
        if self._verbose:
            output.say(reply.timings(answer.done))
        return not answer.stopped

    # slash commands

    def _command(self, line: str, editor: Editor) -> bool:
        """Carry out a slash command; False leaves the conversation."""
        word, _, rest = line.strip().partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/set": lambda text: self._set(text, editor),
            "/show": self._show,
            "/load": self._load,
            "/save": self._save,
            "/clear": self._clear,
            "/history": self._list_chats,
            "/open": self._open_chat,
            "/list": self._list,
            "/help": self._help,
            "/?": self._help,
        }
        if word in ("/bye", "/exit", "/quit"):
            return False
        if word not in commands:
            raise InvalidParameter(f"there is no command {word}", "/help lists them")
        commands[word](rest.strip())
        return True

    def _completions(self) -> dict[str, Any]:
        models = dict.fromkeys(model.name for model in self._models())
        parameters = dict.fromkeys([p.name for p in sampling.PARAMETERS] + ["num_ctx"])
        return {
            "/set": {**dict.fromkeys(_SWITCHES), "parameter": parameters, "format": {"json"}},
            "/show": dict.fromkeys(_PARTS),
            "/load": models,
            **dict.fromkeys(("/save", "/clear", "/list", "/history", "/open", "/help", "/bye")),
        }

    def _help(self, _: str) -> None:
        output.say(_HELP)

    def _set(self, text: str, editor: Editor) -> None:
        switch, _, value = text.partition(" ")
        value = value.strip()
        if switch == "parameter":
            self._parameter(value)
        elif switch == "system":
            self._system = _unquoted(value)
            if self._chat is not None:
                self._chat.change(system=self._system)
            output.say("system prompt set")
        elif switch in ("history", "nohistory"):
            self._keep(switch == "history", editor)
        elif switch in ("wordwrap", "nowordwrap"):
            self._wrap = switch == "wordwrap"
        elif switch == "format" and value:
            self._bound = run.bound_by(_unquoted(value))
        elif switch == "noformat":
            self._bound = {}
        elif switch in ("verbose", "quiet"):
            self._verbose = switch == "verbose"
        elif switch in ("think", "nothink"):
            self._think = switch == "think"
        else:
            what = f"there is no /set {text}" if text else "what is to be set?"
            raise InvalidParameter(what, "/set " + " | ".join(_SWITCHES))
        if switch not in ("parameter", "system"):
            output.say(f"set {text}")

    def _parameter(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if not value:
            known = "\n".join(f"  {p.name:<18} {p.help}" for p in sampling.PARAMETERS)
            output.say(f"/set parameter NAME VALUE, where NAME is num_ctx or one of\n{known}")
            return
        if name == "num_ctx":
            if self._model.remote:
                raise InvalidParameter(f"{self._model.name} is not local: its server decides that")
            if not value.isdecimal() or int(value) < 1:
                raise InvalidParameter(f"num_ctx must be a number of tokens, not {value!r}")
            self._switch(self._model, replace(self._want, context_length=int(value)))
            changed: dict[str, Any] = {"context_length": int(value)}
        else:
            parameter = sampling.lookup(name)
            given = _words(value) if parameter.kind is str else _unquoted(value)
            self._settings[parameter.name] = parameter.convert(given)
            changed = {"parameters": self._settings}
        if self._chat is not None:
            self._chat.change(**changed)
        output.say(f"{name} is {value}")

    def _show(self, part: str) -> None:
        if part == "system":
            output.result(self._system or "there is no system prompt")
        else:
            text = show.describe(self._app, self._model, part or "info", chat=self._settings)
            output.result(output.printable(text))

    def _load(self, text: str) -> None:
        if not text:
            raise InvalidParameter("which model?", "/load NAME, /list shows them")
        self._switch(show.find(self._app, text), self._want)
        self._chat, self._system = None, self._model.system
        output.say(f"{self._model.name} is loaded")

    def _save(self, text: str) -> None:
        if not text:
            raise InvalidParameter("under which name?", "/save NAME")
        name = names.own(text)
        if self._model.remote:
            raise InvalidParameter(
                f"{self._model.name} is not local: only local models can be saved"
            )
        if not self._model.weights[0].sha256:
            raise InvalidParameter(
                "a file outside the store cannot be saved under a name",
                f"take it in first: localllama pull {self._model.name}",
            )
        replaced = {name for key in self._settings for name in sampling.lookup(key).spellings}
        kept = {k: v for k, v in self._model.parameters.items() if k not in replaced}
        parameters = {**kept, **self._settings}
        if self._want.context_length:
            parameters["num_ctx"] = self._want.context_length
        self._app.store.save(
            replace(
                self._model,
                name=str(name),
                system=self._system,
                parameters=parameters,
                saved=True,
                messages=tuple({"role": m.role, "content": m.content} for m in self._said()),
            )
        )
        output.say(f"saved as {name}")

    def _said(self) -> list[Message]:
        return [spoken(message) for message in self._chat.branch] if self._chat else []

    def _clear(self, _: str) -> None:
        self._chat = None
        output.say("a new conversation begins")

    def _keep(self, yes: bool, editor: Editor) -> None:
        """Keep what is said on the disk, this chat included, or in memory from now on."""
        editor.remember(yes)
        if yes == (not self._history.in_memory):
            return
        before, self._history = self._history, self._app.history() if yes else History.temporary()
        if self._chat is not None:
            chat = self._chat.chat
            [taken] = self._history.take_in([(before.chat(chat.id), before.messages(chat.id))])
            self._chat = Conversation(self._history, taken, policy=self._policy)
        before.close()

    def _list_chats(self, words: str) -> None:
        found = {hit.chat for hit in self._history.search(words)} if words else None
        chats = [c for c in self._history.chats() if found is None or c.id in found]
        for chat in chats[:_LISTED]:
            title = output.printable(chat.title)
            output.result(f"{chat.id:>5}  {title:<50}  {output.ago(chat.updated_at)}")
        if not chats:
            output.say("there are none")

    def _open_chat(self, text: str) -> None:
        if not text.isdecimal():
            raise InvalidParameter("which chat?", "/open NUMBER, /history shows them")
        chat = self._history.chat(int(text))
        if chat.model and chat.model != self._model.name:
            output.say(f"it was held with {chat.model}; /load goes back to that model")
        self._enter(chat)

    def _list(self, _: str) -> None:
        for model in self._models():
            size = model.variant if model.remote else output.size(model.size_bytes)
            output.result(f"{model.name:<40}  {size}")

    def _models(self) -> list[Installed]:
        return [*self._app.store.models(), *endpoints.models(self._app.config)]


def _reminder(message: StoredMessage) -> str:
    """A message of a chat that is opened again, on one line."""
    text = first_words(output.printable(message.content), 200)
    return f">>> {text}" if message.role == "user" else text


def _words(text: str) -> list[str]:
    """Return the words of ``text``; quotes hold several together."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidParameter(f"{text!r}: {error}", "close the quote") from error


def _unquoted(text: str) -> str:
    """Return ``text`` without the quotes around it."""
    for quote in ('"""', '"', "'"):
        if len(text) >= 2 * len(quote) and text.startswith(quote) and text.endswith(quote):
            return text[len(quote) : -len(quote)]
    return text

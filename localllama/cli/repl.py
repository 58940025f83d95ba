"""The conversation at the terminal: a line editor, slash commands, and one session at a time."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import msgspec

from localllama import names
from localllama.chat.session import Session
from localllama.cli import output, reply, run, show
from localllama.cli.app import App
from localllama.engine import sampling
from localllama.errors import InvalidParameter, LocalLlamaError, WorkerDied
from localllama.runner import Want, parameter_layers
from localllama.store import Installed

_HELP = """\
Commands:
  /set parameter NAME VALUE   a sampling parameter, or num_ctx
  /set system TEXT            the system prompt
  /set history | nohistory    remember what is typed here, or do not
  /set wordwrap | nowordwrap  break lines between words
  /set format json | FILE     make replies valid JSON, or follow the JSON Schema in a file
  /set noformat               leave their form to the model again
  /set verbose | quiet        show the timings of each reply
  /set think | nothink        ask a thinking model to think, or not to
  /show [info|license|modelfile|parameters|system|template]
  /load MODEL                 another model, a new conversation
  /save NAME                  keep model, parameters, system prompt and messages under a name
  /clear                      forget the conversation
  /list                       the installed models
  /bye                        leave (also Ctrl-D)

  \"\"\" begins and ends a message of several lines. Ctrl-C stops a reply; once more leaves.
"""
_SWITCHES = (
    *("parameter", "system", "history", "nohistory", "wordwrap", "nowordwrap"),
    *("format", "noformat", "verbose", "quiet", "think", "nothink"),
)
_PARTS = ("info", "license", "modelfile", "parameters", "system", "template")


class Repl:
    """One sitting: the model may change, the settings stay."""

    def __init__(
        self,
        app: App,
        want: Want,
        settings: dict[str, Any],
        *,
        verbose: bool = False,
        wrap: bool = True,
        bound: dict[str, str] | None = None,
    ) -> None:
        self._app = app
        self._want = want
        self._settings = settings  # this chat's own sampling parameters
        self._verbose = verbose
        self._wrap = wrap
        self._bound = bound or {}  # the fields of Sampling that say what replies must follow
        self._think: bool | None = None
        self._stack = ExitStack()
        self._dead = False
        self._model: Installed
        self._session: Session

    def talk(self, model: Installed, system: str | None) -> int:
        """Converse until the user leaves; returns the exit code."""
        with self._stack:
            self._open(model, system)
            editor = _Editor(self._app)
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

    def _open(self, model: Installed, system: str | None = None) -> None:
        engine = self._stack.enter_context(run.opened(self._app, model, self._want))
        self._model = model
        self._session = run.begin(engine, model, system)

    def _switch(self, model: Installed, want: Want) -> None:
        """Load another model, or the same in another way; when that fails, go back."""
        before, session = (self._model, self._want), self._session
        self._stack.close()  # first: two models may not fit
        self._want = want
        try:
            self._open(model)
        except LocalLlamaError:
            self._model, self._want = before
            self._resume(session)
            raise

    def _resume(self, session: Session) -> None:
        """Load the present model again and go on with a conversation."""
        self._stack.close()
        self._open(self._model, session.system)
        self._session.messages = session.messages

    def _say(self, text: str) -> bool:
        """Send a message and show the reply; False when the user stopped it."""
        layers = [("chat", self._settings), *parameter_layers(self._model, self._app.config)]
        chosen = msgspec.structs.replace(sampling.resolve(layers).sampling, **self._bound)
        if self._dead:  # the process that held the model is gone, not so the conversation
            self._resume(self._session)
            self._dead = False
        context = self._session.engine.ready.context_length
        events = self._session.send(text, chosen, think=self._think)
        screen = reply.Shown(context, wrap=self._wrap)
        try:
            answer = reply.follow(events, screen, cancel=self._session.engine.cancel)
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

    def _command(self, line: str, editor: _Editor) -> bool:
        """Carry out a slash command; False leaves the conversation."""
        word, _, rest = line.strip().partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/set": lambda text: self._set(text, editor),
            "/show": self._show,
            "/load": self._load,
            "/save": self._save,
            "/clear": self._clear,
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

    def _help(self, _: str) -> None:
        output.say(_HELP)

    def _set(self, text: str, editor: _Editor) -> None:
        switch, _, value = text.partition(" ")
        value = value.strip()
        if switch == "parameter":
            self._parameter(value)
        elif switch == "system":
            self._session.system = _unquoted(value)
            output.say("system prompt set")
        elif switch in ("history", "nohistory"):
            editor.remember(switch == "history")
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
            if not value.isdecimal() or int(value) < 1:
                raise InvalidParameter(f"num_ctx must be a number of tokens, not {value!r}")
            session = self._session
            self._switch(self._model, replace(self._want, context_length=int(value)))
            self._session.system, self._session.messages = session.system, session.messages
        else:
            parameter = sampling.lookup(name)
            given = _words(value) if parameter.kind is str else _unquoted(value)
            self._settings[parameter.name] = parameter.convert(given)
        output.say(f"{name} is {value}")

    def _show(self, part: str) -> None:
        if part == "system":
            output.result(self._session.system or "there is no system prompt")
        else:
            text = show.describe(self._app, self._model, part or "info", chat=self._settings)
            output.result(output.printable(text))

    def _load(self, text: str) -> None:
        if not text:
            raise InvalidParameter("which model?", "/load NAME, /list shows them")
        self._switch(show.find(self._app, text), self._want)
        output.say(f"{self._model.name} is loaded")

    def _save(self, text: str) -> None:
        if not text:
            raise InvalidParameter("under which name?", "/save NAME")
        name = names.own(text)
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
                system=self._session.system,
                parameters=parameters,
                saved=True,
                messages=tuple(
                    {"role": m.role, "content": m.content} for m in self._session.messages
                ),
            )
        )
        output.say(f"saved as {name}")

    def _clear(self, _: str) -> None:
        self._session.clear()
        output.say("the conversation is forgotten")

    def _list(self, _: str) -> None:
        for model in self._app.store.models():
            output.result(f"{model.name:<40}  {output.size(model.size_bytes)}")


class _Editor:
    """Reads messages: line editing, history, completion of slash commands, three quotes."""

    def __init__(self, app: App) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import NestedCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory

        self.stopped = False  # the last thing the user did was Ctrl-C
        file = app.paths.history_file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
            self._file_history: Any = FileHistory(str(file))
        except OSError:  # a read-only home: talk all the same
            self._file_history = InMemoryHistory()
        self._forgetful = InMemoryHistory()
        models = {model.name: None for model in app.store.models()}
        words = NestedCompleter.from_nested_dict(
            {
                "/set": {
                    **dict.fromkeys(_SWITCHES),
                    "parameter": dict.fromkeys([p.name for p in sampling.PARAMETERS] + ["num_ctx"]),
                    "format": {"json"},
                },
                "/show": dict.fromkeys(_PARTS),
                "/load": models,
                **dict.fromkeys(("/save", "/clear", "/list", "/help", "/bye")),
            }
        )
        self._prompt: PromptSession[str] = PromptSession(
            history=self._file_history, completer=words, complete_while_typing=False
        )

    def remember(self, yes: bool) -> None:
        """Keep what is typed on disk, or from now on only for this sitting."""
        self._prompt.history = self._file_history if yes else self._forgetful
        self._prompt.default_buffer.history = self._prompt.history

    def read(self) -> str | None:
        """Return the next message or command, None when the user leaves."""
        lines: list[str] = []
        while True:
            prompt = "... " if lines else ">>> "
            try:
                line = self._prompt.prompt(prompt, placeholder=_placeholder(lines))
            except EOFError:
                return None
            except KeyboardInterrupt:
                if self.stopped:
                    return None
                output.say("Ctrl-C again, Ctrl-D or /bye leaves")
                self.stopped = True
                lines = []
                continue
            self.stopped = False
            if not lines and not line.lstrip().startswith('"""'):
                return line
            lines.append(line if lines else line.lstrip()[3:])
            if lines[-1].rstrip().endswith('"""'):
                lines[-1] = lines[-1].rstrip()[:-3]
                return "\n".join(lines)


def _placeholder(lines: list[str]) -> Any:
    from prompt_toolkit.formatted_text import HTML

    text = 'end with """' if lines else "Send a message (/? for help)"
    return HTML(f"<ansibrightblack>{text}</ansibrightblack>")


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

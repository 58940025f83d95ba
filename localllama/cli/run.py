"""``localllama run``: one reply for a prompt or piped text, else a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from localllama import names
from localllama.chat.session import POLICIES, Model, Session
from localllama.cli import output, reply, show
from localllama.cli.app import App, complete_known, json_option, offline_option, yes_option
from localllama.cli.placement import idle_note, placement_options
from localllama.config import parse_duration
from localllama.engine import grammar, sampling, schema
from localllama.engine.api import Message, Sampling
from localllama.engine.client import Engine
from localllama.engine.remote import RemoteEngine
from localllama.errors import ChatNotFound, InvalidParameter, LocalLlamaError, ModelNotFound
from localllama.runner import Runner
from localllama.store import Installed
from localllama.wants import Want, parameter_layers

if TYPE_CHECKING:
    from localllama.chat.history import History
    from localllama.chat.records import Chat

_EXAMPLES = """\b
Examples:
  localllama run smollm2:135m
  localllama run smollm2:135m "Name three colours" --seed 1 --temperature 0
  cat notes.txt | localllama run smollm2:135m "summarise"
"""


@click.command("run", epilog=_EXAMPLES)
@click.argument("model", required=False, shell_complete=complete_known)
@click.argument("prompt", nargs=-1)
@click.option("--system", default=None, help="System prompt.")
@click.option("--temperature", type=float, default=None, help="0 always takes the likeliest token.")
@click.option("--top-p", type=float, default=None, help="Likeliest tokens up to this probability.")
@click.option("--top-k", type=int, default=None, help="So many likeliest tokens.")
@click.option("--min-p", type=float, default=None, help="Tokens at least this likely, relatively.")
@click.option("--seed", type=int, default=None, help="The same seed gives the same reply.")
@click.option("--max-tokens", type=int, default=None, help="The longest reply, in tokens.")
@click.option("--format", "form", help="json, or the file of a JSON Schema the reply must follow.")
@placement_options
@click.option(
    "--context-policy",
    "policy",
    type=click.Choice(POLICIES),
    default=POLICIES[0],
    help="When the context is full: leave old turns out, stop, or shift within a reply too.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default physical cores.")
@click.option("--keep-alive", help="Stay loaded so long unused: 5m, 300, 0; negative is for ever.")
@click.option("--template", default="", help="Chat template: a built-in one, or a Jinja file.")
@click.option("--continue", "resume", is_flag=True, help="Go on with the latest saved chat.")
@click.option("--chat", "chat_id", type=int, metavar="ID", help="Go on with this saved chat.")
@click.option("--no-history", is_flag=True, help="Keep nothing of this chat on the disk.")
@click.option("--verbose", is_flag=True, help="Print the timings of each reply.")
@click.option("--nowordwrap", is_flag=True, help="Leave the breaking of lines to the terminal.")
@yes_option
@offline_option
@json_option
def run_command(
    model: str | None,
    prompt: tuple[str, ...],
    system: str | None,
    form: str | None,
    want: Want,
    policy: str,
    threads: int | None,
    keep_alive: str | None,
    template: str,
    resume: bool,
    chat_id: int | None,
    no_history: bool,
    verbose: bool,
    nowordwrap: bool,
    yes: bool,
    as_json: bool,
    **request: Any,
) -> int:
    """Chat with MODEL, or reply once to PROMPT or to what comes in through a pipe.

    A model that is not installed is pulled, after asking. Ctrl-C stops a reply and keeps it.
    Conversations are saved: localllama history lists them.
    """
    app = App.start()
    settings = {name: value for name, value in request.items() if value is not None}
    asked = (sampling.REQUEST, settings)
    sampling.resolve([asked])  # a wrong value is told before anything is loaded
    bound = bound_by(form)
    seconds = None if keep_alive is None else _seconds(keep_alive)
    text = _question(prompt)
    if text is not None and not text:
        raise InvalidParameter("there is nothing to reply to", "give a prompt or pipe a text in")
    chat: Chat | None = None
    if text is None:
        history = open_history(app, keep=not no_history, needed=resume or chat_id is not None)
        chat = _chosen(history, chat_id, latest=resume)
        if no_history and chat is not None:
            raise InvalidParameter("a saved chat cannot go on without the history")
    elif resume or chat_id is not None:
        raise InvalidParameter(
            "one prompt is answered by itself, not in a chat", "leave it out and type it there"
        )
    installed = _locate(app, model or (chat and chat.model) or app.config.run.model, yes=yes)
    want = replace(
        want, threads=threads or 0, template=_template(template), keep_alive_seconds=seconds
    )
    if installed.remote and want != Want():
        raise InvalidParameter(
            f"{installed.name} is not local: how it is loaded is decided there",
            "leave out --ctx, --threads, --keep-alive, --template and what is about GPUs",
        )
    if chat is not None and not want.context_length:
        want = replace(want, context_length=chat.context_length)
    if text is None:
        from localllama.cli.repl import Repl

        repl = Repl(
            app,
            want,
            settings,
            history,
            verbose=verbose,
            wrap=not nowordwrap,
            bound=bound,
            policy=policy,
        )
        return repl.talk(installed, system, chat)
    resolved = sampling.resolve([asked, *parameter_layers(installed, app.config)])
    with opened(app, installed, want, tell=verbose) as engine:
        session = begin(engine, installed, system, policy)
        chosen = msgspec.structs.replace(resolved.sampling, **bound)
        answer = _once(session, text, chosen, quiet=as_json)
    if as_json:
        output.as_json(_facts(answer, installed))
    if verbose:
        output.say(reply.timings(answer.done))
    return output.INTERRUPTED if answer.stopped else 0


def open_history(app: App, *, keep: bool, needed: bool = False) -> History:
    """Open the saved chats, or something that forgets; trouble with them is no end unless needed.

    Raises HistoryError, StoreError.
    """
    from localllama.chat.history import History

    if not needed and not (keep and app.config.run.history):
        return History.temporary()
    try:
        return app.history()
    except LocalLlamaError as error:
        if needed:
            raise
        output.say(f"Warning: this chat is not saved: {error.message}")
        return History.temporary()


def _chosen(history: History, id: int | None, *, latest: bool) -> Chat | None:
    """Return the saved chat to go on with; raises ChatNotFound."""
    if id is not None:
        return history.chat(id)
    if not latest:
        return None
    chats = sorted(history.chats(), key=lambda chat: chat.updated_at)
    if not chats:
        raise ChatNotFound("there is no saved chat yet")
    return chats[-1]


def _once(session: Session, text: str, chosen: Sampling, *, quiet: bool) -> reply.Reply:
    context = session.engine.ready.context_length
    # Not wrapped: one reply is often piped on, and its lines are the model's own.
    screen = reply.Silent() if quiet else reply.Shown(context)
    answer = reply.follow(session.send(text, chosen), screen, cancel=session.engine.cancel)
    if note := reply.cut_note(answer.done, context):
        output.say(note)
    return answer


def _facts(answer: reply.Reply, model: Installed) -> dict[str, Any]:
    return {
        "model": model.name,
        "text": answer.text,
        "reason": answer.done.reason,
        "usage": msgspec.to_builtins(answer.done.usage),
        "timings": msgspec.to_builtins(answer.done.timings),
        "truncated": msgspec.structs.asdict(answer.truncated) if answer.truncated else None,
    }


def begin(engine: Model, model: Installed, system: str | None, policy: str) -> Session:
    """Return a conversation that begins as the model says; ``system`` replaces its prompt."""
    return Session(
        engine,
        system=model.system if system is None else system,
        messages=[Message(said["role"], said["content"]) for said in model.messages],
        policy=policy,
    )


def bound_by(form: str | None) -> dict[str, str]:
    """Return the fields of Sampling that hold a reply to ``form``: ``json`` or a schema's file.

    Raises InvalidParameter.
    """
    if form is None:
        return {}
    if form == "json":
        return {"grammar": grammar.JSON}
    try:
        text = Path(form).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidParameter(
            f"cannot read the schema {form}: {reason}",
            "the format is json, or the file of a JSON Schema",
        ) from error
    schema.definitions(text)
    return {"schema": text}


def _template(text: str) -> str:
    """Return the name of a built-in template, or the Jinja source in a file."""
    from localllama.engine.templates import BUILTIN_NAMES

    if not text or text in BUILTIN_NAMES:
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidParameter(
            f"cannot read the template {text!r}: {error}",
            f"built in are {', '.join(BUILTIN_NAMES)}",
        ) from error


def _question(prompt: tuple[str, ...]) -> str | None:
    """Return the text to reply to, or None for a conversation at the terminal."""
    words = " ".join(prompt).strip()
    if sys.stdin is None or sys.stdin.isatty():
        return words or None
    piped = sys.stdin.buffer.read().decode(errors="replace").strip()
    return "\n\n".join(part for part in (piped, words) if part)


def _seconds(keep_alive: str) -> float:
    try:
        return parse_duration(keep_alive)
    except ValueError as error:
        raise InvalidParameter(f"--keep-alive: {error}") from error


def _locate(app: App, text: str, *, yes: bool) -> Installed:
    """Return the installed model or that of an endpoint, or pull it after asking."""
    name = names.parse(text)
    if name.source in (names.Source.LOCAL, names.Source.ENDPOINT):
        return show.find(app, text)
    full = app.name(text)
    if (model := app.store.find(full)) is not None:
        return model
    if full.source is names.Source.CATALOG:
        from localllama import catalog

        try:  # a name that nobody knows is an error, not a question
            catalog.resolve(name, app.catalog)
        except ModelNotFound as error:
            if name.repo.partition("/")[0] in app.config.endpoints:
                error.hint = f"the endpoint's is @{name}"
            raise
    if not output.confirm(f"{full} is not installed. Pull it?", yes=yes):
        app.installed(str(full))  # raises, with the hint
    from localllama.cli.pull import fetch

    return fetch(app, str(full), app.network(), yes=yes)


@contextmanager
def opened(
    app: App, model: Installed, want: Want, *, tell: bool = False
) -> Iterator[Engine | RemoteEngine]:
    """Open a model, showing how far it is on a terminal, and leave its worker afterwards.

    ``tell``: say where it runs. That it is not here, or that a GPU stays idle which nobody
    excluded, is always said.
    """
    shows = sys.stderr.isatty()

    def loading(fraction: float) -> None:
        if shows:
            sys.stderr.write(f"\r\033[Kloading {model.name}: {fraction:.0%}")
            sys.stderr.flush()

    try:
        engine = Runner(app.store, app.config, app.paths).reach(model, want, on_progress=loading)
    finally:
        if shows:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
    with engine:
        label = engine.label
        if tell or label.endpoint:
            output.say(label.explanation)
        if note := idle_note(want, label.idle_gpu, used=label.gpu_bytes > 0):
            output.say(f"note: {note}")
        trained = engine.ready.trained_context_length
        if trained and engine.ready.context_length > trained:
            output.say(
                f"Warning: the model was trained for {trained} tokens of context; beyond that its "
                "replies get worse"
            )
        yield engine

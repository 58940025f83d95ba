"""``localllama history``: the saved chats, to find, read and take along."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from localllama.chat import export
from localllama.chat.conversation import session_name
from localllama.cli import output
from localllama.cli.app import App, json_option, yes_option
from localllama.errors import InvalidParameter
from localllama.files import storing, write_atomic

if TYPE_CHECKING:
    from localllama.chat.history import History
    from localllama.chat.records import Chat, Hit

_TITLE_CHARS = 48

_EXAMPLES = """\b
Examples:
  localllama history search "steam engine"
  localllama history export 12 > chat.md
  localllama history export --json > all-chats.json
"""


@click.group("history", epilog=_EXAMPLES, invoke_without_command=True)
@click.pass_context
def history_command(context: click.Context) -> None:
    """List, show, search, export, import and delete saved chats.

    They lie in chats.db in the data folder, readable by you alone. `run --continue` goes on with
    the latest one; `run --no-history` saves nothing. Without a command they are listed.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_command)


@history_command.command("list")
@click.option("--deleted", is_flag=True, help="List those that can still be brought back.")
@json_option
def list_command(deleted: bool, as_json: bool) -> None:
    """List the chats: pinned ones first, then the latest first."""
    with App.start().history() as history:
        chats = history.chats(deleted=deleted)
    if as_json:
        output.as_json({"chats": msgspec.to_builtins(chats)})
        return
    output.table(
        ("ID", "TITLE", "MODEL", "CHANGED"),
        ((str(chat.id), _title(chat), chat.model, output.ago(chat.updated_at)) for chat in chats),
    )


@history_command.command("show")
@click.argument("id", type=int)
@json_option
def show_command(id: int, as_json: bool) -> None:
    """Print the chat ID as Markdown; with --json all versions of its messages."""
    with App.start().history() as history:
        chat = history.chat(id)
        messages = history.messages(id)
    if as_json:
        output.as_json(msgspec.to_builtins({"chat": chat, "messages": messages}))
    else:
        output.result(output.printable(export.to_markdown(chat, messages)), newline=False)


@history_command.command("search")
@click.argument("words", nargs=-1, required=True)
@click.option("--limit", type=click.IntRange(min=1), default=50, help="At most so many.")
@json_option
def search_command(words: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Find WORDS, or words that begin so, in titles and messages; "quotes" hold a phrase."""
    with App.start().history() as history:
        # A shell takes the quotes of a phrase away; an argument of several words is one.
        text = " ".join(f'"{word}"' if " " in word else word for word in words)
        hits = history.search(text, limit)
        indexed = history.full_text
    if not indexed:
        output.say("Note: this Python's SQLite has no full-text index; every message was read")
    if as_json:
        output.as_json({"hits": msgspec.to_builtins(hits)})
        return
    for hit in hits:
        output.result(f"{hit.chat:>4}  {_short(hit.title)}  {output.ago(hit.at)}")
        if hit.message:
            output.result(f"      {hit.role}: {_excerpt(hit)}")
    if not hits:
        output.say("nothing found")


@history_command.command("export")
@click.argument("ids", nargs=-1, type=int)
@click.option("-o", "--output", "target", type=click.Path(dir_okay=False), help="Write to a file.")
@json_option
def export_command(ids: tuple[int, ...], target: str | None, as_json: bool) -> None:
    """Print the chats IDS, or all: Markdown to read, or with --json for another localllama."""
    with App.start().history() as history:
        chats = [history.chat(id) for id in ids] or history.chats()
        text = export.to_json(history, chats) if as_json else _markdown(history, chats)
    if target is None:
        output.result(text, newline=not text.endswith("\n"))
        return
    file = Path(target)
    with storing(file):
        write_atomic(file, text.encode(), 0o600)
    output.say(f"{len(chats)} {'chat' if len(chats) == 1 else 'chats'} written to {file}")


@history_command.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path())
def import_command(files: tuple[str, ...]) -> None:
    """Save the chats of FILES that `history export --json` wrote; - reads from a pipe."""
    with App.start().history() as history:
        for name in files:
            for chat in export.from_json(history, _read(name)):
                output.say(f"imported chat {chat.id}: {chat.title}")


@history_command.command("delete")
@click.argument("ids", nargs=-1, required=True, type=int)
@click.option("--undo", is_flag=True, help="Bring them back instead.")
@click.option("--purge", is_flag=True, help="Overwrite them at once; there is no way back.")
@yes_option
def delete_command(ids: tuple[int, ...], undo: bool, purge: bool, yes: bool) -> None:
    """Delete the chats IDS. For 30 days --undo brings them back; then they are overwritten."""
    if undo and purge:
        raise InvalidParameter("--undo and --purge are opposites", "give one of them")
    app = App.start()
    with app.history() as history:
        history.purge_old()
        if undo:
            for id in ids:
                output.say(f"chat {id} is back: {history.restore(id).title}")
            return
        deleted = {chat.id: chat for chat in history.chats(deleted=True)} if purge else {}
        chats = [deleted.get(id) or history.chat(id) for id in ids]
        if not purge:
            for chat in chats:
                history.delete(chat.id)
                output.say(f"deleted chat {chat.id}: {chat.title}")
            _forget_computed(app, chats)
            output.say(f"bring back: localllama history delete --undo {' '.join(map(str, ids))}")
        elif output.agreed(f"Overwrite {_titles(chats)} for good?", yes=yes):
            history.purge(ids)
            _forget_computed(app, chats)
            output.say(f"{_titles(chats)}: nothing is left")


def _forget_computed(app: App, chats: Sequence[Chat]) -> None:
    """Have nothing of these chats kept in the workers' states on the disk."""
    from localllama.runner import Runner

    runner = Runner(app.store, app.config, app.paths)
    for chat in chats:
        runner.forget(session_name(chat.id))


def _markdown(history: History, chats: Sequence[Chat]) -> str:
    pages = (export.to_markdown(chat, history.messages(chat.id)) for chat in chats)
    return "\n---\n\n".join(pages)


def _read(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise InvalidParameter(f"cannot read {name}: {error.strerror}") from error


def _title(chat: Chat) -> str:
    return _short(chat.title) + (" (pinned)" if chat.pinned else "")


def _titles(chats: Sequence[Chat]) -> str:
    return ", ".join(repr(_short(chat.title)) for chat in chats)


def _short(title: str) -> str:
    title = output.printable(" ".join(title.split())) or "Untitled chat"
    return title if len(title) <= _TITLE_CHARS else title[: _TITLE_CHARS - 1] + "…"


def _excerpt(hit: Hit) -> str:
    def shown(text: str, marked: Any) -> str:
        text = output.printable(" ".join(text.split(" "))).replace("\n", " ")
        return output.paint(text, "yellow", sys.stdout) if marked else text

    return "".join(shown(text, marked) for text, marked in hit.excerpt)

"""The chat screen as a person uses it; the engine is scripted, everything else is real."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.events import Key
from textual.widgets._toast import Toast

from localllama import paths
from localllama.chat.export import to_json
from localllama.chat.history import History
from localllama.chat.records import StoredMessage
from localllama.engine.api import Timings
from localllama.errors import DoesNotFit
from localllama.tui.screens.chat import ChatScreen
from localllama.tui.widgets.composer import Composer, Offers
from localllama.tui.widgets.keys import Keys
from localllama.tui.widgets.message import MessageView
from localllama.tui.widgets.transcript import Transcript
from tests.support.app import Screen, ScriptedRunner, running
from tests.support.engines import ScriptedEngine
from tests.support.gguf_maker import write_tiny_llama

Flow = Callable[[Screen], Awaitable[None]]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(1000)


def use(home: Path, engine: ScriptedEngine, flow: Flow, **options: object) -> None:
    """Run the app and do something with it."""

    async def go() -> None:
        async with running(home, engine, **options) as screen:  # type: ignore[arg-type]
            await flow(screen)

    asyncio.run(go())


def saved(home: Path) -> History:
    return History(home / "chats.db")


def test_a_message_gets_a_reply_and_both_are_saved(home: Path, engine: ScriptedEngine) -> None:
    engine.texts = ("# Colours\n\n", "- **red**\n- blue\n\n", "```python\nprint(1)\n", "```\n")

    async def flow(screen: Screen) -> None:
        await screen.shows("A new conversation", "smol:latest Q4_1")
        await screen.type("Name two")
        await screen.shows("You", "Colours", "• red", "python  copy", "print(1)", "Today")
        await screen.shows("ctx", "/1000", "10/31 layers on CUDA0")

    use(home, engine, flow)
    with saved(home) as history:
        [chat] = history.chats()
        question, reply = history.branch(chat.id)
    assert (chat.title, chat.model) == ("Name two", "smol:latest")
    assert (question.content, reply.content) == ("Name two", "".join(engine.texts))


def test_several_lines_and_what_was_sent_before(home: Path, engine: ScriptedEngine) -> None:
    async def flow(screen: Screen) -> None:
        composer = screen.app.screen.query_one(Composer)
        await screen.press(*"one", "ctrl+j", *"two", "enter")
        await screen.shows("word2")
        await screen.press("up")
        assert composer.text == "one\ntwo"
        await screen.press("down", "down")
        assert composer.text == ""

    use(home, engine, flow)
    assert engine.sent[0][0].content == "one\ntwo"


def test_who_comes_back_from_another_screen_goes_on_writing(
    home: Path, engine: ScriptedEngine
) -> None:
    async def flow(screen: Screen) -> None:
        await screen.type("hello")
        await screen.shows("word2")
        await screen.press("ctrl+s", "enter", "f4")
        await screen.shows("Look again")
        await screen.press("f4")
        await screen.shows("New line")
        await screen.type("d")  # in the list it would delete the chat
        await screen.until(lambda: len(engine.sent) == 2)

    use(home, engine, flow)
    assert engine.sent[-1][-1].content == "d"


def test_a_reply_without_a_word_is_told(home: Path, engine: ScriptedEngine) -> None:
    engine.texts = ()

    async def flow(screen: Screen) -> None:
        await screen.type("hello")
        await screen.shows("[there is no reply; Ctrl+R asks for one]")
        engine.words = 3
        await screen.press("ctrl+r")
        await screen.shows("word2")
        await screen.hides("there is no reply")

    use(home, engine, flow)


def test_escape_stops_a_reply_which_ctrl_g_goes_on_with(home: Path, engine: ScriptedEngine) -> None:
    engine.pause = threading.Event()

    async def flow(screen: Screen) -> None:
        await screen.type("count")
        await screen.shows("word1", "replying")
        await screen.press("escape")
        await screen.shows("[stopped; Ctrl+G goes on]")
        engine.texts = ("and more",)
        engine.pause = None
        await screen.press("ctrl+g")
        await screen.shows("word0 word1 and more")
        await screen.hides("stopped")

    use(home, engine, flow)
    assert engine.continued


def test_another_reply_and_an_edited_question_are_versions(
    home: Path, engine: ScriptedEngine
) -> None:
    async def flow(screen: Screen) -> None:
        await screen.type("first")
        await screen.shows("word2")
        engine.texts = ("other",)
        await screen.press("ctrl+r")
        await screen.shows("other", "version 2/2")
        await screen.press("ctrl+t", "left")
        await screen.shows("word2", "version 1/2")
        await screen.press("up", "e")
        engine.texts = ("third",)
        await screen.type("!")
        await screen.shows("first!", "third", "version 2/2")
        await screen.press("ctrl+t", "up", "[")
        await screen.shows("version 1/2", "other")  # the newest that follows
        await screen.press("escape", "alt+left")
        await screen.shows("word2", "version 1/2 · Alt+→ later")
        await screen.until(lambda: screen.app.screen.query_one(Composer).has_focus)
        await screen.press("alt+right")
        await screen.shows("other", "version 2/2 · Alt+← earlier")
        await screen.press("alt+left", "alt+right", "alt+right")  # the reply's, then the question's
        await screen.shows("first!", "third", "version 2/2 · Alt+← earlier")
        await screen.press("alt+right")
        await screen.shows("there is no later version")
        await screen.press("alt+left")
        await screen.shows("version 1/2", "other")

    use(home, engine, flow)
    with saved(home) as history:
        assert history.branch(history.chats()[0].id)[0].content == "first"


def test_a_dead_worker_is_told_and_ctrl_r_tries_again(home: Path, engine: ScriptedEngine) -> None:
    engine.dies_after = 1

    async def flow(screen: Screen) -> None:
        await screen.type("hello")
        await screen.shows("gone", "Ctrl+R tries again", "broken off")
        engine.dies_after = None
        await screen.press("ctrl+r")
        await screen.shows("word2", "version 2/2")
        await screen.hides("tries again")
        runner = opener(screen)
        assert len(runner.opened) == 2

    use(home, engine, flow)


def test_a_model_that_was_unloaded_is_loaded_for_the_next_message(
    home: Path, engine: ScriptedEngine
) -> None:
    async def flow(screen: Screen) -> None:
        await screen.type("hello")
        await screen.shows("word2")
        engine.ended = True
        await screen.type("again")
        await screen.until(lambda: screen.text.count("word2") == 2)
        runner = opener(screen)
        assert len(runner.opened) == 2

    use(home, engine, flow)


def test_a_key_for_the_sidebar_leaves_the_typing_in_the_composer(
    home: Path, engine: ScriptedEngine
) -> None:
    async def flow(screen: Screen) -> None:
        await screen.type("hello")
        await screen.shows("word2")
        await screen.press("ctrl+b", "d", "ctrl+b", "d")
        await screen.shows("dd")

    use(home, engine, flow)
    with saved(home) as history:
        assert len(history.chats()) == 1


def test_a_model_that_cannot_be_loaded_loses_no_message(home: Path, engine: ScriptedEngine) -> None:
    async def flow(screen: Screen) -> None:
        runner = opener(screen)
        runner.error = DoesNotFit("it needs 9 GB", "take a smaller one")
        screen.app.models.again()
        await screen.shows("could not be loaded", "it needs 9 GB")
        await screen.type("hello")
        await screen.shows("it needs 9 GB", "take a smaller one")
        runner.error = None
        await screen.press("ctrl+r")
        await screen.shows("word2")

    use(home, engine, flow)
    with saved(home) as history:
        assert [m.role for m in history.branch(history.chats()[0].id)] == ["user", "assistant"]


def test_what_is_left_out_of_the_context_is_said_where_it_happens(home: Path) -> None:
    async def flow(screen: Screen) -> None:
        for number in range(3):
            await screen.type(f"{number} a b c d e f g h")
            await screen.until(lambda n=number: screen.text.count("word2") == n + 1)
        await screen.shows("older messages", "no longer go to the model")

    use(home, ScriptedEngine(39), flow)


def test_a_message_that_is_too_long_for_the_context_is_shortened(home: Path) -> None:
    async def flow(screen: Screen) -> None:
        await screen.type("word " * 50)
        await screen.shows("edit it (Ctrl+T, e), or choose a longer context (F3)")
        await screen.press("ctrl+t", "e", "f7")
        await screen.type("short")
        await screen.shows("word0 word1 word2")
        await screen.hides("longer context")

    use(home, ScriptedEngine(39), flow)


def test_a_file_and_a_large_paste_are_attached(
    home: Path, engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("milk")
    monkeypatch.chdir(tmp_path)

    async def flow(screen: Screen) -> None:
        await screen.paste("eggs\n" * 100)
        await screen.shows("+ pasted-1.txt (about 125 tokens)")
        await screen.type("what is in @notes.txt?")
        await screen.shows("+ notes.txt", "word2")

    use(home, engine, flow)
    sent = engine.sent[0][0].content
    assert '<file name="notes.txt">\nmilk\n</file>' in sent
    assert sent.count("eggs") == 100
    assert sent.endswith("what is in @notes.txt?")


def test_backspace_before_the_text_takes_an_attachment_away(
    home: Path, engine: ScriptedEngine
) -> None:
    async def flow(screen: Screen) -> None:
        await screen.paste("eggs\n" * 100)
        await screen.paste("milk\n" * 100)
        await screen.shows("+ pasted-1.txt", "+ pasted-2.txt", "Backspace before the text")
        await screen.press("a", "backspace", "backspace")
        await screen.hides("pasted-2.txt")
        await screen.type("what is in it?")
        await screen.shows("word2")

    use(home, engine, flow)
    sent = engine.sent[0][0].content
    assert "eggs" in sent
    assert "milk" not in sent


def test_a_command_leaves_what_is_attached_for_the_next_message(
    home: Path, engine: ScriptedEngine
) -> None:
    async def flow(screen: Screen) -> None:
        await screen.paste("eggs\n" * 100)
        await screen.type("/set parameter top_k 5")
        await screen.shows("top_k", "+ pasted-1.txt")
        await screen.type("what is in it?")
        await screen.shows("word2")

    use(home, engine, flow)
    assert [len(messages) for messages in engine.sent] == [1]
    assert "eggs" in engine.sent[0][0].content


def test_what_was_being_written_comes_back_after_an_edit(
    home: Path, engine: ScriptedEngine
) -> None:
    async def flow(screen: Screen) -> None:
        await screen.type("first")
        await screen.shows("word2")
        composer = screen.app.screen.query_one(Composer)
        await screen.paste("eggs\n" * 100)
        await screen.press(*"later")
        for leave in ("escape", "enter"):
            await screen.press("ctrl+t", "up", "e")
            await screen.until(lambda: composer.text == "first")
            await screen.press(leave)
            await screen.until(lambda: composer.text == "later")
            await screen.shows("+ pasted-1.txt")
        await screen.shows("version 2/2")

    use(home, engine, flow)
    assert "eggs" not in engine.sent[-1][0].content


def test_a_named_file_stays_one_when_its_message_is_edited(
    home: Path, engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("milk")
    monkeypatch.chdir(tmp_path)

    async def flow(screen: Screen) -> None:
        await screen.type("what is in @notes.txt?")
        await screen.shows("word2")
        notes.write_text("eggs")
        await screen.press("ctrl+t", "up", "e", "enter")
        await screen.shows("version 2/2", "word2")

    use(home, engine, flow)
    assert engine.sent[-1][0].content.count("</file>") == 1
    assert "eggs" in engine.sent[-1][0].content


def test_commands_are_completed(home: Path, engine: ScriptedEngine) -> None:
    async def flow(screen: Screen) -> None:
        composer = screen.app.screen.query_one(Composer)
        await screen.press("/")
        await screen.shows("/set system", "the system prompt", "Tab completes")
        await screen.press("escape")
        await screen.hides("the system prompt")
        await screen.press(*"set", "tab", *"temp")
        await screen.shows("How freely the next token is chosen")
        await screen.press("tab")
        assert composer.text == "/set parameter temperature "
        composer.write("")
        await screen.press(*"/load ", "down", "down", "enter")
        assert composer.text == "/load big:latest"
        await screen.press("enter")
        await screen.shows("big:latest Q4_1")

    use(home, engine, flow, models=("smol", "big"))


def test_files_are_completed(
    home: Path, engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big notes").mkdir()
    (tmp_path / "big notes" / "first one.txt").write_text("milk")
    (tmp_path / ".hidden").touch()
    monkeypatch.chdir(tmp_path)

    async def flow(screen: Screen) -> None:
        composer = screen.app.screen.query_one(Composer)
        await screen.press(*"see @")
        await screen.shows("folder")
        assert ".hidden" not in screen.text
        await screen.press(*"big", "tab", "tab")
        assert composer.text == 'see @"big notes/first one.txt" '
        composer.write("")
        await screen.press("@", "b")
        await screen.shows("folder")
        await screen.pilot.click(Offers, offset=(4, 1))
        assert composer.text == '@"big notes/'
        assert composer.has_focus
        await screen.press("tab", "enter")
        await screen.shows("+ big notes/first one.txt", "word2")

    use(home, engine, flow)
    assert "milk" in engine.sent[0][0].content


def test_a_file_that_is_not_there_is_told(
    home: Path, engine: ScriptedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prose = "ask @someone, me@example.com and @app.get('/')"
    asked = "what is in @nothing.txt?"

    async def flow(screen: Screen) -> None:
        await screen.type(prose)
        await screen.shows("word2")
        await screen.type(asked)
        await screen.shows("there is no file nothing.txt", "Enter again")
        assert screen.app.screen.query_one(Composer).text == asked
        await screen.press("enter")
        await screen.until(lambda: screen.text.count("word2") == 2)

    use(home, engine, flow)
    assert [message.content for message in engine.sent[1] if message.role == "user"] == [
        prose,
        asked,
    ]


def opener(screen: Screen) -> ScriptedRunner:
    runner = screen.app.models._opener
    assert isinstance(runner, ScriptedRunner)
    return runner


def filled(home: Path, count: int) -> int:
    with saved(home) as history:
        chat = history.create(title="A long chat", model="smol:latest")
        parent = None
        for number in range(count):
            role = "assistant" if number % 2 else "user"
            message = StoredMessage(id=0, parent=parent, role=role, content=f"line {number}.")
            parent = history.add(chat.id, message).id
        return chat.id


def test_only_what_is_seen_of_a_long_chat_is_mounted(home: Path, engine: ScriptedEngine) -> None:
    home.mkdir()
    chat = filled(home, 300)

    async def flow(screen: Screen) -> None:
        await screen.app.screen.open(chat)  # type: ignore[attr-defined]
        await screen.shows("line 299.")
        transcript = screen.app.screen.query_one(Transcript)
        assert len(transcript.views) < 40
        mounted = len(transcript.views)
        transcript.scroll_home(animate=False)
        await screen.until(lambda: len(transcript.views) > mounted)
        await screen.until(lambda: transcript.scroll_y > 0)  # what was at the top is still there

    use(home, engine, flow)


def test_a_tall_terminal_is_filled_with_short_messages(home: Path, engine: ScriptedEngine) -> None:
    home.mkdir()
    chat = filled(home, 300)

    async def flow(screen: Screen) -> None:
        await screen.app.screen.open(chat)  # type: ignore[attr-defined]
        await screen.shows("line 299.")
        transcript = screen.app.screen.query_one(Transcript)
        assert transcript.max_scroll_y > 0  # so that one can scroll to the others

    use(home, engine, flow, size=(200, 90))


def test_the_end_is_followed_until_somebody_scrolls_up(home: Path, engine: ScriptedEngine) -> None:
    home.mkdir()
    chat = filled(home, 60)
    engine.texts = ("\n\n".join(f"paragraph {number}" for number in range(40)), "end")
    engine.pause = threading.Event()

    async def flow(screen: Screen) -> None:
        await screen.app.screen.open(chat)  # type: ignore[attr-defined]
        await screen.type("go")
        await screen.shows("paragraph 39")
        transcript = screen.app.screen.query_one(Transcript)
        transcript.scroll_relative(y=-20, animate=False)
        await screen.hides("paragraph 39")
        assert engine.pause is not None
        engine.pause.set()
        await screen.until(lambda: "replying" not in screen.text)
        assert "end" not in screen.text.splitlines()[-8]
        assert transcript.scroll_y < transcript.max_scroll_y

    use(home, engine, flow)


def test_chats_are_searched_renamed_deleted_and_brought_back(
    home: Path, engine: ScriptedEngine
) -> None:
    async def flow(screen: Screen) -> None:
        for text in ("the lighthouse", "a green apple"):
            await screen.press("ctrl+n")
            await screen.type(text)
            await screen.shows("word2", text)
        await screen.press("ctrl+s")
        await screen.type("light")
        await screen.hides("Today")
        await screen.press("enter")
        await screen.shows("the lighthouse")
        await screen.press("ctrl+s", *"zz")
        await screen.shows("Nothing is found")
        await screen.press("escape")
        await screen.shows("Today", "green")
        await screen.press("ctrl+s")
        await screen.shows("↓ To the list")
        await screen.press("down")
        await screen.shows("⏎ Open")
        await screen.press("r", "ctrl+u")
        await screen.type("Fruit")
        await screen.shows("Fruit")
        await screen.press("d")
        await screen.shows("is deleted; u brings it back")
        runner = opener(screen)
        assert len(runner.forgotten) == 1
        await screen.press("u")
        await screen.until(lambda: len(screen.app.history.chats()) == 2)

    use(home, engine, flow)
    with saved(home) as history:
        assert "Fruit" in {chat.title for chat in history.chats()}


def test_a_deleted_chat_comes_back_after_a_restart(home: Path, engine: ScriptedEngine) -> None:
    async def deleting(screen: Screen) -> None:
        for text in ("the first", "the last"):
            await screen.press("ctrl+n")
            await screen.type(text)
            await screen.shows("word2", text)
            await screen.press("ctrl+s", "enter", "d")
            await screen.shows(f"'{text}' is deleted")

    async def undoing(screen: Screen) -> None:
        await screen.press("ctrl+s")
        await screen.paste("something else")  # which no chat is about
        await screen.press("enter", "u")
        await screen.shows("brought back: the last", "Today")
        await screen.press("u", "u")
        await screen.shows("brought back: the first", "no chat was deleted")

    use(home, engine, deleting)
    use(home, engine, undoing)


def test_an_imported_chat_is_in_the_list(
    home: Path, engine: ScriptedEngine, tmp_path: Path
) -> None:
    file = tmp_path / "chats.json"

    async def flow(screen: Screen) -> None:
        await screen.type("a green apple")
        await screen.shows("word2")
        file.write_text(to_json(screen.app.history, screen.app.history.chats()))
        await screen.press("ctrl+s")
        await screen.paste("nothing of that")
        await screen.press("enter", "i", "ctrl+u")
        await screen.type(str(file))
        await screen.shows("1 imported")
        await screen.until(lambda: screen.text.count("a green apple") == 3)

    use(home, engine, flow)


def test_a_narrow_terminal_hides_the_sidebar_until_it_is_wide(
    home: Path, engine: ScriptedEngine
) -> None:
    async def flow(screen: Screen) -> None:
        await screen.hides("Search all chats")
        await screen.press("ctrl+s")
        await screen.shows("Search all chats")
        await screen.press("escape")
        await screen.hides("Search all chats")
        await screen.pilot.resize_terminal(100, 24)
        await screen.shows("Search all chats")
        await screen.press("ctrl+b")
        await screen.hides("Search all chats")
        await screen.pilot.resize_terminal(80, 24)
        await screen.pilot.resize_terminal(120, 24)
        await screen.shows("A new conversation")
        assert "Search all chats" not in screen.text  # the user hid it

    use(home, engine, flow, size=(80, 24))


def test_the_status_is_of_the_model_that_is_loaded(home: Path, engine: ScriptedEngine) -> None:
    engine.pause = threading.Event()
    engine.timings = Timings(decode_seconds=1.5)

    async def flow(screen: Screen) -> None:
        await screen.type("one two three four")
        await screen.shows("replying", " 6/1000")  # four read, two said
        assert engine.pause is not None
        engine.pause.set()
        await screen.shows(" 7/1000", "2.0 tok/s")
        await screen.press("ctrl+o")
        await screen.shows("Which model should reply?")
        await screen.press("down", "enter")
        await screen.shows("big:latest Q4_1", "~8/1000")  # by the length of the text
        assert "tok/s" not in screen.text

    use(home, engine, flow, models=("smol", "big"))


def test_a_chat_is_exported(home: Path, engine: ScriptedEngine, tmp_path: Path) -> None:
    file, taken = tmp_path / "out.md", tmp_path / "ou"
    taken.touch()

    async def flow(screen: Screen) -> None:
        await screen.type("/export")
        await screen.shows("there is nothing to export")
        await screen.press("ctrl+u")
        await screen.type("hello")
        await screen.shows("word2")
        await screen.type("/export")
        await screen.shows("Write the chat to this file")
        await screen.press("escape")
        await screen.press("ctrl+s", "enter", "x", "ctrl+u")
        await screen.type("~nobody.is.called.this/out.md")
        await screen.shows("is not known", "Enter accepts")
        await screen.press("ctrl+u")
        await screen.type(str(tmp_path / "none" / "out.md"))
        await screen.shows("there is no folder", "Enter accepts")
        await screen.press("ctrl+u")
        await screen.type(str(taken))
        await screen.shows("there already. choose another", "Enter accepts")
        await screen.type("t.md")
        await screen.until(file.exists)

    use(home, engine, flow)
    assert "word0 word1 word2" in file.read_text()


def test_the_palette_holds_actions_whatever_has_the_focus(
    home: Path, engine: ScriptedEngine
) -> None:
    def offered(screen: Screen) -> set[str]:
        return {command.title for command in screen.app.get_system_commands(screen.app.screen)}

    async def flow(screen: Screen) -> None:
        assert not any(title.startswith("Message:") for title in offered(screen))
        await screen.type("hello")
        await screen.shows("word2")
        from_composer = offered(screen)
        chat = {"Chat: Rename", "Chat: Pin", "Chat: Delete", "Chat: Export", "Chat: Import"}
        assert chat | {"Message: Copy", "Message: Edit", "Again", "Models"} <= from_composer
        assert not any("ursor" in title or "Focus" in title for title in from_composer)
        for keys in (("ctrl+s", "enter"), ("ctrl+t",)):
            await screen.press(*keys)
            assert offered(screen) == from_composer
        await screen.press("escape", "ctrl+p")
        await screen.type("Message: Edit")
        await screen.shows("Enter sends it as another version")
        await screen.press("escape", "ctrl+p")
        await screen.type("Chat: Delete")
        await screen.shows("'hello' is deleted", "A new conversation")
        await screen.press("ctrl+p")
        await screen.type("Undo delete")
        await screen.until(lambda: len(screen.app.history.chats()) == 1)

    use(home, engine, flow)


def test_messages_are_copied_and_pinned(home: Path, engine: ScriptedEngine) -> None:
    engine.texts = ("look:\n\n```\nls -l\n```",)

    async def flow(screen: Screen) -> None:
        await screen.type("how?")
        await screen.shows("ls -l")
        await screen.press("ctrl+t", "y")
        assert screen.app.clipboard == engine.texts[0]
        await screen.press("c")
        assert screen.app.clipboard == "ls -l"
        await screen.press("p")
        await screen.shows("1 pinned", "still goes to the model")

    use(home, engine, flow)


def test_another_model_is_chosen(home: Path, engine: ScriptedEngine) -> None:
    async def flow(screen: Screen) -> None:
        await screen.press("ctrl+o")
        await screen.shows("Which model should reply?", "big:latest")
        await screen.press("down", "enter")
        await screen.shows("big:latest Q4_1")
        await screen.type("/load smol")
        await screen.shows("smol:latest Q4_1")
        await screen.type("/set parameter num_ctx 77")
        runner = opener(screen)
        await screen.until(lambda: runner.opened[-1] == ("smol:latest", 77))
        await screen.press("ctrl+o")
        await screen.shows("Which model should reply?")
        await screen.press("down", "enter")
        await screen.until(lambda: runner.opened[-1] == ("big:latest", 77))
        await screen.press("ctrl+n")  # which nobody gave a context length
        await screen.until(lambda: runner.opened[-1] == ("big:latest", 0))
        await screen.type("/set parameter num_ctx many")
        await screen.shows("is a number of tokens")

    use(home, engine, flow, models=("smol", "big"))


def test_a_gguf_file_is_installed_and_loaded(
    home: Path, engine: ScriptedEngine, tmp_path: Path
) -> None:
    [file] = write_tiny_llama(tmp_path / "tiny.gguf")

    async def flow(screen: Screen) -> None:
        await screen.type(f"/load {tmp_path}/nothing.gguf")
        await screen.shows("nothing.gguf", "typo")
        screen.app.screen.query_one(Composer).write("")
        await screen.paste(f"/load {tmp_path}/ti")
        await screen.shows("tiny.gguf", "Tab completes")
        await screen.press("tab", "enter")
        await screen.shows("tiny:latest is installed")
        await screen.until(lambda: opener(screen).opened[-1] == ("tiny:latest", 0))

    use(home, engine, flow)
    assert file.exists()


def test_a_chat_is_opened_with_its_own_model(home: Path, engine: ScriptedEngine) -> None:
    async def flow(screen: Screen) -> None:
        runner = screen.app.runner
        assert isinstance(runner, ScriptedRunner)
        await screen.shows("smol:latest Q4_1")
        await screen.type("first")
        await screen.shows("word2")
        await screen.type("/set parameter num_ctx 77")
        await screen.press("ctrl+n")
        await screen.type("/load big")
        await screen.shows("big:latest Q4_1")
        await screen.type("second")
        await screen.shows("word2")
        await screen.hides("replying")
        first = screen.app.history.chats()[1].id
        await screen.app.screen.open(first)  # type: ignore[attr-defined]
        await screen.shows("first", "smol:latest Q4_1")
        await screen.until(lambda: runner.opened[-1] == ("smol:latest", 77))

    use(home, engine, flow, models=("smol", "big"))
    with saved(home) as history:
        kept = [(chat.model, chat.context_length) for chat in history.chats()]
    assert kept == [("big:latest", 0), ("smol:latest", 77)]


def test_commands_and_their_mistakes(home: Path, engine: ScriptedEngine) -> None:
    async def flow(screen: Screen) -> None:
        await screen.type("/set parameter temperature hot")
        await screen.shows("temperature must be a number")
        composer = screen.app.screen.query_one(Composer)
        assert composer.text == "/set parameter temperature hot"  # to be mended
        composer.write("")
        await screen.type("/set parameter temperature 0.25")
        await screen.type("/set system be brief")
        await screen.type("hello")
        await screen.shows("word2")
        composer.write("")
        await screen.type("/nonsense")
        await screen.shows("there is no command /nonsense")

    use(home, engine, flow)
    assert engine.sent[0][0].content == "be brief"
    with saved(home) as history:
        assert history.chats()[0].parameters == {"temperature": 0.25}


def test_thinking_is_folded(home: Path, engine: ScriptedEngine) -> None:
    engine.texts = ("<think>hidden words</think>", "visible")

    async def flow(screen: Screen) -> None:
        await screen.type("well?")
        await screen.shows("▸ thought in 2 words", "visible")
        assert "hidden" not in screen.text
        await screen.press("ctrl+t", "t")
        await screen.shows("│ hidden words")
        await screen.press("up", "t")
        await screen.shows("there is no thinking in this message")

    use(home, engine, flow)


def test_escape_sequences_of_a_model_are_shown_not_obeyed(
    home: Path, engine: ScriptedEngine
) -> None:
    engine.texts = ("before \x1b]0;title\x07 after",)

    async def flow(screen: Screen) -> None:
        await screen.type("hi")
        await screen.shows("before", "after")
        views = screen.app.screen.query(MessageView)
        assert not any("\x1b" in strip.text for view in views for strip in view._strips)

    use(home, engine, flow)


def test_the_footer_shows_whole_keys_and_takes_clicks(home: Path, engine: ScriptedEngine) -> None:
    async def flow(screen: Screen) -> None:
        for width in (60, 80, 120, 200):
            await screen.pilot.resize_terminal(width, 24)
            await screen.until(lambda w=width: len(screen.text.splitlines()[-1]) <= w)
            await screen.shows("⏎ Send", "esc Stop", "^q Quit  f1 Help")
        await screen.shows("f5 Compare")
        await screen.pilot.click(Keys, offset=(screen.text.splitlines()[-1].index("f1 Help"), 0))
        await screen.shows("F1 closes")

    use(home, engine, flow, size=(60, 24))


def test_the_help_scrolls_and_closes_by_keys(home: Path, engine: ScriptedEngine) -> None:
    async def flow(screen: Screen) -> None:
        await screen.press("f1")
        await screen.shows("⏎", "Send", "New chat")
        await screen.press("pagedown", "pagedown")
        await screen.shows("Rename", "/set system TEXT")
        await screen.press("end")
        await screen.shows("Cursor up")
        await screen.press("f1")
        await screen.hides("F1 closes")
        await screen.type("/help")
        await screen.shows("/set system TEXT", "the system prompt")
        await screen.press("escape", *"typed")
        await screen.shows("│ typed")

    use(home, engine, flow, size=(80, 24))


def test_a_question_stands_in_the_middle_over_what_one_was_doing(
    home: Path, engine: ScriptedEngine
) -> None:
    async def flow(screen: Screen) -> None:
        await screen.press("ctrl+o")
        await screen.shows("Which model should reply?", "Write a message", "Search all chats")
        box = screen.app.screen.query_one(".dialog").region
        assert abs(box.x - (120 - box.right)) <= 1
        assert abs(box.y - (40 - box.bottom)) <= 1

    use(home, engine, flow)


def test_a_question_that_is_answered_twice_at_once_closes_once(
    home: Path, engine: ScriptedEngine
) -> None:
    async def flow(screen: Screen) -> None:
        await screen.type("hello")
        await screen.shows("word2")
        await screen.press("ctrl+s", "enter", "r")
        await screen.shows("Enter accepts")
        for _ in range(2):  # both are in the queue before the first one is heeded
            screen.app.post_message(Key("enter", None))
        await screen.until(lambda: isinstance(screen.app.screen, ChatScreen))
        await screen.press("ctrl+n")
        await screen.shows("A new conversation")

    use(home, engine, flow)


def test_notices_cover_nothing_that_is_typed_into(home: Path, engine: ScriptedEngine) -> None:
    async def flow(screen: Screen) -> None:
        await screen.type("/nonsense")
        await screen.shows("there is no command /nonsense")
        composer = screen.app.screen.query_one(Composer).region
        assert all(not toast.region.overlaps(composer) for toast in screen.app.screen.query(Toast))

    use(home, engine, flow, size=(80, 24))


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
def test_small_and_large_terminals(
    home: Path, engine: ScriptedEngine, size: tuple[int, int]
) -> None:
    async def flow(screen: Screen) -> None:
        await screen.type("hello " * 30)
        await screen.shows("word2", "smol:latest Q4_1")
        await screen.pilot.resize_terminal(60, 20)
        await screen.shows("word2", "smol:latest Q4_1")
        await screen.pilot.resize_terminal(*size)
        await screen.press("f1")
        await screen.shows("New chat")

    use(home, engine, flow, size=size)


def test_nothing_is_installed_at_the_first_start(home: Path, engine: ScriptedEngine) -> None:
    async def flow(screen: Screen) -> None:
        await screen.shows("Welcome to localllama", "Enter")
        await screen.press("escape")
        await screen.hides("Welcome")
        await screen.type("hello")
        await screen.shows("no model is chosen")
        assert screen.app.screen.query_one(Composer).text == "hello"

    use(home, engine, flow, models=())


def test_a_mistake_in_the_users_catalog_is_told(home: Path, engine: ScriptedEngine) -> None:
    file = paths.locate(home).user_catalog
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[nonsense")

    async def flow(screen: Screen) -> None:
        await screen.shows("A new conversation", file.name)

    use(home, engine, flow, models=())

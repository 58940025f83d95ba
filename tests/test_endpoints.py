"""Models on other machines: real servers on loopback, the command, the app and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localllama import config, endpoints, names, paths
from localllama.chat.conversation import Conversation, LoadedModel
from localllama.chat.history import History
from localllama.chat.session import Session
from localllama.cli.main import main
from localllama.config import Config, Network
from localllama.engine import grammar, remote
from localllama.engine.api import Done, Message, Sampling, Text, Truncated
from localllama.engine.remote import RemoteEngine
from localllama.errors import (
    AccessDenied,
    ConnectionLost,
    ContextFull,
    EngineError,
    InvalidConfig,
    InvalidName,
    InvalidParameter,
    LocalLlamaError,
    ModelNotFound,
    NetworkError,
    Offline,
    RateLimited,
    RemoteNotFound,
    ServerFailed,
)
from tests.support import cli, servers
from tests.support.app import Screen, running
from tests.support.endpoints import Endpoint, chunk, end, event, served
from tests.support.engines import ScriptedEngine
from tests.support.terminal import Terminal

KEY = "sk-very-secret"


@pytest.fixture
def desktop() -> Iterator[Endpoint]:
    with served() as endpoint:
        yield endpoint


def configured(url: str, *, network: Network | None = None, **settings: Any) -> Config:
    """A configuration with the endpoint ``desktop``."""
    found = config.Endpoint(url=url, **settings)
    return Config(network=network or Network(), endpoints={"desktop": found})


def opened(url: str, model: str = "big", **settings: Any) -> RemoteEngine:
    """The engine of a model that it has."""
    known, name = configured(url, **settings), names.parse(f"@desktop/{model}")
    return remote.open(endpoints.find(name, known), name, known)


def reply(engine: RemoteEngine, text: str = "hi", **sampling: Any) -> tuple[str, Done]:
    """What the model says to ``text``."""
    events = list(engine.stream(Sampling(**sampling), messages=(Message("user", text),)))
    assert isinstance(events[-1], Done)
    return "".join(one.text for one in events if isinstance(one, Text)), events[-1]


def write(home: Path, text: str) -> None:
    """Write config.toml."""
    home.mkdir(exist_ok=True)
    paths.locate(home).config_file.write_text(text)


# names and configuration


def test_a_name_is_an_endpoint_and_the_name_it_has_there() -> None:
    name = names.parse("@desktop/meta-llama/Llama-3.3-70B:free")
    assert (name.source, name.repo) == (names.Source.ENDPOINT, "desktop")
    assert name.tag == "meta-llama/Llama-3.3-70B:free"
    assert str(name) == name.key == "@desktop/meta-llama/Llama-3.3-70B:free"
    assert str(names.parse("@desktop")) == "@desktop"
    for wrong in ("@", "@/big", "@desk top/big"):
        with pytest.raises(InvalidName):
            names.parse(wrong)


def test_the_configuration_names_endpoints(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[endpoints.desktop]\nurl = "http://desktop:11434/v1/"\nmodels = ["a", "b/c"]\n'
        'key_env = "DESKTOP_KEY"\ncontext = 8192\n'
    )
    known = config.load(file, {})
    assert known.endpoints["desktop"].url == "http://desktop:11434/v1"
    assert known.endpoints["desktop"].context_length == 8192
    assert [m.name for m in endpoints.models(known)] == ["@desktop/a", "@desktop/b/c"]
    assert all(model.remote for model in endpoints.models(known))


@pytest.mark.parametrize(
    "text",
    [
        'url = "desktop:11434"',
        'url = "ftp://desktop/v1"',
        'url = "http://me:word@desktop/v1"',
        'url = "http://desktop/v1?key=1"',
        'url = "http://desktop:99999/v1"',
        'url = "http://[desktop/v1"',
        'models = ["a"]',
        'url = "http://desktop/v1"\nmodels = "a"',
        'url = "http://desktop/v1"\nmodels = [1]',
        'url = "http://desktop/v1"\nkey = "secret"',
    ],
)
def test_mistakes_in_an_endpoint_are_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[endpoints.desktop]\n{text}\n")
    with pytest.raises(InvalidConfig, match=r"endpoints\.desktop"):
        config.load(file, {})


# a reply


def test_a_reply_streams_with_its_figures(desktop: Endpoint) -> None:
    # U+2028 stands in JSON as it is, and httpx would end a line there.
    desktop.replies = [": ping\n\n" + chunk("Grüße\u2028") + chunk(" 👋") + end()]
    text, done = reply(opened(desktop.url), "say hello")
    assert text == "Grüße\u2028 👋"
    assert (done.reason, done.usage.prompt_tokens, done.usage.completion_tokens) == ("stop", 7, 3)
    assert 0 < done.timings.first_token_seconds <= done.timings.total_seconds
    [body] = desktop.asked
    assert (body["model"], body["stream"]) == ("big", True)
    assert body["messages"] == [{"role": "user", "content": "say hello"}]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_comes_marked_and_does_not_go_back(desktop: Endpoint, field: str) -> None:
    thought = chunk(**{field: "2 + "}) + chunk(**{field: "2"})
    desktop.replies = [thought + chunk("4") + chunk("!") + end()]
    engine = opened(desktop.url)
    text, _ = reply(engine)
    assert text == "<think>2 + 2</think>4!"
    before = (Message("user", "2 + 2?"), Message("assistant", text), Message("user", "and 3?"))
    list(engine.stream(Sampling(), messages=before))
    assert [m["content"] for m in desktop.asked[-1]["messages"]] == ["2 + 2?", "4!", "and 3?"]


def test_parameters_go_where_the_api_has_them(desktop: Endpoint) -> None:
    reply(opened(desktop.url), seed=3, stop=("x",), max_tokens=9, top_k=5, mirostat=2)
    body = desktop.asked[-1]
    assert (body["seed"], body["stop"], body["max_tokens"], body["temperature"]) == (
        3,
        ["x"],
        9,
        0.8,
    )
    assert not {"top_k", "min_p", "mirostat", "frequency_penalty"} & set(body)
    desktop.listing = {"data": [{"id": "big", "owned_by": "vllm", "max_model_len": 4096}]}
    engine = opened(desktop.url)
    reply(engine, top_k=5, grammar=grammar.JSON)
    assert (desktop.asked[-1]["top_k"], desktop.asked[-1]["min_p"]) == (5, 0.05)
    assert desktop.asked[-1]["response_format"] == {"type": "json_object"}
    assert engine.ready.context_length == 4096
    with pytest.raises(InvalidParameter, match="grammar"):
        reply(engine, grammar='root ::= "a"')
    with pytest.raises(InvalidParameter, match="temperature"):
        reply(engine, temperature=-1.0)


@pytest.mark.parametrize(
    ("entry", "context"),
    [
        ({"meta": {"n_ctx": 512}}, 512),
        ({"context_length": 1024}, 1024),
        ({"meta": None, "max_model_len": None}, 0),
    ],
)
def test_the_context_length_is_what_the_server_tells(
    desktop: Endpoint, entry: dict[str, Any], context: int
) -> None:
    desktop.listing = {"data": [{"id": "small"}, {"id": "big", **entry}]}
    assert opened(desktop.url).ready.context_length == context
    assert opened(desktop.url, context_length=99).ready.context_length == 99


def test_a_cut_reply_says_why(desktop: Endpoint) -> None:
    desktop.replies = [chunk("a") + end("length", 90, 10)]
    assert reply(opened(desktop.url), max_tokens=10)[1].reason == "length"
    assert reply(opened(desktop.url, context_length=100))[1].reason == "context"
    with pytest.raises(InvalidParameter, match="cannot go on"):
        opened(desktop.url).stream(Sampling(), continue_last=True)


def test_cancelling_ends_the_reply_and_the_connection(desktop: Endpoint) -> None:
    desktop.replies = [chunk("one")]
    desktop.pause = threading.Event()
    engine = opened(desktop.url)
    events = engine.stream(Sampling(), messages=(Message("user", "count"),))
    assert next(events) == Text("one")
    engine.cancel()
    [done] = events
    assert isinstance(done, Done)
    assert done.reason == "cancelled"
    assert desktop.left.wait(30)

    desktop.left.clear()
    left = engine.stream(Sampling(), messages=(Message("user", "count"),))
    next(left)
    left.close()  # as when a front end stops listening
    assert desktop.left.wait(30)


# what goes wrong

REFUSALS: list[tuple[int, Any, type[LocalLlamaError], str]] = [
    (401, {"error": {"message": "Incorrect API key provided"}}, AccessDenied, "wants a key"),
    (404, {"error": {"message": "no model big"}}, RemoteNotFound, "no model big"),
    (429, {"error": {"message": "slow down"}}, RateLimited, "slow down"),
    (500, {"error": "it broke"}, ServerFailed, "it broke"),
    (503, "<html>", ServerFailed, "503"),
    (422, {"detail": "top_k"}, EngineError, "top_k"),
    (307, "", ServerFailed, "leads to http://other/v1"),
    (400, {"error": {"code": "context_length_exceeded", "message": "x"}}, ContextFull, "longer"),
    (400, {"message": "maximum context length is 4096 tokens"}, ContextFull, "longer"),
    (400, {"error": {"type": "exceed_context_size_error", "n_ctx": 64}}, ContextFull, "longer"),
]


@pytest.mark.parametrize(("status", "body", "kind", "words"), REFUSALS)
def test_refusals_are_told_with_what_to_do(
    desktop: Endpoint, status: int, body: Any, kind: type[LocalLlamaError], words: str
) -> None:
    desktop.status, desktop.refusal = status, body
    desktop.headers = {"Location": "http://other/v1", "Retry-After": "20"}
    with pytest.raises(kind, match=words) as caught:
        reply(opened(desktop.url))
    assert caught.type is kind
    assert caught.value.hint


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ({"replies": [chunk("one ") + chunk("two")]}, ConnectionLost),
        ({"replies": [chunk("one ") + chunk("two")], "cut": True}, ConnectionLost),
        ({"replies": [chunk("one two") + event(error={"message": "no memory"})]}, ServerFailed),
        ({"replies": [chunk("one two") + "data: {\n\n"]}, ServerFailed),
        ({"replies": [chunk("one two") + end("content_filter")]}, EngineError),
    ],
)
def test_what_came_of_a_broken_reply_is_kept(
    tmp_path: Path, how: dict[str, Any], kind: type[LocalLlamaError]
) -> None:
    with served(**how) as desktop, History(tmp_path / "chats.db") as history:
        chat = Conversation(history, history.create(model="@desktop/big"))
        chat.say("count")
        with pytest.raises(kind):
            list(chat.reply(LoadedModel(opened(desktop.url), "@desktop/big", ""), Sampling()))
        _, answer = history.branch(chat.chat.id)
        assert answer.content == "one two"
        assert answer.cut
        assert answer.origin is not None
        assert (answer.origin.model, answer.origin.digest) == ("@desktop/big", "")


def test_an_endpoint_that_is_none_is_told_when_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLost, match="cannot reach"):
        opened("http://127.0.0.1:9/v1")
    with served(listing="<html>a log-in page</html>") as desktop:
        with pytest.raises(ServerFailed, match="not OpenAI's API"):
            opened(desktop.url)
        desktop.listing, desktop.kind = None, "text/html"  # a server may keep its models secret
        with pytest.raises(ServerFailed, match="not OpenAI's API"):
            reply(opened(desktop.url))
        tls = desktop.url.replace("http://", "https://")
        with pytest.raises(NetworkError) as caught:
            opened(tls)
        assert caught.value.hint
        offline = configured(desktop.url, network=Network(offline=True))
        with pytest.raises(Offline, match="not on this machine"):
            remote.listed("desktop", offline)
    with pytest.raises(ModelNotFound, match="laptop"):
        endpoints.find(names.parse("@laptop/big"), configured("http://127.0.0.1:9/v1"))


def test_old_turns_are_left_out_of_a_full_context_and_told(desktop: Endpoint) -> None:
    desktop.longest = 300
    desktop.refusal = {"error": {"message": "This model's maximum context length is 100 tokens."}}
    session = Session(opened(desktop.url))
    told = [
        one
        for number in range(4)
        for one in session.send(f"{number}: a long story " * 6, Sampling())
        if isinstance(one, Truncated)
    ]
    assert told
    assert all(one.messages > 0 and one.tokens > 0 for one in told)
    assert session.engine.ready.context_length == 100  # the refusal told it
    assert desktop.asked[-1]["messages"][-1]["content"].startswith("3:")
    with pytest.raises(ContextFull):  # from then on nobody need be asked
        list(session.send("far too long " * 99, Sampling()))
    assert len(desktop.asked) == 5


# keys


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    desktop: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(AccessDenied, match="DESKTOP_KEY is not set"):
        opened(desktop.url, key_env="DESKTOP_KEY")
    monkeypatch.setenv("DESKTOP_KEY", KEY)
    engine = opened(desktop.url, key_env="DESKTOP_KEY")
    reply(engine)
    assert desktop.keys == [f"Bearer {KEY}"] * 2
    desktop.status, desktop.refusal = 401, {"error": {"message": f"bad key {KEY}"}}
    with pytest.raises(AccessDenied, match="does not accept the key: bad key") as caught:
        reply(engine)
    shown = f"{caught.value.message} {caught.value.hint} {engine.label} {caplog.text}"
    assert KEY not in shown
    assert "DESKTOP_KEY" in caught.value.hint
    monkeypatch.setenv("DESKTOP_KEY", "grün")
    with pytest.raises(InvalidConfig, match="no key has"):
        opened(desktop.url, key_env="DESKTOP_KEY")


def test_the_key_may_be_in_the_keyring(desktop: Endpoint) -> None:
    keyring = pytest.importorskip("keyring")
    kept = {("localllama", "desktop"): KEY}

    class Kept(keyring.backend.KeyringBackend):  # type: ignore[misc,name-defined]
        """A keyring in memory."""

        priority = 1

        def get_password(self, service: str, name: str) -> str | None:
            return kept.get((service, name))

        def set_password(self, service: str, name: str, password: str) -> None:
            kept[service, name] = password

    before = keyring.get_keyring()
    keyring.set_keyring(Kept())
    try:
        opened(desktop.url, keyring=True)
        assert desktop.keys == [f"Bearer {KEY}"]
        kept.clear()
        with pytest.raises(AccessDenied, match="the keyring has no key of @desktop"):
            opened(desktop.url, keyring=True)
    finally:
        keyring.set_keyring(before)


# the command


def test_a_localllama_elsewhere_answers(smollm2: Path, home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    servers.install(elsewhere, smollm2)
    with servers.served(elsewhere) as server:
        engine = opened(f"{server.url}/v1", "smol")
        assert engine.ready.context_length == 0  # a model that is not loaded has none
        write(home, f'[endpoints.desktop]\nurl = "{server.url}/v1"\n')
        asked = ("run", "@desktop", "Name a colour", "--seed", "1", "--max-tokens", "8", "--json")
        result = cli.run(*asked)
        assert result.returncode == 0, result.stderr
        assert f"@desktop/smol:latest is not local: what you write goes to {server.url}" in (
            result.stderr
        )
        facts = json.loads(result.stdout)
        assert facts["model"] == "@desktop/smol:latest"
        assert facts["text"]
        assert facts["usage"]["completion_tokens"] <= 8
        assert reply(engine, max_tokens=2)[1].reason == "length"
        assert engine.ready.context_length == 1024
        session = Session(engine, policy="stop")
        with pytest.raises(ContextFull):
            list(session.send("far too long " * 999, Sampling()))
        with pytest.raises(RemoteNotFound, match="model 'none' not found"):
            reply(opened(f"{server.url}/v1", "none"))
        assert server.replies_under_way == 0


def test_commands_know_what_is_not_here(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody listens there: what lists and describes must not ask.
    write(home, '[endpoints.desktop]\nurl = "http://127.0.0.1:9/v1"\nmodels = ["big"]\n')
    assert main(["list"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split() == ["@desktop/big", "-", "not", "local", "-"]
    assert main(["list", "--json"]) == 0
    named = [{"name": "@desktop/big", "url": "http://127.0.0.1:9/v1"}]
    assert json.loads(capsys.readouterr().out)["endpoints"] == named
    assert main(["show", "@desktop"]) == 0
    assert "http://127.0.0.1:9/v1" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", None)
    for command, code in (
        (("pull", "@desktop/big"), 2),
        (("rm", "@desktop/big"), 3),
        (("cp", "@desktop/big", "mine"), 3),
        (("bench", "@desktop/big"), 2),
        (("plan", "@desktop/big"), 2),
        (("show", "@desktop/big", "--template"), 2),
        (("run", "@desktop/big", "hi", "--ctx", "64"), 2),
        (("run", "@laptop/big", "hi"), 3),
        (("run", "desktop/big", "hi"), 3),
        (("run", "@desktop/big", "hi"), 4),
    ):
        assert main(command) == code, command
        told = capsys.readouterr().err
        assert "Error: " in told
        assert "@desktop/big" in told or "laptop" in told or code == 4


def test_a_conversation_at_the_terminal(home: Path, desktop: Endpoint) -> None:
    write(home, f'[endpoints.desktop]\nurl = "{desktop.url}"\n')
    command = [*cli.COMMAND, "run", "@desktop"]
    with Terminal(command, dict(os.environ)) as terminal:
        terminal.expect("@desktop/big is not local")
        terminal.expect(">>> ")
        terminal.type("hello")
        terminal.expect("Hello there")
        terminal.type("/set parameter num_ctx 64")
        terminal.expect("its server decides that")
        terminal.type("/save mine")
        terminal.expect("only local models can be saved")
        terminal.type("/show")
        terminal.expect("kept here")
        terminal.type("/list")
        terminal.expect("@desktop .*not local")
        desktop.replies, desktop.pause = [chunk("one ")], threading.Event()
        terminal.type("count")
        terminal.expect("one")
        terminal.press("\x03")
        assert desktop.left.wait(30)
        terminal.type("/bye")
        assert terminal.wait() == 0
    with History(home / "chats.db") as history:
        [chat] = history.chats()
        last = history.branch(chat.id)[-1]
    assert (last.content, last.done and last.done.reason) == ("one ", "cancelled")


# the app


def test_the_app_chats_with_it_and_marks_it(home: Path, desktop: Endpoint) -> None:
    desktop.listing = {"data": [{"id": "big"}, {"id": "small"}]}

    async def flow(screen: Screen) -> None:
        await screen.shows("smol:latest Q4_1")
        await screen.press("f2")
        await screen.shows("@desktop/big", "@desktop/small", "endpoint", "not local")
        await screen.press("slash")
        await screen.paste("@desktop/big")
        await screen.hides("@desktop/small")
        await screen.press("escape", "d")
        await screen.shows("Only installed models can be deleted")
        await screen.press("enter")
        await screen.shows("@desktop/big not local", "at desktop", "ctx 0/unknown")
        await screen.type("hello")
        await screen.shows("Hello there", "ctx 10/unknown")
        await screen.press("f3")
        await screen.shows("not applicable")
        await screen.press("f3", "f5")
        await screen.shows("@desktop/big · not local", "smol:latest · Q4_1")

    use(home, configured(desktop.url), flow)
    with History(home / "chats.db") as history:
        [chat] = history.chats()
        _, answer = history.branch(chat.id)
    assert chat.model == "@desktop/big"
    assert answer.origin is not None
    assert (answer.origin.model, answer.content) == ("@desktop/big", "Hello there")


def test_the_app_tells_a_failure_and_tries_again(home: Path, desktop: Endpoint) -> None:
    desktop.status, desktop.refusal = 503, {"error": {"message": "Loading model"}}

    async def flow(screen: Screen) -> None:
        await screen.shows("@desktop/big not local")
        await screen.type("hello")
        await screen.shows("@desktop failed: Loading model", "Ctrl+R tries again")
        desktop.status = 200
        desktop.replies = [chunk("Hello there") + end("length")]
        await screen.press("ctrl+r")
        await screen.shows("Hello there", "cut")
        await screen.press("ctrl+g")
        await screen.shows("Hello there", "cannot go on with a reply that was cut")

    known = configured(desktop.url, models=("big",))
    use(home, replace(known, run=replace(known.run, model="@desktop/big")), flow)


def test_the_app_refuses_it_offline(home: Path, desktop: Endpoint) -> None:
    async def flow(screen: Screen) -> None:
        await screen.type("/load @desktop/big")
        await screen.shows("not on this machine, and the network is", "could not be loaded")

    use(home, configured(desktop.url, network=Network(offline=True)), flow)
    assert desktop.keys == []


def use(home: Path, known: Config, flow: Callable[[Screen], Awaitable[None]]) -> None:
    """Run the app with a local model beside the endpoint."""

    async def go() -> None:
        async with running(home, ScriptedEngine(100), config=known) as screen:
            await flow(screen)

    asyncio.run(go())

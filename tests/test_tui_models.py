"""The models screen as a person uses it: pulls come from a real server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localllama import paths
from localllama.catalog import Catalog
from localllama.config import Config, Network, load
from localllama.download import partial
from localllama.store import Installed, Store, StoredFile
from localllama.tui.listing import rows
from localllama.tui.pulls import Pull
from tests.support.app import Screen, running
from tests.support.engines import ScriptedEngine
from tests.support.gguf_maker import write_tiny_llama
from tests.support.hub import Generated, Hub

REPO = "owner/tiny-GGUF"
FILE = "tiny-Q8_0.gguf"
PARTS = 2_000_000

Flow = Callable[[Screen], Awaitable[None]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "*")
    with Hub() as hub:
        yield hub


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / FILE)[0]


def use(
    home: Path,
    flow: Flow,
    *,
    network: Network | None = None,
    models: tuple[str, ...] = ("smol", "big"),
    size: tuple[int, int] = (120, 24),
) -> None:
    """Run the app, go to the models and do something there."""
    config = Config(network=network or Network(offline=True))

    async def go() -> None:
        engine = ScriptedEngine(1000)
        async with running(home, engine, models=models, size=size, config=config) as screen:
            await screen.press("f2")
            await screen.shows("Type to filter")
            await flow(screen)

    asyncio.run(go())


def online(hub: Hub) -> Network:
    return Network(hf_endpoint=hub.url, timeout_seconds=60)


def installed(home: Path) -> set[str]:
    return {model.name for model in Store(paths.locate(home)).models()}


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
def test_installed_and_catalog_are_listed_with_what_fits(home: Path, size: tuple[int, int]) -> None:
    async def flow(screen: Screen) -> None:
        await screen.shows("NAME", "in the chat", "installed", "llama2:7b", "fits", "⏎ Chat/Pull")
        await screen.press("down", "down")
        await screen.shows("LICENCE" if size[0] > 80 else "smollm2:135m: Apache-2.0")
        await screen.press("slash")
        await screen.paste("llama2:13b")
        await screen.hides("llama2:7b")
        await screen.shows("llama2:13b")
        await screen.press("enter")
        await screen.shows("This is offline")
        await screen.press("slash", *"zz")
        await screen.shows("Nothing here matches 'zz'. Esc clears the filter.")
        await screen.press("escape")
        await screen.shows("smol")
        await screen.press("slash")
        await screen.paste("llama2:13b")
        await screen.hides("smol")
        await screen.press("f2")
        await screen.shows("A new conversation")
        await screen.press("f2")
        await screen.shows("smol", "Type to filter")
        await screen.press("escape")
        await screen.shows("A new conversation")

    use(home, flow, size=size)


def test_rows_are_sorted_by_any_column(home: Path) -> None:
    def first(screen: Screen) -> str:
        return next(line for line in screen.text.splitlines()[2:] if line.strip()).split()[0]

    async def flow(screen: Screen) -> None:
        await screen.until(lambda: first(screen) == "smol:latest")
        await screen.press("s")
        await screen.shows("SIZE ▼")
        await screen.press(*"sssss")
        await screen.shows("NAME ▼")
        await screen.press("ctrl+home")
        await screen.until(lambda: first(screen) == "big:latest")

    use(home, flow)


def test_deleting_asks_first(home: Path) -> None:
    async def flow(screen: Screen) -> None:
        await screen.press("d")
        await screen.shows("choose another one first")
        await screen.press("down", "d")
        await screen.shows("Delete big:latest")
        await screen.press("n")
        await screen.hides("Delete big:latest")
        assert "big:latest" in installed(home)
        await screen.press("d", "y")
        await screen.until(lambda: "big:latest" not in installed(home))

    use(home, flow)


def test_the_default_is_kept_and_enter_chats(home: Path) -> None:
    file = paths.locate(home).config_file
    file.parent.mkdir(parents=True)
    file.write_text("# mine\n[run]\nthreads = 1  # quiet\n")

    async def flow(screen: Screen) -> None:
        await screen.press("down", "u")
        await screen.shows("big:latest is the default")
        await screen.press("enter")
        await screen.shows("A new conversation", "big:latest Q4_1")

    use(home, flow)
    assert load(file, {}).run.model == "big:latest"
    assert load(file, {}).run.threads == 1
    assert file.read_text().startswith("# mine\n")
    assert "# quiet" in file.read_text()


def test_a_model_is_found_on_the_hub_pulled_and_described(home: Path, hub: Hub, tiny: Path) -> None:
    hub.add_repo(REPO, {FILE: tiny}, license="mit")

    async def flow(screen: Screen) -> None:
        await screen.press("slash")
        await screen.type("tiny")
        await screen.shows("on the hub", "MIT", "1 repositories")
        await screen.press("down", "enter")
        await screen.until(lambda: len(installed(home)) == 3)
        await screen.shows("is installed", "F32")
        await screen.press("i")
        await screen.shows("How it would be loaded", "layers on the CPU", "WEIGHTS")

    use(home, flow, network=online(hub))


def test_several_pulls_are_paused_resumed_and_cancelled(home: Path, hub: Hub) -> None:
    """The files are no models: those that arrive whole are refused, and that is told."""
    for name in "one", "three":
        hub.add_repo(f"owner/pull-{name}", {f"{name}-Q8_0.gguf": Generated(PARTS, seed=len(name))})
    after = PARTS * 45 // 100
    stalls = [hub.fault(f"{n}-Q8_0", "stall", None, after=after) for n in ("one", "three")]

    async def flow(screen: Screen) -> None:
        pulls = screen.app.pulls.by_name
        await screen.press("slash")
        await screen.type("pull")
        await screen.shows("pull-one", "pull-three", "2 repositories")
        await screen.press("p", "down", "p")
        await screen.until(lambda: screen.text.count("download 4") >= 2)
        assert len(pulls) == 2
        await screen.press("space")
        paused = screen.app.screen._row.name
        await screen.until(lambda: pulls[paused].state == "paused")
        await screen.shows("paused 4")
        await screen.press("x")
        await screen.until(lambda: pulls[paused].state == "cancelled")
        await screen.press("up", "space")
        other = screen.app.screen._row.name
        await screen.until(lambda: pulls[other].state == "paused")
        for stall in stalls:
            stall.times = 0
            stall.release.set()
        await screen.shows("paused 4")
        # The row that was cancelled may have changed places with this one meanwhile.
        if screen.app.screen._row.name != other:
            await screen.press("up")
        await screen.press("space")
        await screen.until(lambda: pulls[other].state == "failed")
        await screen.shows("failed")

    use(home, flow, network=online(hub))
    assert not list(paths.locate(home).partials.glob("*.part"))


def test_a_pull_that_fails_is_told_once_until_it_is_given_up(home: Path, hub: Hub) -> None:
    hub.add_repo("owner/pull", {"a-Q8_0.gguf": Generated(PARTS, seed=1)})

    async def flow(screen: Screen) -> None:
        await screen.press("slash")
        await screen.type("pull")
        await screen.shows("1 repositories")
        hub.fault("a-Q8_0", "status", None, status=503)
        for key in "p", "space":
            await screen.press(key)
            await screen.until(lambda: screen.app.screen._row.name in screen.app.pulls.by_name)
            pull = screen.app.pulls.by_name[screen.app.screen._row.name]
            await screen.until(lambda pull=pull: pull.state == "failed")
            await screen.shows("Space tries again, x gives it up")
        assert screen.text.count("pull:") == 1
        assert not screen.app._notifications
        await screen.press("x")
        await screen.hides("x gives it up")
        assert pull.state == "cancelled"
        await screen.press("p")
        await screen.until(lambda: screen.app.screen._pulls.state(pull.name) == "failed")
        await screen.press("escape", "escape")
        await screen.shows("A new conversation")
        assert not screen.app._notifications

    use(home, flow, network=replace(online(hub), retries=1))


def test_a_file_is_taken_in_under_a_name(home: Path, tiny: Path) -> None:
    (tiny.parent / "Bad.gguf").write_text("no model")

    async def flow(screen: Screen) -> None:
        await screen.press("f")
        await screen.shows("Which GGUF file")
        await screen.paste(f"{tiny.parent}/nothing.gguf")
        await screen.press("enter")
        await screen.shows("typo")
        await screen.press("ctrl+u")
        await screen.paste(f"{tiny.parent}/Ba")
        await screen.shows("Bad.gguf")
        await screen.press("tab", "enter")
        await screen.shows("sound", "damaged")
        await screen.press("ctrl+u")
        await screen.paste(f"{tiny.parent}/ti")
        await screen.shows("tiny-Q8_0.gguf")
        await screen.press("tab", "tab")
        await screen.until(lambda: screen.app.screen.query_one("#name").value == "tiny-q8_0:latest")
        await screen.press("ctrl+u", *"smol", "enter")
        await screen.shows("there is smol:latest already")
        await screen.press("ctrl+u", *"mine", "enter")
        await screen.shows("mine:latest is installed", "F32")
        await screen.press("escape")
        await screen.shows("A new conversation")

    use(home, flow)
    assert "mine:latest" in installed(home)
    assert tiny.exists()


def test_a_file_that_has_just_been_taken_in_is_listed_once(home: Path) -> None:
    store = Store(paths.locate(home))
    model = Installed("mine:latest", (StoredFile("x.gguf", "sha256:" + "0" * 64, 1),))
    coming = Pull(model.name, "", Catalog({}), store, Network(), lambda pull: None, file=model)
    assert coming.open
    assert [row.coming for row in rows([], Catalog({}), [], [coming])] == [model]
    assert [row.installed for row in rows([model], Catalog({}), [], [coming])] == [model]


def test_a_file_on_its_way_can_be_cancelled(home: Path, tiny: Path) -> None:
    """Another process takes the same file in: this one waits for it."""
    place = paths.locate(home)
    place.partials.mkdir(parents=True)
    key = partial.key_of(str(tiny), "")

    async def flow(screen: Screen) -> None:
        with partial.lock_of(place.partials, f"{key}.pull"):
            screen.app.take_in(str(tiny), "mine")
            await screen.press("f2", "f2")  # the list is made anew
            await screen.shows("mine:latest: pulling")
            row = screen.app.screen._table.get_row_index("mine:latest")
            screen.app.screen._table.move_cursor(row=row)
            await screen.press("x")
            await screen.until(lambda: screen.app.pulls.by_name["mine:latest"].state == "cancelled")
        await screen.hides("mine")

    use(home, flow)
    assert "mine:latest" not in installed(home)

"""The app with a scripted engine at its seam, and what it shows as text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

from textual.events import Paste
from textual.pilot import Pilot

from localllama import hardware, names, paths
from localllama.chat.history import History
from localllama.config import Config
from localllama.errors import DoesNotFit, LocalLlamaError
from localllama.runner import Runner
from localllama.store import Installed, Store, StoredFile
from localllama.tui.app import LocalLlamaApp
from localllama.wants import Want
from tests.support.engines import ScriptedEngine

_PATIENCE_SECONDS = 12.0  # for a hang, not a measure
_MODEL = b"not a model: the engine is scripted"


class ScriptedRunner(Runner):
    """Opens one engine for every model, and keeps what was asked for; the machine is described."""

    def __init__(self, engine: ScriptedEngine, store: Store, config: Config) -> None:
        super().__init__(store, config, store.paths, probe=lambda: hardware.described(16 * 10**9))
        self.engine = engine
        self.opened: list[tuple[str, int]] = []
        self.error: LocalLlamaError | None = None
        self.no_room_for = ""
        self.forgotten: list[str] = []

    def open(  # type: ignore[override]  # the seam is tui.models.Opener
        self, model: Installed, want: Want, *, on_progress: Callable[[float], None] | None = None
    ) -> ScriptedEngine:
        """Return the engine, or fail."""
        self.opened.append((model.name, want.context_length))
        if on_progress is not None:
            on_progress(0.5)
        if self.error is not None:
            raise self.error
        if model.name == self.no_room_for:
            raise DoesNotFit("it needs 9 GB", "take a smaller one")
        self.engine.ended = False
        return self.engine

    def forget(self, conversation: str) -> None:
        """Remember what was to be forgotten."""
        self.forgotten.append(conversation)


def install(home: Path, *models: str) -> Store:
    """Return the store of a home with models of these names, the first one the latest."""
    place = paths.locate(home)
    store = Store(place)
    for name in reversed(models):
        place.partials.mkdir(parents=True, exist_ok=True)
        arrived = place.partials / "model"
        arrived.write_bytes(_MODEL)
        file = StoredFile("model.gguf", "ab" * 32, len(_MODEL))
        info = {"quantization": "Q4_1", "context_length": 8192}
        model = Installed(name=str(names.own(name)), files=(file,), info=info)
        store.install(model, {file.sha256: arrived})
    return store


class Screen:
    """What a person does with the app, and sees."""

    def __init__(self, app: LocalLlamaApp, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def text(self) -> str:
        """All that is shown."""
        strips = self.app.screen._compositor.render_strips(self.app.size)
        return "\n".join("".join(part.text for part in strip).rstrip() for strip in strips)

    async def press(self, *keys: str) -> None:
        """Press keys."""
        await self.pilot.press(*keys)

    async def type(self, text: str) -> None:
        """Put a text in where the cursor is, and press Enter."""
        await self.paste(text)
        await self.pilot.press("enter")

    async def paste(self, text: str) -> None:
        """Paste a text, as a terminal does."""
        self.app.post_message(Paste(text))
        await self.pilot.pause()

    async def shows(self, *texts: str) -> None:
        """Wait until all of them are shown."""
        await self.until(lambda: all(text in self.text for text in texts))

    async def hides(self, text: str) -> None:
        """Wait until it is no longer shown."""
        await self.until(lambda: text not in self.text)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds."""
        deadline = monotonic() + _PATIENCE_SECONDS
        while not condition():
            assert monotonic() < deadline, self.text
            await self.pilot.pause(0.01)


@asynccontextmanager
async def running(
    home: Path,
    engine: ScriptedEngine,
    *,
    models: tuple[str, ...] = ("smol",),
    size: tuple[int, int] = (120, 40),
    config: Config | None = None,
    history: History | None = None,
    idle_seconds: float = 60.0,
) -> AsyncIterator[Screen]:
    """Run the app in a home; the history is kept there, unless there is one already."""
    store = install(home, *models)
    config = config or Config()
    runner = ScriptedRunner(engine, store, config)
    with history or History(store.paths.chats_file) as history:
        app = LocalLlamaApp(runner, store, config, history, idle_seconds=idle_seconds)
        async with app.run_test(size=size, notifications=True) as pilot:
            yield Screen(app, pilot)
            await app.action_quit()

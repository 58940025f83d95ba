"""Makes the app's pictures in docs/images and the words of tests/snapshots: ``make screenshots``.

The engine is scripted and the machine described, so that they come out the same anywhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from localllama import hardware, paths
from localllama.chat.history import History
from localllama.config import Config, Network, Run
from localllama.doctor import Facts
from localllama.engine.api import DeviceBytes
from localllama.engine.protocol import Status
from localllama.engine.registry import Label, Record
from localllama.runner import Running
from localllama.store import Installed, Store, StoredFile
from localllama.tui.app import LocalLlamaApp
from localllama.tui.gauges import Gauge
from localllama.tui.messages import Examined, Measured
from localllama.tui.screens.hardware import report
from tests.support.app import Screen, ScriptedRunner
from tests.support.engines import ScriptedEngine
from tests.support.gguf_maker import write_tiny_llama

Show = Callable[[Screen, ScriptedEngine], Awaitable[None]]

_SIZE = (120, 36)
_CELL_WIDTH = 12.2  # in the pictures
_MACHINE = replace(
    hardware.described(32 * 10**9, [12 * 10**9]), llama_cpp="0.3.36", backends=("CUDA", "CPU")
)
_MODELS = (  # name, quantization, bytes, context length, licence
    ("llama3.2:3b", "Q4_K_M", 2_019_377_376, 131072, "Llama 3.2"),
    ("smollm2:135m", "Q4_1", 98_273_856, 8192, "Apache-2.0"),
)
_REPLY = """\
The moon pulls the near side of the sea harder than the far side, so water bulges on **both**.
The earth turns under the two bulges, hence two tides a day:

| tide | when |
| --- | --- |
| spring | at new and full moon |
| neap | at the half moons |

```python
def hours_between_tides(lunar_day: float = 24.84) -> float:
    return lunar_day / 2
```
"""
_EARLIER = ("A name for a grey cat", "Bread without yeast", "Why is the sky blue?")


async def chat(screen: Screen, engine: ScriptedEngine) -> None:
    """A few chats, the last with Markdown."""
    for question in _EARLIER:
        await screen.type(question)
        await screen.shows(engine.texts[-1].strip())
        await screen.press("ctrl+n")
    engine.texts = (_REPLY,)
    await screen.type("Why are there two tides a day?")
    await screen.shows("hours_between_tides", "8/8192")
    await screen.hides("replying")


async def models(screen: Screen, engine: ScriptedEngine) -> None:
    """What is installed, and what the catalog has."""
    await screen.press("f2")
    await screen.shows("in the chat", "installed", "partly")


async def machine(screen: Screen, engine: ScriptedEngine) -> None:
    """Gauges, a loaded model, and no trouble; the real machine's are not shown."""
    await screen.press("f4")
    shown = screen.app.screen
    await screen.until(lambda: bool(screen.text.count("DEVICE") or screen.text.count("fix:")))
    gauges = [
        Gauge("CPU", 0.35, "35% of 8 cores"),
        Gauge("RAM", 0.4, "12.8 GB of 32.0 GB"),
        Gauge("VRAM", 0.31, "3.7 GB of 12.0 GB"),
    ]
    facts = Facts(
        hardware=_MACHINE,
        models_folder="~/.local/share/localllama",
        disk_free_bytes=412 * 10**9,
    )
    status = Status(loaded=True, clients=1, running=0, idle_seconds=0, seconds_left=None)
    shown.post_message(Measured(gauges, [Running(engine.record, status)]))
    shown.post_message(Examined("\n".join(report(facts))))
    await screen.shows("llama3.2:3b", "12.8 GB", "~/.local")


async def filtered(screen: Screen, engine: ScriptedEngine) -> None:
    """Only some of the models, so that the catalog may grow."""
    await screen.press("f2")
    await screen.shows("in the chat", "fits")
    await screen.press("slash")
    await screen.paste("llama3.2:3b")
    await screen.hides("smollm2")


async def settings(screen: Screen, engine: ScriptedEngine) -> None:
    """Every setting, what counts, and why."""
    await screen.press("f3")
    await screen.shows("temperature", "system prompt", "f16 (by the program)")


async def compare(screen: Screen, engine: ScriptedEngine) -> None:
    """Two sides that have replied."""
    await screen.press("f5")
    await screen.type("Where there is no fire?")
    await screen.until(lambda: screen.text.count("Smoke.") == 2)


async def helped(screen: Screen, engine: ScriptedEngine) -> None:
    """The keys of the chat."""
    await screen.press("f1")
    await screen.shows("New chat", "Send")


PICTURES = {"chat": chat, "models": models, "hardware": machine}
SNAPSHOTS = {
    "chat": chat,
    "models": filtered,
    "settings": settings,
    "compare": compare,
    "help": helped,
}
SIZES = ((80, 24), (120, 40))


def scripted() -> ScriptedEngine:
    """An engine that says where its model is."""
    engine = ScriptedEngine(8192)
    engine.texts = ("Smoke.",)
    engine.record = Record(
        id="scripted",
        pid=4711,
        process_started=0,
        label=Label(
            name="llama3.2:3b",
            devices=(DeviceBytes(device="CUDA0", weights_bytes=2_019_377_376, kv_bytes=939524096),),
            layers=29,
            gpu_layers=29,
        ),
        context_length=8192,
        started_at="",
    )
    return engine


async def take(show: Show, size: tuple[int, int]) -> str:
    """Return what a screen shows as SVG."""
    config = Config(network=Network(offline=True), run=Run(model=_MODELS[0][0]))
    engine = scripted()
    with tempfile.TemporaryDirectory() as home, History.temporary() as history:
        store = installed(Path(home))
        runner = ScriptedRunner(engine, store, config)
        runner.probe = lambda: _MACHINE
        app = LocalLlamaApp(runner, store, config, history)
        async with app.run_test(size=size, notifications=True) as pilot:
            screen = Screen(app, pilot)
            await screen.shows("A new conversation", "llama3.2:3b Q4_K_M", "29/29")
            await show(screen, engine)
            picture = app.export_screenshot(title="localllama")
            await app.action_quit()
    return picture


def words(picture: str) -> str:
    """Return the visible words of a picture, line by line; lines and frames are left out."""
    rows: dict[float, str] = {}
    for x, y, text in re.findall(r'<text [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)<', picture):
        before = rows.get(float(y), "").ljust(round(float(x) / _CELL_WIDTH))
        rows[float(y)] = before + html.unescape(text)
    drawn = (re.sub(r"[\u2500-\u259f]", " ", row) for _, row in sorted(rows.items()))
    said = (" ".join(row.split()) for row in drawn)
    return "".join(f"{line}\n" for line in said if line)


def installed(home: Path) -> Store:
    """A store whose models have a small header, and say that they are large."""
    store = Store(paths.locate(home))
    for number, (name, quantization, size_bytes, context_length, licence) in enumerate(_MODELS):
        [arrived] = write_tiny_llama(home / "model.gguf", seed=number)
        sha256 = hashlib.sha256(arrived.read_bytes()).hexdigest()
        model = Installed(
            name,
            (StoredFile("model.gguf", sha256, arrived.stat().st_size),),
            info={"quantization": quantization, "context_length": context_length},
            licence={"name": licence},
        )
        kept = store.install(model, {sha256: arrived})
        store.save(replace(kept, files=(StoredFile("model.gguf", sha256, size_bytes),)))
    return store


def main() -> int:
    """Write the pictures, and the words that the tests look for."""
    root = Path(__file__).resolve().parent.parent
    for name, show in PICTURES.items():
        (root / "docs" / "images" / f"{name}.svg").write_text(asyncio.run(take(show, _SIZE)))
    for width, height in SIZES:
        for name, show in SNAPSHOTS.items():
            file = root / "tests" / "snapshots" / f"{name}-{width}x{height}.txt"
            file.write_text(words(asyncio.run(take(show, (width, height)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

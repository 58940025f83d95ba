"""Measures the terminal app: what drawing costs the model, keys, the start, a long chat.

    python scripts/bench_tui.py --model smollm2:135m

``--only-ratio --rounds 1 --tokens 150`` is the short run. The model must be installed. What is
drawn goes to a real pseudo-terminal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import monotonic

import msgspec
from textual.events import Key

from localllama import config, paths
from localllama.chat.history import History
from localllama.chat.records import StoredMessage
from localllama.runner import Runner
from localllama.store import Store
from localllama.tui.app import LocalLlamaApp
from localllama.tui.screens.chat import ChatScreen
from localllama.tui.widgets.composer import Composer
from localllama.tui.widgets.status import StatusLine

_ROUNDS = 3
_TOKENS = 300
_PROMPT = "Write a long story about the sea, with headings and lists."
_SETTINGS = "[parameters]\nmax_tokens = {}\nignore_eos = true\nseed = 1\n"
_BODY = (
    "Some **bold** text and `code` that is long enough to go over more than one line. " * 3
    + "\n\n- one\n- two\n\n```python\nfor i in range(3):\n    print(i)\n```\n"
)
_HISTORY = "chats.db"
_COMMAND = (sys.executable, "-m", "localllama")
_COMPOSER = rb"rite a message"  # the cursor blinks on its first letter


class _Terminal:
    """A pseudo-terminal whose output is read by a thread."""

    def __init__(self, env: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self.shown = b""
        self._more = threading.Event()
        self.process = subprocess.Popen(
            _COMMAND, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
        os.close(theirs)
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> _Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def leave(self) -> None:
        """Press Ctrl+Q and wait until the app has ended."""
        self.type("\x11")
        self.process.wait()

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 65536):
                self.shown += data
                self._more.set()
        except OSError:  # the other side has closed
            self._more.set()

    def wait_for(self, pattern: bytes) -> None:
        """Wait until the pattern was shown."""
        while not re.search(pattern, self.shown):
            if self.process.poll() is not None:
                raise SystemExit("the app has ended")
            self._more.wait()  # without looking in between: the model needs the processor
            self._more.clear()

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._ours, text.encode())


def start_seconds(env: dict[str, str], file: Path) -> float:
    """Return how long the app takes from its start to a composer that shows what is typed."""
    begun = monotonic()
    with _Terminal(env) as terminal:
        terminal.wait_for(_COMPOSER)
        terminal.type("z")
        terminal.wait_for(_COMPOSER + rb"(?s:.)*z")
        seconds = monotonic() - begun
        terminal.leave()
    with History(file) as history:
        history.keep_draft("")  # the next start would show it
    return seconds


def decode_rate_headless(model: str, env: dict[str, str]) -> float:
    """Return the tokens per second of ``run`` without a terminal."""
    command = [*_COMMAND, "run", model, _PROMPT, "--json"]
    done = subprocess.run(
        command, env=env, check=True, capture_output=True, stdin=subprocess.DEVNULL
    )
    answer = json.loads(done.stdout)
    return float(answer["usage"]["completion_tokens"] / answer["timings"]["decode_seconds"])


def decode_rate_in_app(env: dict[str, str], file: Path) -> float:
    """Return the tokens per second of a reply that the app draws."""
    with _Terminal(env) as terminal:
        terminal.wait_for(_COMPOSER)
        terminal.type(_PROMPT + "\r")
        terminal.wait_for(b"cut at")
        terminal.leave()
    with History(file) as history:
        done = history.branch(history.chats()[0].id)[-1].done
    assert done is not None
    return done.usage.completion_tokens / done.timings.decode_seconds


def decode_rates(model: str, env: dict[str, str], home: Path, rounds: int) -> dict[str, float]:
    """Return both rates and the median of their rounds' ratios."""
    decode_rate_headless(model, env)  # loads the model, which stays
    headless, drawn = [], []
    for _ in range(rounds):
        headless.append(decode_rate_headless(model, env))
        drawn.append(decode_rate_in_app(env, home / _HISTORY))
    return {
        "headless_tokens_per_second": median(headless),
        "app_tokens_per_second": median(drawn),
        "ratio": median(a / b for a, b in zip(drawn, headless, strict=True)),
    }


async def in_app(model: str, home: Path) -> dict[str, float]:
    """Return how long keys take while a reply is drawn, and the opening of a long chat."""
    place = paths.locate(home)
    settings = config.load(place.config_file)
    store = Store(place)
    figures: dict[str, float] = {}
    with History.temporary() as history:
        chats = {count: _filled(history, count, model) for count in (500, 2000)}
        app = LocalLlamaApp(Runner(store, settings, place), store, settings, history)
        async with app.run_test(size=(120, 40)) as pilot:
            screen = app.screen
            assert isinstance(screen, ChatScreen)
            for count in (2000, 500):
                begun = monotonic()
                await screen.open(chats[count])
                await pilot.pause()
                figures[f"open_{count}_seconds"] = monotonic() - begun
            composer = screen.query_one(Composer)
            await screen.action_go_on()
            status = screen.query_one(StatusLine)
            while not status.state.activity.startswith("replying"):
                await asyncio.sleep(0.01)
            delays = [await _press(app, composer) for _ in range(100)]
            figures["key_seconds_median"] = median(delays)
            figures["key_seconds_95"] = sorted(delays)[94]
            screen.action_stop()
            await app.action_quit()
    return figures


async def _press(app: LocalLlamaApp, composer: Composer) -> float:
    await asyncio.sleep(0.02)
    begun, length = monotonic(), len(composer.text)
    app.post_message(Key("a", "a"))
    while len(composer.text) == length or app.screen._dirty_widgets:
        await asyncio.sleep(0.0005)
    return monotonic() - begun


def _filled(history: History, count: int, model: str) -> int:
    chat = msgspec.structs.replace(
        history.create(model=model, title=f"{count} messages"), leaf=count
    )
    roles = ("user", "assistant")
    messages = [
        StoredMessage(id=i + 1, parent=i or None, role=roles[i % 2], content=_BODY)
        for i in range(count)
    ]
    return history.take_in([(chat, messages)])[0].id


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--home", type=Path, default=paths.locate().data)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--tokens", type=int, default=_TOKENS)
    parser.add_argument("--only-ratio", action="store_true", help="of decoding in and without it")
    options = parser.parse_args(argv)
    # As with Ctrl-C, what was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "models").symlink_to(options.home / "models")
        (home / "config.toml").write_text(_SETTINGS.format(options.tokens))
        env = {
            **os.environ,
            "LOCALLLAMA_HOME": folder,
            "LOCALLLAMA_KEEP_ALIVE": "30",
            "TERM": "xterm",
        }
        env["LOCALLLAMA_MODEL"] = options.model
        try:
            figures = decode_rates(options.model, env, home, options.rounds)
            if not options.only_ratio:
                figures["start_seconds"] = median(
                    start_seconds(env, home / _HISTORY) for _ in range(options.rounds)
                )
                os.environ.update(env)
                figures |= asyncio.run(in_app(options.model, home))
        finally:
            subprocess.run([*_COMMAND, "stop", options.model], env=env, capture_output=True)
    sys.stdout.write(
        json.dumps({key: round(value, 4) for key, value in figures.items()}, indent=1) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

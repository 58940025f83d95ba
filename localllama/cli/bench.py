"""``localllama bench``: the figures of a model, measured through the path that chats use."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
import msgspec

from localllama.cli import output
from localllama.cli.app import App, complete_installed, json_option
from localllama.cli.placement import placement_options
from localllama.wants import Want

if TYPE_CHECKING:
    from localllama.engine.client import Engine

_EXAMPLES = """\b
Examples:
  localllama bench smollm2:135m
  localllama bench smollm2:135m --threads 4 --json
"""
_STORY = "Once upon a time, in a lighthouse far out in the sea, there lived"


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured; rates and times are medians over the rounds, the first left out."""

    model: str
    prompt_tokens: int
    generated_tokens: int
    rounds: int
    context_length: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    time_to_first_token_seconds: float  # of the prompt
    load_seconds: float
    peak_memory_bytes: int  # of the worker, 0 = unknown
    devices: list[dict[str, Any]]  # bytes of weights, KV cache and compute buffers on each


@click.command("bench", epilog=_EXAMPLES)
@click.argument("model", shell_complete=complete_installed)
@click.option("--prompt-tokens", type=click.IntRange(2, 100_000), default=512, show_default=True)
@click.option("--tokens", type=click.IntRange(2, 100_000), default=128, show_default=True)
@click.option("--rounds", type=click.IntRange(1, 1000), default=3, show_default=True)
@placement_options
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default physical cores.")
@json_option
def bench_command(
    model: str,
    prompt_tokens: int,
    tokens: int,
    rounds: int,
    want: Want,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how fast MODEL reads and writes, how long it loads and what memory it takes.

    The sizes are llama-bench's: a prompt of 512 tokens, a reply of 128. The model is unloaded
    afterwards, unless something else uses it.
    """
    from localllama.cli import run
    from localllama.engine.client import Engine

    app = App.start()
    installed = app.installed(model)
    want = replace(want, threads=threads or 0, keep_alive_seconds=0)
    with run.opened(app, installed, want) as engine:
        assert isinstance(engine, Engine)  # installed models are no endpoint's
        if engine.joined:
            output.say("The model was loaded already: what uses it besides slows this down.")
        figures = measure(engine, installed.name, prompt_tokens, tokens, rounds)
    if as_json:
        output.as_json(asdict(figures))
    else:
        output.result(_table(figures))


def measure(
    engine: Engine, name: str, prompt_tokens: int, generated_tokens: int, rounds: int
) -> Figures:
    """Measure a loaded model; raises ContextFull where its context is too small."""
    prefill, waiting, decode = [], [], []
    for number in range(rounds + 1):  # the first one warms up, as in llama-bench
        # Each begins in its own way, so that none finds another's prompt in the cache.
        prompt = prompt_of(engine, prompt_tokens, f"{number}")
        rate, seconds = read(engine, prompt)
        prefill.append(rate)
        waiting.append(seconds)
        decode.append(write(engine, f"{number}. {_STORY}", generated_tokens))
    return Figures(
        model=name,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        rounds=rounds,
        context_length=engine.ready.context_length,
        prefill_tokens_per_second=median(prefill[1:]),
        decode_tokens_per_second=median(decode[1:]),
        time_to_first_token_seconds=median(waiting[1:]),
        load_seconds=engine.ready.load_seconds,
        peak_memory_bytes=_peak_memory_bytes(engine.pid),
        devices=[
            {**msgspec.structs.asdict(held), "total_bytes": held.total_bytes}
            for held in engine.ready.devices
        ],
    )


def prompt_of(engine: Engine, tokens: int, start: str) -> str:
    """Return a text that begins with ``start`` and has so many tokens, or nearly."""
    words = tokens
    for _ in range(8):
        text = start + " so" * words
        count = _count(engine, text)
        if count == tokens or words + tokens - count < 1:
            break
        words += tokens - count
    return text


def _count(engine: Engine, text: str) -> int:
    """Return the tokens of ``text``: the first event of a reply tells them."""
    from localllama.engine.api import Prefill, Sampling

    events = engine.stream(Sampling(max_tokens=0), prompt=text)
    first = next(events)
    events.close()
    return first.total if isinstance(first, Prefill) else 0


def read(engine: Engine, prompt: str) -> tuple[float, float]:
    """Return the tokens per second of reading ``prompt``, and the seconds to a first token."""
    from localllama.engine.api import Done, Sampling, Text

    begun = perf_counter()
    waited = 0.0
    for event in engine.stream(Sampling(max_tokens=1, ignore_eos=True), prompt=prompt):
        if isinstance(event, Text | Done) and not waited:
            waited = perf_counter() - begun
    assert isinstance(event, Done)
    usage = event.usage
    return (usage.prompt_tokens - usage.cached_tokens) / event.timings.prefill_seconds, waited


def write(engine: Engine, prompt: str, tokens: int) -> float:
    """Return the tokens per second of a sampled reply of so many tokens."""
    from localllama.engine.api import Done, Sampling

    sampling = Sampling(seed=1, max_tokens=tokens, ignore_eos=True)
    *_, done = engine.stream(sampling, prompt=prompt)
    assert isinstance(done, Done)
    return done.usage.completion_tokens / done.timings.decode_seconds


def _peak_memory_bytes(pid: int) -> int:
    """Return the most memory that a process has had, or what it has where nothing else is told."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import psutil

    info = psutil.Process(pid).memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def _table(figures: Figures) -> str:
    rows = [
        ("model", figures.model),
        (
            f"prompt evaluation ({figures.prompt_tokens})",
            f"{figures.prefill_tokens_per_second:.1f} tokens/s",
        ),
        (
            f"generation ({figures.generated_tokens})",
            f"{figures.decode_tokens_per_second:.1f} tokens/s",
        ),
        ("time to first token", output.duration(figures.time_to_first_token_seconds)),
        ("load", output.duration(figures.load_seconds)),
        ("peak memory", output.size(figures.peak_memory_bytes)),
        ("context", f"{figures.context_length} tokens"),
        *((held["device"], output.size(held["total_bytes"])) for held in figures.devices),
    ]
    width = max(len(label) for label, _ in rows) + 2
    return "\n".join(f"{label:<{width}}{value}" for label, value in rows)

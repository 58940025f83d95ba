"""Measures localllama beside llama.cpp's own programs and prints ratios: ``make bench``.

The peers are llama-bench and llama-server, given by LLAMA_BENCH and LLAMA_SERVER or found on PATH;
what needs one that is absent is left out with a word. Rounds alternate, so that a change of the
machine's mood meets both sides; a ratio is the median of those of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from localllama import gguf_file, hardware, paths
from localllama.cli import bench
from localllama.engine.api import Done, LoadOptions, Message, Sampling, SnapshotOptions, Text
from localllama.engine.client import Engine
from localllama.engine.registry import Label, Registry
from localllama.plan import Want, fit
from localllama.store import Installed, Store

STORY = "Write a long story about a lighthouse keeper who finds a message in a bottle."
READ_TOKENS, WRITTEN_TOKENS = 512, 128
LONG_PROMPT_TOKENS = 2000
CONVERSATIONS = 4
CHAT_DAYS = 140  # 2,000 tokens
COPIED_TOKENS = 440  # the text that is copied has some more
CONTEXT = 8192
STARTS = 20
MODELS = 50
_PATIENCE_SECONDS = 60.0  # for a server that does not come up
_END_SECONDS = 5.0  # for one that is told to end


@dataclass(frozen=True, slots=True)
class Setting:
    """What all measurements share; a peer that is absent is ''."""

    model: str  # path of the file
    threads: int
    rounds: int
    llama_bench: str
    llama_server: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled reply."""

    tokens: int
    tokens_per_second: float  # of decoding alone


def main() -> int:
    """Print the ratios; exit code 0 whatever they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=SECTIONS)
    options = parser.parse_args()
    # As with Ctrl-C, what was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    setting = Setting(
        model=model_path(options.model),
        threads=options.threads,
        rounds=options.rounds,
        llama_bench=peer("LLAMA_BENCH", "llama-bench"),
        llama_server=peer("LLAMA_SERVER", "llama-server"),
    )
    for name in options.only:
        SECTIONS[name](setting)
    return 0


def peer(variable: str, program: str) -> str:
    """Return where a peer is, '' when it is not; then say so."""
    found = os.environ.get(variable) or shutil.which(program) or ""
    if not found:
        print(f"{program} is not here ({variable}, PATH): no ratios to it")
    return found


def model_path(name: str) -> str:
    """Return where the model is, pulling it first if need be; a file is where it is."""
    if Path(name).is_file():
        return name
    command = [sys.executable, "-m", "localllama"]
    subprocess.run([*command, "pull", "--yes", name], check=True, stderr=subprocess.DEVNULL)
    return subprocess.check_output([*command, "path", name], text=True).strip()


# --- what is measured ----------------------------------------------------------------------------


def one_conversation(setting: Setting) -> None:
    """Decode beside llama-server and llama-bench, prefill beside llama-bench."""
    ours: dict[str, list[float]] = {"decode": [], "prefill": []}
    theirs: dict[str, list[float]] = {"decode": [], "prefill": [], "server": []}
    with engine(setting) as loaded, server(setting, slots=1) as ask:
        for number in range(setting.rounds + 1):  # both sides warm up once
            prompt = f"{number}. {STORY}"
            ours["decode"].append(bench.write(loaded, prompt, WRITTEN_TOKENS))
            reading = bench.prompt_of(loaded, READ_TOKENS, str(number))
            ours["prefill"].append(bench.read(loaded, reading)[0])
            if ask:
                theirs["server"].append(ask(prompt).tokens_per_second)
            if setting.llama_bench:
                theirs["decode"].append(llama_bench(setting, 0, WRITTEN_TOKENS))
                theirs["prefill"].append(llama_bench(setting, READ_TOKENS, 0))
    show("decode", ours["decode"], "llama-server", theirs["server"], 0.98)
    show("decode", ours["decode"], f"llama-bench tg{WRITTEN_TOKENS}", theirs["decode"], 0.93)
    show("prefill", ours["prefill"], f"llama-bench pp{READ_TOKENS}", theirs["prefill"], 0.97)


def four_conversations(setting: Setting) -> None:
    """Total tokens per second of four conversations at once, beside llama-server -np 4."""
    ours, theirs = [], []
    with (
        ThreadPoolExecutor(CONVERSATIONS) as pool,  # outermost: its threads wait for the others
        engine(setting) as loaded,
        server(setting, slots=CONVERSATIONS) as ask,
    ):
        for number in range(setting.rounds + 1):
            prompts = [f"{number}.{i} {STORY}" for i in range(CONVERSATIONS)]
            ours.append(together(pool, partial(reply, loaded), prompts))
            if ask:
                theirs.append(together(pool, ask, prompts))
    show("four at once", ours, f"llama-server -np {CONVERSATIONS}", theirs, 0.95)


def together(pool: ThreadPoolExecutor, ask: Callable[[str], Answer], prompts: list[str]) -> float:
    """Return the tokens per second of all replies."""
    begun = time.perf_counter()
    tokens = sum(answer.tokens for answer in pool.map(ask, prompts))
    return tokens / (time.perf_counter() - begun)


def long_prompt(setting: Setting) -> None:
    """A prompt of 2,000 tokens arrives beside a running reply: what it costs both."""
    gaps, plain_gaps, ratios = [], [], []
    with ThreadPoolExecutor(1) as pool, engine(setting) as loaded:
        for number in range(max(1, setting.rounds // 2)):
            alone = bench.read(loaded, bench.prompt_of(loaded, LONG_PROMPT_TOKENS, f"a{number}"))
            prompt = bench.prompt_of(loaded, LONG_PROMPT_TOKENS, f"b{number}")
            # A stop string makes the worker send every token at once.
            chosen = Sampling(
                temperature=0, max_tokens=4000, ignore_eos=True, stop=("\N{SNOWMAN}",)
            )
            times: list[float] = []
            with closing(loaded.stream(chosen, prompt=f"{number}. {STORY}")) as stream:
                beside = None
                for event in stream:
                    if isinstance(event, Text):
                        times.append(time.perf_counter())
                    if beside is None and len(times) == 50:
                        beside = pool.submit(bench.read, loaded, prompt)
                    if beside is not None and beside.done():
                        break
            if beside is None:
                continue
            steps = [after - before for before, after in pairwise(times)]
            gaps.append(max(steps) / statistics.median(steps))
            plain_gaps.append(max(steps) / statistics.median(steps[:49]))
            ratios.append(beside.result()[0] / alone[0])
    gap, ratio = statistics.median(gaps), statistics.median(ratios)
    before = statistics.median(plain_gaps)
    print(
        f"long prompt: longest gap {gap:.1f} median steps (goal 5: {verdict(5 - gap)}),"
        f" {before:.1f} of those before the prompt came"
    )
    print(
        f"long prompt: read at {ratio:.3f} of its speed alone (goal 0.85: {verdict(ratio - 0.85)})",
        flush=True,
    )


def prompt_lookup(setting: Setting) -> None:
    """Greedy decoding with and without guessing, where there is something to copy and not."""
    with engine(setting) as guessing, engine(setting, speculate=False) as plain:
        text = Path(__file__).with_name("bench_text.txt").read_text().strip()
        # A small model does not follow an order to rewrite a text; it goes on with what is begun.
        begun = text[: text.index(",")].replace("keeper", "nurse")
        tasks = (("copying", f"{text}\n\n{begun}", 1.5), ("story", STORY, 0.97))
        for name, prompt, goal in tasks:
            with_, without = [], []
            for _ in range(max(2, setting.rounds // 2)):
                faster, one = greedy(guessing, prompt)
                slower, other = greedy(plain, prompt)
                with_.append(faster)
                without.append(slower)
            show(f"lookup, {name}", with_, "without", without, goal)
            print(f"lookup, {name}: {'the same text' if one == other else 'ANOTHER TEXT'}")


def reopening(setting: Setting) -> None:
    """A long chat goes on after its worker has ended: first token with and without its snapshot."""
    words = " ".join(f"On day {i} the keeper wrote {i * 7} words." for i in range(CHAT_DAYS))
    question = Message("user", f"{words} What did the keeper do?")
    started: dict[bool, list[float]] = {True: [], False: []}
    waiting: dict[bool, list[float]] = {True: [], False: []}
    texts: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        kept = SnapshotOptions(folder, 10**9, "bench")
        with engine(setting, snapshots=kept) as loaded:
            said = first_token(loaded, [question]).text
        chat = [question, Message("assistant", said), Message("user", "And then?")]
        for _ in range(max(1, setting.rounds // 2)):
            for cached in (True, False):
                for warm in (False, True):
                    begun = time.perf_counter()
                    with engine(setting, snapshots=kept if cached else None) as loaded:
                        if warm:  # the first step of a process finds its memory page by page
                            first_token(loaded, [Message("user", "Hello")], snapshot=False)
                            begun = time.perf_counter()
                        before = time.perf_counter() - begun
                        # The state of the last turn must not become the next round's.
                        answer = first_token(loaded, chat, snapshot=False)
                    (waiting if warm else started)[cached].append(before + answer.seconds)
                    texts.add(answer.text)
    tokens = answer.prompt_tokens
    for what, found, goal in (("", waiting, 50), (", worker start included", started, 10)):
        quick, slow = (statistics.median(found[cached]) for cached in (True, False))
        print(
            f"reopen {tokens} tokens{what}: {quick:.3f} s instead of {slow:.3f}: "
            f"{slow / quick:.1f} times sooner (goal {goal})"
        )
    print(f"reopen: {'the same text' if len(texts) == 1 else 'ANOTHER TEXT'}")


@dataclass(frozen=True, slots=True)
class Opening:
    """How a greedy reply began."""

    text: str
    seconds: float  # to its first token
    prompt_tokens: int


def first_token(loaded: Engine, messages: list[Message], *, snapshot: bool = True) -> Opening:
    """Return when a greedy reply began, and its text."""
    begun, seconds, text = time.perf_counter(), 0.0, ""
    chosen = Sampling(temperature=0, max_tokens=32)
    for event in loaded.stream(chosen, messages=messages, snapshot=snapshot):
        if isinstance(event, Text):
            seconds = seconds or time.perf_counter() - begun
            text += event.text
    assert isinstance(event, Done)
    return Opening(text, seconds, event.usage.prompt_tokens)


def starting(setting: Setting) -> None:
    """From nothing to the first token, and ``localllama list`` with 50 models."""
    ours, theirs = [], []
    for _ in range(max(3, setting.rounds // 2)):
        begun = time.perf_counter()
        with engine(setting) as loaded:
            reply(loaded, STORY, tokens=1)
            ours.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        with server(setting, slots=1) as ask:
            if ask:
                ask(STORY, 1)
                theirs.append(time.perf_counter() - begun)
    line = f"start to first token: {statistics.median(ours):.2f} s"
    if theirs:
        other = statistics.median(theirs)
        line += f", llama-server {other:.2f} s: {statistics.median(ours) / other:.2f} times as long"
    print(f"{line} (model load {loaded.ready.load_seconds:.2f} s)", flush=True)
    listing_models()


def listing_models() -> None:
    """``localllama list`` with 50 models beside ``python -c pass``."""
    script = str(Path(sys.executable).with_name("localllama"))
    command = [script] if Path(script).exists() else [sys.executable, "-m", "localllama"]
    with tempfile.TemporaryDirectory() as home:
        store = Store(paths.locate(home))
        for number in range(MODELS):
            store.save(Installed(f"model-{number}:latest", (), info={"architecture": "llama"}))
        bare: list[float] = []
        listing: list[float] = []
        for _ in range(STARTS):
            bare.append(seconds([sys.executable, "-c", "pass"], home))
            listing.append(seconds([*command, "list"], home))
    ratio = statistics.median(listing) / statistics.median(bare)
    print(
        f"localllama list: {statistics.median(listing) * 1000:.0f} ms with {MODELS} models, ",
        end="",
    )
    print(f"{ratio:.1f} x `python -c pass` (goal 8: {verdict(8 - ratio)})")


SECTIONS: dict[str, Callable[[Setting], None]] = {
    "one": one_conversation,
    "four": four_conversations,
    "long": long_prompt,
    "lookup": prompt_lookup,
    "start": starting,
    "reopen": reopening,
}


def show(what: str, ours: list[float], name: str, theirs: list[float], goal: float) -> None:
    """Print both medians and the rounds' median ratio; the first round is for warming up."""
    mine = statistics.median(ours[1:] or ours)
    line = f"{what}: {mine:.1f} tokens/s"
    if theirs:
        other = statistics.median(theirs[1:] or theirs)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        ratios = sorted(ratios[1:] or ratios)
        ratio = statistics.median(ratios)
        line += f", {name} {other:.1f}: ratio {ratio:.3f}, {ratios[0]:.2f} to {ratios[-1]:.2f}"
        line += f" (goal {goal}: {verdict(ratio - goal)})"
    print(line, flush=True)


def verdict(margin: float) -> str:
    """Say whether a goal is reached."""
    return "reached" if margin >= 0 else f"missed by {-margin:.2g}"


# --- our side ------------------------------------------------------------------------------------


@contextmanager
def engine(
    setting: Setting,
    *,
    speculate: bool = True,
    snapshots: SnapshotOptions | None = None,
) -> Iterator[Engine]:
    """A worker of our own, loaded as the planner has it."""
    info = gguf_file.read_info(setting.model)
    plan = fit(info, hardware.probe(), Want(context_length=CONTEXT, slots=CONVERSATIONS))
    options = LoadOptions(
        paths=(setting.model,),
        context_length=CONTEXT,
        threads=setting.threads,
        gpu_layers=plan.gpu_layers,
        batch_tokens=plan.batch_tokens,
        flash_attention=plan.flash_attention,
        repack=plan.repack,
        slots=CONVERSATIONS,
        speculate=speculate,
        snapshots=snapshots or SnapshotOptions(),
    )
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder), Path(folder, "logs"))
        with registry.lock():
            loaded = Engine.start(options, registry, Label(name="bench"))
        with loaded.wait_ready():
            yield loaded


def reply(loaded: Engine, prompt: str, tokens: int = WRITTEN_TOKENS) -> Answer:
    """Return what became of one request."""
    chosen = Sampling(seed=1, max_tokens=tokens, ignore_eos=True)
    *_, done = loaded.stream(chosen, prompt=prompt)
    assert isinstance(done, Done)
    written = done.usage.completion_tokens
    return Answer(written, written / done.timings.decode_seconds)


def greedy(loaded: Engine, prompt: str) -> tuple[float, str]:
    """Return tokens per second and text of how a prompt goes on, greedily."""
    chosen = Sampling(temperature=0, max_tokens=COPIED_TOKENS, ignore_eos=True)
    text = ""
    for event in loaded.stream(chosen, prompt=prompt):
        if isinstance(event, Text):
            text += event.text
    assert isinstance(event, Done)
    return event.usage.completion_tokens / event.timings.decode_seconds, text


def seconds(command: list[str], home: str) -> float:
    """Return the wall time of a process."""
    begun = time.perf_counter()
    environment = {**os.environ, "LOCALLLAMA_HOME": home}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - begun


# --- their side ----------------------------------------------------------------------------------


def llama_bench(setting: Setting, read: int, written: int) -> float:
    """Return llama-bench's tokens per second of one round."""
    command = [setting.llama_bench, "-m", setting.model, "-t", str(setting.threads)]
    sizes = ["-p", str(read), "-n", str(written), "-r", "1", "-o", "json"]
    result = subprocess.run([*command, *sizes], check=True, capture_output=True, text=True)
    return float(json.loads(result.stdout)[0]["avg_ts"])


@contextmanager
def server(setting: Setting, slots: int) -> Iterator[Callable[..., Answer] | None]:
    """llama-server with so many slots: ask_server() without its address; None without it."""
    with server_port(setting, slots) as port:
        yield partial(ask_server, f"http://127.0.0.1:{port}") if port else None


@contextmanager
def server_port(setting: Setting, slots: int) -> Iterator[int | None]:
    """llama-server with so many slots: its port; None without it."""
    if not setting.llama_server:
        yield None
        return
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    command = [setting.llama_server, "-m", setting.model, "-t", str(setting.threads)]
    command += ["-np", str(slots), "-c", str(CONTEXT), "--port", str(port), "--no-webui"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when a server answers."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise SystemExit("llama-server does not start")


def ask_server(url: str, prompt: str, tokens: int = WRITTEN_TOKENS) -> Answer:
    """Return llama-server's answer to a request like reply()'s."""
    chosen = Sampling()
    request = {
        "prompt": prompt,
        "n_predict": tokens,
        "ignore_eos": True,
        "cache_prompt": False,
        "seed": 1,
        "temperature": chosen.temperature,
        "top_k": chosen.top_k,
        "top_p": chosen.top_p,
        "min_p": chosen.min_p,
    }
    data = json.dumps(request).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/completion", data, headers)) as got:
        answer = json.load(got)
    return Answer(answer["tokens_predicted"], answer["timings"]["predicted_per_second"])


if __name__ == "__main__":
    sys.exit(main())

"""Measures localllama beside llama-bench in the same run and prints ratios: ``make bench``.

The peer is llama.cpp's own llama-bench, given by LLAMA_BENCH or found on PATH; without it only our
own figures are printed. Rounds alternate, so that a change of the machine's mood meets both, and
the medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from localllama import paths
from localllama.engine.api import Done, LoadOptions, Message, Sampling
from localllama.engine.client import Engine
from localllama.store import Installed, Store

QUESTION = "Write a long story about a lighthouse keeper who finds a message in a bottle."
DECODED_TOKENS = 128
STARTS = 20
MODELS = 50


def main() -> int:
    """Print the figures as a table; exit code 0 whatever they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    path = model_path(options.model)
    peer = os.environ.get("LLAMA_BENCH") or shutil.which("llama-bench")
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as logs:
        load = LoadOptions(paths=(path,), context_length=2048, threads=options.threads)
        with Engine.start(load, log_dir=Path(logs)) as engine:
            decode(engine, seed=0)  # both sides warm up once: llama-bench does so by itself
            for seed in range(1, options.rounds + 1):
                ours.append(decode(engine, seed=seed))
                if peer:
                    theirs.append(llama_bench(peer, path, options.threads))
    print(
        f"decode, localllama: {statistics.median(ours):7.1f} tokens/s of {DECODED_TOKENS} sampled"
    )
    if peer:
        print(f"decode, llama-bench: {statistics.median(theirs):6.1f} tokens/s (tg128, unsampled)")
        print(f"ratio: {statistics.median(ours) / statistics.median(theirs):.3f} (goal 0.90)")
    else:
        print("llama-bench is not here (LLAMA_BENCH, PATH): no ratio")
    bare, listing = start_times()
    ratio = listing / bare
    print(f"localllama list: {listing * 1000:.0f} ms with {MODELS} models, ", end="")
    print(f"{ratio:.1f} x `python -c pass` (goal 8)")
    return 0


def model_path(name: str) -> str:
    """Return where the model is, pulling it first if need be."""
    command = [sys.executable, "-m", "localllama"]
    subprocess.run([*command, "pull", "--yes", name], check=True, stderr=subprocess.DEVNULL)
    return subprocess.check_output([*command, "path", name], text=True).strip()


def decode(engine: Engine, seed: int) -> float:
    """Return the tokens per second of one sampled reply."""
    sampling = Sampling(seed=seed, max_tokens=DECODED_TOKENS)
    *_, done = engine.stream(sampling, messages=[Message("user", QUESTION)])
    assert isinstance(done, Done)
    return done.usage.completion_tokens / done.timings.decode_seconds


def llama_bench(peer: str, path: str, threads: int) -> float:
    """Return llama-bench's tokens per second."""
    command = [peer, "-m", path, "-t", str(threads), "-p", "0", "-n", str(DECODED_TOKENS)]
    result = subprocess.run(
        [*command, "-r", "1", "-o", "json"], check=True, capture_output=True, text=True
    )
    return float(json.loads(result.stdout)[0]["avg_ts"])


def start_times() -> tuple[float, float]:
    """Return the median seconds of ``python -c pass`` and of ``localllama list``."""
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
    return statistics.median(bare), statistics.median(listing)


def seconds(command: list[str], home: str) -> float:
    """Return the wall time of a process."""
    begun = time.perf_counter()
    environment = {**os.environ, "LOCALLLAMA_HOME": home}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())

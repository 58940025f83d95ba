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
from collections.abc import Iterator
from pathlib import Path

from localllama.engine.api import Done, LoadOptions, Message, Sampling
from localllama.engine.client import Engine

QUESTION = "Write a long story about a lighthouse keeper who finds a message in a bottle."
DECODED_TOKENS = 128
STARTS = 20


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
    bare, listing = starts(["-c", "pass"]), starts(["-m", "localllama", "list"])
    ratio = listing / bare
    print(f"localllama list: {listing * 1000:.0f} ms, {ratio:.1f} x `python -c pass` (goal 8)")
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


def starts(arguments: list[str]) -> float:
    """Return the median wall time of a Python process in seconds."""
    return statistics.median(_timed([sys.executable, *arguments]))


def _timed(command: list[str]) -> Iterator[float]:
    for _ in range(STARTS):
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        yield time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())

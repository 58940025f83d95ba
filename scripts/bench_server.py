"""Measures ``localllama serve`` beside llama-server: 1, 4 and 16 streams at once; ``make bench``.

Both serve the same file with the same threads, slots and context, and get the same requests in
turns. Every stream has a prompt of its own, so that no cache helps.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bench

STREAMS = (1, 4, 16)
SLOTS = 16
WRITTEN_TOKENS = 64
_READY = re.compile(r"serving http://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True, slots=True)
class Round:
    """One round of streams: all tokens over all time, and each stream's first token."""

    tokens_per_second: float
    first_token_seconds: list[float]
    failed: int


def main() -> int:
    """Print the ratios; exit code 0 whatever they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="*", default=STREAMS)
    options = parser.parse_args()
    setting = bench.Setting(
        model=bench.model_path(options.model),
        threads=options.threads,
        rounds=options.rounds,
        llama_bench="",
        llama_server=bench.peer("LLAMA_SERVER", "llama-server"),
    )
    with served(setting) as ours, bench.server_port(setting, SLOTS) as theirs:
        for streams in options.streams:
            compare(setting, streams, ours, theirs)
    return 0


def compare(setting: bench.Setting, streams: int, ours: int, theirs: int | None) -> None:
    """Print a line on throughput and one on the first token."""
    found: dict[int, list[Round]] = {port: [] for port in (ours, theirs) if port}
    for number in range(setting.rounds + 1):  # both sides warm up once
        for port, rounds in found.items():
            rounds.append(asyncio.run(run(port, streams, seed=number)))
    totals = {port: [one.tokens_per_second for one in rounds] for port, rounds in found.items()}
    firsts = {
        port: 1000 * statistics.median(s for one in rounds[1:] for s in one.first_token_seconds)
        for port, rounds in found.items()
    }
    failed = sum(one.failed for one in found[ours])
    peer = totals[theirs] if theirs else []
    bench.show(f"{streams} streams", totals[ours], f"llama-server -np {SLOTS}", peer, 0.95)
    beside = f", llama-server {firsts[theirs]:.0f} ms" if theirs else ""
    print(f"  first token: {firsts[ours]:.0f} ms (median){beside}; {failed} failed")


async def run(port: int, streams: int, seed: int) -> Round:
    """Send so many requests at once and return what came of them."""
    begun = time.perf_counter()
    replies = await asyncio.gather(
        *(stream(port, f"{seed}.{index} {bench.STORY}") for index in range(streams)),
        return_exceptions=True,
    )
    seconds = time.perf_counter() - begun
    firsts = [reply for reply in replies if isinstance(reply, float)]
    return Round(len(firsts) * WRITTEN_TOKENS / seconds, firsts, len(replies) - len(firsts))


async def stream(port: int, text: str) -> float:
    """Read one streamed completion to its end and return when its first text came, in seconds."""
    request = {
        "model": "bench",
        "prompt": text,
        "max_tokens": WRITTEN_TOKENS,
        "temperature": 0.8,
        "stream": True,
        "ignore_eos": True,
        "options": {"ignore_eos": True},
    }
    data = json.dumps(request).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + data)
    first, is_over = 0.0, False
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - begun
        is_over = is_over or line.startswith(b"data: [DONE]")
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    if not is_over:
        raise ConnectionError("the reply broke off")
    return first


@contextmanager
def served(setting: bench.Setting) -> Iterator[int]:
    """Our server over a fresh home: its port."""
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {
            "LOCALLLAMA_HOME": home,
            "LOCALLLAMA_THREADS": str(setting.threads),
            "OLLAMA_NUM_PARALLEL": str(SLOTS),
            "OLLAMA_CONTEXT_LENGTH": str(bench.CONTEXT),
        }
        command = [sys.executable, "-m", "localllama"]
        install = [*command, "pull", setting.model, "--as", "bench"]
        subprocess.run(install, check=True, env=environment, stderr=subprocess.DEVNULL)
        log = Path(home, "serve.log")
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [*command, "serve", "--port", "0"], env=environment, stderr=stderr
            )
        try:
            yield port_of(process, log)
        finally:
            process.terminate()
            process.wait()
            subprocess.run([*command, "stop", "--all"], env=environment, check=False)


def port_of(process: subprocess.Popen[bytes], log: Path) -> int:
    """Return the port once our server says it."""
    while process.poll() is None:
        if found := _READY.search(log.read_text()):
            return int(found[1])
        time.sleep(0.05)
    raise SystemExit(f"localllama serve does not start: {log.read_text()}")


if __name__ == "__main__":
    sys.exit(main())

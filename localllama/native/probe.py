"""A child's task: list ggml's devices and what this build of llama.cpp can use, as JSON.

Reads ``{"rpc_servers": ["host:port", ...]}`` on stdin. Servers that do not answer are reported,
not fatal.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from localllama.errors import LocalLlamaError
from localllama.native import ggml


def main() -> None:
    """Answer the question on stdin."""
    json.dump(answer(json.load(sys.stdin)["rpc_servers"]), sys.stdout)


def answer(rpc_servers: list[str]) -> dict[str, Any]:
    """Return backends, CPU features, devices and problems of this process."""
    backends = ggml.backends()
    problems = []
    for endpoint in rpc_servers:
        try:
            ggml.add_rpc_servers([endpoint])
        except LocalLlamaError as error:
            problems.append(f"{error.message} ({error.hint})")
    return {
        "llama_cpp": version("llama-cpp-python"),
        "backends": backends,
        "cpu_features": ggml.cpu_features(),
        "devices": [asdict(device) for device in ggml.devices()],
        "problems": problems,
    }


if __name__ == "__main__":
    main()

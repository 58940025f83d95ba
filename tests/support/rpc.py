"""llama.cpp's RPC server on loopback, computing on this CPU: a stand-in GPU.

``python -m tests.support.rpc HOST:PORT`` is one.
"""

from __future__ import annotations

import ctypes
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_CPU = 0  # ggml_backend_dev_type
_ANSWER_SECONDS = 30.0


def available() -> bool:
    """Whether this build of llama.cpp has RPC."""
    from localllama.native import ggml

    return "RPC" in ggml.backends()


@contextmanager
def servers(count: int) -> Iterator[tuple[str, ...]]:
    """Run ``count`` servers and give their addresses."""
    endpoints = tuple(f"127.0.0.1:{_free_port()}" for _ in range(count))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.rpc", endpoint],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for endpoint in endpoints
    ]
    try:
        for endpoint, process in zip(endpoints, processes, strict=True):
            _wait_for(endpoint, process)
        yield endpoints
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    host, _, port = endpoint.rpartition(":")
    pause, tries = threading.Event(), int(_ANSWER_SECONDS / 0.05)
    for _ in range(tries):
        assert process.poll() is None, "the RPC server has ended"
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            pause.wait(0.05)
        else:
            return
    raise AssertionError(f"no RPC server at {endpoint}")


def _serve(endpoint: str) -> None:
    from localllama.native import ggml

    start = ggml.rpc_function(
        "ggml_backend_rpc_start_server",
        None,
        *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p),
    )
    library = ggml.c._lib
    library.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    devices = (ctypes.c_void_p * 1)(library.ggml_backend_dev_by_type(_CPU))
    start(endpoint.encode(), None, 1, 1, ctypes.cast(devices, ctypes.c_void_p))


if __name__ == "__main__":
    _serve(sys.argv[1])

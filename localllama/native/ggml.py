"""ggml's devices as this build of llama.cpp sees them, and its RPC servers.

Asking for devices starts the drivers (a CUDA context takes some hundred MB of VRAM), so front ends
ask in a child: localllama.native.probe.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import llama_cpp
from llama_cpp import llama_cpp as c

from localllama.errors import EngineError, InvalidConfig

# llama.cpp's own handle: its copy of libggml holds the registry. The package's files have no
# symbolic links, so that opening libggml.so by name loads a second, empty one.
_LIBRARY: ctypes.CDLL = c._lib
_KINDS = ("cpu", "gpu", "igpu", "accel", "meta")
_CONNECT_SECONDS = 3.0  # ggml ends the process when a server does not answer, so we ask first


class _Capabilities(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_bool)
        for name in ("asynchronous", "host_buffer", "buffer_from_host_ptr", "events", "mmap")
    ]


class _Properties(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("kind", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("capabilities", _Capabilities),
    ]


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """One device; ``kind`` is cpu, gpu, igpu, accel or meta, ``backend`` CUDA, MTL, Vulkan, RPC…

    ``buffer`` is what llama.cpp's log calls its memory, ``device_id`` the PCI address where there
    is one. ``host_buffer``: it wants weights that
    stay on the host in memory of its own (pinned), where ggml repacks nothing.
    """

    name: str
    description: str
    kind: str
    backend: str
    buffer: str
    free_bytes: int
    total_bytes: int
    device_id: str
    host_buffer: bool


def devices() -> Iterator[DeviceProperties]:
    """Yield every device in ggml's order."""
    get = _function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    properties_of = _function(
        "ggml_backend_dev_get_props", None, ctypes.c_void_p, ctypes.POINTER(_Properties)
    )
    registry_of = _function("ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p)
    name_of = _function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    buffer_of = _function("ggml_backend_dev_buffer_type", ctypes.c_void_p, ctypes.c_void_p)
    name_of_buffer = _function("ggml_backend_buft_name", ctypes.c_char_p, ctypes.c_void_p)
    for index in range(_function("ggml_backend_dev_count", ctypes.c_size_t)()):
        device = get(index)
        found = _Properties()
        properties_of(device, ctypes.byref(found))
        yield DeviceProperties(
            name=_text(found.name),
            description=_text(found.description),
            kind=_KINDS[found.kind],
            backend=_text(name_of(registry_of(device))),
            buffer=_text(name_of_buffer(buffer_of(device))),
            free_bytes=found.memory_free,
            total_bytes=found.memory_total,
            device_id=_text(found.device_id),
            host_buffer=found.capabilities.host_buffer,
        )


def backends() -> list[str]:
    """Return the names of the backends in this build: CPU, CUDA, MTL, Vulkan, RPC…"""
    get = _function("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
    name_of = _function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    count = _function("ggml_backend_reg_count", ctypes.c_size_t)()
    return [_text(name_of(get(index))) for index in range(count)]


def cpu_features() -> list[str]:
    """Return what the CPU backend uses of this processor: AVX2, NEON, REPACK…"""
    # "CPU : SSE3 = 1 | AVX2 = 1 | CUDA : ARCHS = 500,610 | ..."
    line: bytes = c.llama_print_system_info()
    pairs = (part.rpartition(":")[2].partition("=") for part in line.decode().split("|"))
    return [name.strip() for name, _, value in pairs if value.strip() == "1"]


def build() -> str:
    """Return which llama.cpp this is: what one writes, another may not read."""
    commit = _text(_function("ggml_commit", ctypes.c_char_p)())
    return f"llama-cpp-python {llama_cpp.__version__}, ggml {commit}"


def add_rpc_servers(endpoints: Iterable[str]) -> None:
    """Make the devices of ``ggml-rpc-server``s at ``host:port`` devices of this process.

    Must come before a model is loaded. Raises InvalidConfig for what is no address or where this
    build has no RPC, EngineError for a server that does not answer.
    """
    for endpoint in endpoints:
        _require_server(endpoint)
        add = rpc_function("ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
        registry = add(endpoint.encode())
        if not registry:
            raise EngineError(f"the RPC server {endpoint} offers no device", "is it of this build?")
        _function("ggml_backend_register", None, ctypes.c_void_p)(registry)


def _require_server(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidConfig(
            f"{endpoint!r} is no address of an RPC server", "write host:port, like 127.0.0.1:50052"
        )
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"the RPC server {endpoint} does not answer: {error}",
            "start ggml-rpc-server there, or take it out of LOCALLLAMA_RPC",
        ) from error


def rpc_function(name: str, result: type[Any] | None, *arguments: type[Any]) -> Callable[..., Any]:
    """Return a function of ggml-rpc.h; raises InvalidConfig where this build has no RPC."""
    by_name = _function("ggml_backend_reg_by_name", ctypes.c_void_p, ctypes.c_char_p)
    address_of = _function(
        "ggml_backend_reg_get_proc_address", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p
    )
    registry = by_name(b"RPC")
    address = address_of(registry, name.encode()) if registry else None
    if not address:
        raise InvalidConfig(
            "this build of llama.cpp has no RPC",
            "install llama-cpp-python with CMAKE_ARGS=-DGGML_RPC=ON, or unset LOCALLLAMA_RPC",
        )
    function: Callable[..., Any] = ctypes.CFUNCTYPE(result, *arguments)(address)
    return function


def _function(name: str, result: type[Any] | None, *arguments: type[Any]) -> Callable[..., Any]:
    function: Any = getattr(_LIBRARY, name)
    function.restype, function.argtypes = result, arguments
    return cast(Callable[..., Any], function)


def _text(raw: bytes | None) -> str:
    return raw.decode("utf-8", "replace") if raw else ""

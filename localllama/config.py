"""config.toml, the environment and flags become one Config; flags win, then the environment.

Reading is strict: an unknown key or a wrong type is an InvalidConfig that names file and key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from localllama.errors import InvalidConfig

_NUMBER = r"\d+(?:\.\d+)?"
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclass(frozen=True, slots=True)
class Network:
    """How this program talks to others."""

    offline: bool = False
    hf_endpoint: str = "https://huggingface.co"
    ollama_registry: str = "https://registry.ollama.ai"
    timeout_seconds: float = 30.0  # without one byte, before a connection counts as stalled
    retries: int = 6  # attempts in a row that bring nothing
    connections: int = 4  # parallel ranges of one file
    limit_rate_bytes: int = 0  # bytes per second over all connections; 0 = no limit
    meta_url: str = field(default="", repr=False)  # the signed link of Meta's approval e-mail


@dataclass(frozen=True, slots=True)
class Run:
    """Defaults of ``localllama run``."""

    model: str = "smollm2:135m"
    context_length: int = 0  # tokens; 0 = let the program choose
    threads: int = 0  # 0 = the physical cores
    keep_alive_seconds: float = 300.0  # a model stays loaded so long unused; negative = for ever
    history: bool = True  # keep chats on the disk
    snapshots_bytes: int = 2_000_000_000  # of conversations' KV states on disk; 0 = none
    kv_type: str = ""  # of the KV cache, "" = let the program choose
    reserve_bytes: int = 512 << 20  # stays free on every device
    slots: int = 0  # replies at once from one model; 0 = let the program choose


@dataclass(frozen=True, slots=True)
class Serve:
    """How ``localllama serve`` meets its clients."""

    host: str = "127.0.0.1"  # [scheme://]host[:port], as OLLAMA_HOST has it
    origins: str = ""  # web pages that may ask, beside those of this machine; comma-separated
    api_key: str = ""  # one or several, comma-separated; empty = everybody may ask
    max_queue: int = 512  # requests that may wait


@dataclass(frozen=True, slots=True)
class Tui:
    """How the terminal app looks, and what it does by itself."""

    theme: str = ""  # one of Textual's, "" = its usual one
    model_titles: bool = True  # the model finds better titles of chats than their first words


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server with OpenAI's API, and how to talk to it.

    ``models`` are the names it knows them by, () = it is asked. Its key is in the environment
    variable ``key_env``, or in the system's keyring under localllama and the endpoint's name.
    """

    url: str = ""  # up to what /chat/completions follows, usually .../v1
    models: tuple[str, ...] = ()
    key_env: str = ""
    keyring: bool = False
    context_length: int = 0  # tokens, where the server does not tell; 0 = unknown


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a user can set once and for all."""

    models: str = ""  # another folder for the data, "" = the platform's
    network: Network = field(default_factory=Network)
    run: Run = field(default_factory=Run)
    serve: Serve = field(default_factory=Serve)
    tui: Tui = field(default_factory=Tui)
    parameters: Mapping[str, Any] = field(default_factory=dict)  # default sampling parameters
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)


# environment variable -> (section, key); the names that users of the field already export.
_ENVIRONMENT = {
    "HF_ENDPOINT": ("network", "hf_endpoint"),
    "HF_HUB_OFFLINE": ("network", "offline"),
    "LOCALLLAMA_OFFLINE": ("network", "offline"),
    "LOCALLLAMA_OLLAMA_REGISTRY": ("network", "ollama_registry"),
    "LLAMA_META_URL": ("network", "meta_url"),
    "LOCALLLAMA_TIMEOUT": ("network", "timeout_seconds"),
    "LOCALLLAMA_RETRIES": ("network", "retries"),
    "LOCALLLAMA_LIMIT_RATE": ("network", "limit_rate_bytes"),
    "LOCALLLAMA_MODEL": ("run", "model"),
    "LOCALLLAMA_THREADS": ("run", "threads"),
    "LOCALLLAMA_RESERVE": ("run", "reserve"),
    "OLLAMA_KEEP_ALIVE": ("run", "keep_alive"),
    "LOCALLLAMA_KEEP_ALIVE": ("run", "keep_alive"),
    "LOCALLLAMA_SNAPSHOTS": ("run", "snapshots"),
    "OLLAMA_CONTEXT_LENGTH": ("run", "ctx"),
    "OLLAMA_NUM_PARALLEL": ("run", "slots"),
    "LOCALLLAMA_NUM_PARALLEL": ("run", "slots"),
    "OLLAMA_HOST": ("serve", "host"),
    "OLLAMA_ORIGINS": ("serve", "origins"),
    "OLLAMA_MAX_QUEUE": ("serve", "max_queue"),
    "LOCALLLAMA_API_KEY": ("serve", "api_key"),
}
# key in the file -> field, where the file says it the way a person would
_ALIASES = {
    "limit_rate": "limit_rate_bytes",
    "ctx": "context_length",
    "context": "context_length",
    "keep_alive": "keep_alive_seconds",
    "snapshots": "snapshots_bytes",
    "reserve": "reserve_bytes",
}
_FLAGS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False}
_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_KINDS |= {tuple: "a list of texts"}
_FLAGS |= {"no": False, "off": False, "": False}


def parse_size(text: str) -> int:
    """Return the bytes in ``text``: ``500k``, ``2.5MB``, ``1GiB``; raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?(?:/s)?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not a size like 500k, 2MB or 1GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def parse_duration(text: str) -> float:
    """Return the seconds in ``text``: a number or a Go duration: ``300``, ``-1``, ``5m``, ``1h5m``.

    Raises ValueError.
    """
    sign, rest = (-1, text.strip()[1:]) if text.strip().startswith("-") else (1, text.strip())
    if re.fullmatch(_NUMBER, rest):
        return sign * float(rest)
    parts = re.findall(rf"({_NUMBER})(ms|[smh])", rest)
    if not parts or "".join(number + unit for number, unit in parts) != rest:
        raise ValueError(f"{text!r} is not a duration like 5m, 1h30m or 300 (seconds)")
    return sign * sum(float(number) * _SECONDS[unit] for number, unit in parts)


def load(file: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Return the Config of ``file`` (may be missing) overlaid with ``environ``.

    Raises InvalidConfig for a file that is not TOML, an unknown key or a wrong type.
    """
    environ = os.environ if environ is None else environ
    config = Config()
    try:
        data = _read(file)
    except OSError as error:
        raise InvalidConfig(f"cannot read {file}: {error.strerror}") from error
    for key, value in data.items():
        where = f"{file}: {key}"
        if key == "models":
            config = replace(config, models=_convert(value, str, where))
        elif key == "parameters":
            config = replace(config, parameters=_table(value, where))
        elif key == "endpoints":
            found = {n: _endpoint(n, v, f"{where}.{n}") for n, v in _table(value, where).items()}
            config = replace(config, endpoints=found)
        elif key in ("network", "run", "serve", "tui"):
            config = replace(config, **{key: _filled(getattr(config, key), value, where)})
        else:
            raise InvalidConfig(
                f"{file}: unknown key {key!r}",
                "known: models, network, run, serve, tui, parameters, endpoints",
            )
    for variable, (part, name) in _ENVIRONMENT.items():
        if (text := environ.get(variable)) is not None and (text or name == "offline"):
            section = _set(getattr(config, part), name, text, f"environment variable {variable}")
            config = replace(config, **{part: section})
    return config


# How a person writes what these fields hold.
_PARSERS: Mapping[str, Callable[[str], float]] = {
    "limit_rate_bytes": parse_size,
    "keep_alive_seconds": parse_duration,
    "snapshots_bytes": parse_size,
    "reserve_bytes": parse_size,
}


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    import tomllib  # 10 ms, and most people have no config.toml

    try:
        return tomllib.loads(text.decode())
    except ValueError as error:
        raise InvalidConfig(f"{file}: {error}") from error


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidConfig(f"{where} must be a table")
    return value


def _filled(section: Any, value: object, where: str) -> Any:
    for name, item in _table(value, where).items():
        section = _set(section, name, item, f"{where}.{name}")
    return section


def _endpoint(name: str, value: object, where: str) -> Endpoint:
    endpoint: Endpoint = _filled(Endpoint(), value, where)
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise InvalidConfig(
            f"{where}: a name has letters, digits, and '.', '_' or '-' between them"
        )
    from urllib.parse import urlsplit  # most people have no endpoints

    try:
        parts = urlsplit(endpoint.url)
        _ = parts.port  # raises, as urlsplit does, for what is no address
    except ValueError as error:
        raise InvalidConfig(f"{where}.url is no address: {error}") from error
    wrong = parts.query or parts.fragment or re.search(r"\s", endpoint.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or wrong:
        raise InvalidConfig(f"{where}.url is no address", 'write url = "http://desktop:11434/v1"')
    if parts.username or parts.password:
        raise InvalidConfig(
            f"{where}.url holds a user name or password, which would be shown",
            "put it into ~/.netrc, or a key into a variable that key_env names",
        )
    return replace(endpoint, url=endpoint.url.rstrip("/"))


def _set(section: Any, name: str, value: object, where: str) -> Any:
    name = _ALIASES.get(name, name)
    known = {item.name: item for item in fields(section)}
    if name not in known:
        raise InvalidConfig(f"{where}: unknown key", f"known: {', '.join(known)}")
    kind = type(getattr(section, name))
    if name in _PARSERS and isinstance(value, str):
        try:
            value = _PARSERS[name](value)
        except ValueError as error:
            raise InvalidConfig(f"{where}: {error}") from error
    converted = _convert(value, kind, where)
    if kind in (int, float) and converted < 0 and name != "keep_alive_seconds":
        raise InvalidConfig(f"{where}: {converted} is negative")
    return replace(section, **{name: converted})


def _convert(value: Any, kind: type, where: str) -> Any:
    """Return ``value`` as ``kind``: strings come from the environment, the rest from TOML."""
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    try:
        if kind is bool and isinstance(value, str):
            return _FLAGS[value.lower()]
        if kind in (int, float) and isinstance(value, str):
            return kind(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(value)
    except (KeyError, ValueError):
        pass
    raise InvalidConfig(f"{where}: {value!r} is not {_KINDS[kind]}")

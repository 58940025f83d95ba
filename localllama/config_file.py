"""Changes single values of config.toml and leaves the rest, comments included, as it was."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from localllama import config
from localllama.errors import InvalidConfig
from localllama.files import storing, write_atomic

Value = str | int | float | bool | Sequence[str]


def change(
    file: Path, section: str, key: str, value: Value | None, *, also: Sequence[str] = ()
) -> None:
    """Set ``key`` in ``[section]``, or with None take it out; its other names in ``also`` go.

    Raises InvalidConfig where the file is wrong, or written in a way that cannot be changed safely.
    """
    with storing(file):
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        config.load(file, {})  # a wrong file is told as such
        names = {key, *also}
        changed = _changed(text, section, names, key, value)
        expected = tomllib.loads(text)
        kept = {name: old for name, old in expected.get(section, {}).items() if name not in names}
        expected[section] = kept
        if value is not None:
            expected[section][key] = list(value) if isinstance(value, list | tuple) else value
        if _without_empty(changed) != {k: v for k, v in expected.items() if v != {}}:
            raise InvalidConfig(
                f"{file} is written in a way that the app cannot change",
                f"set {key} in [{section}] by hand",
            )
        write_atomic(file, changed.encode())


def _without_empty(text: str) -> dict[str, object] | None:
    try:
        return {key: value for key, value in tomllib.loads(text).items() if value != {}}
    except tomllib.TOMLDecodeError:
        return None


def _changed(text: str, section: str, names: set[str], key: str, value: Value | None) -> str:
    lines = text.splitlines()
    line = [] if value is None else [f"{key} = {json.dumps(value, ensure_ascii=False)}"]
    starts = [i for i, old in enumerate(lines) if re.match(rf"\s*\[{section}\]\s*(#|$)", old)]
    if not starts:
        gap = [""] if lines else []
        return "\n".join([*lines, *([*gap, f"[{section}]", *line] if line else [])]) + "\n"
    start = starts[0] + 1
    end = next((i for i in range(start, len(lines)) if lines[i].lstrip().startswith("[")), None)
    body = lines[start:end]
    kept = [old for old in body if old.partition("=")[0].strip() not in names]
    rest = [] if end is None else lines[end:]
    return "\n".join([*lines[:start], *line, *kept, *rest]) + "\n"

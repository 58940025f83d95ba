"""Files that a message names with an @: read as texts, and offered while one writes."""

from __future__ import annotations

import re
from pathlib import Path

from localllama.chat.records import Attachment
from localllama.errors import InvalidParameter
from localllama.tui import file_names
from localllama.tui.widgets.composer import Completion

_NAMED = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|(\S+))')
_BEGUN = re.compile(r'(?<!\S)@(?:"([^"\n]*)|([^\s"]*))\Z')
_PATH = re.compile(r"[\w+~-]*[./][\w./+~-]*")  # "@someone" and "@app.get('/')" are none
_LARGEST_BYTES = 4 << 20


def named_in(text: str, folder: Path, *, missing: bool = False) -> tuple[Attachment, ...]:
    """Return the files named ``@path`` or ``@"a path"`` in ``text``.

    Raises InvalidParameter for one that is too large, no text or not there; words of other
    characters than paths have, or without a slash and a dot, are only words where there is no such
    file. ``missing`` files are words, too.
    """
    found: dict[str, Attachment] = {}
    for quoted, bare in _NAMED.findall(text):
        name = quoted or bare.rstrip(".,;:!?)")
        path = _path(name, folder)
        if _is_file(path):
            found[name] = _read(name, path)
        elif not missing and (quoted or _PATH.fullmatch(name)):
            what = f"{name} is a folder" if path.is_dir() else f"there is no file {name}"
            hint = "Tab completes names after @; Enter again sends it as plain words"
            raise InvalidParameter(what, hint)
    return tuple(found.values())


def completions(text: str, folder: Path) -> list[Completion]:
    """Return what the name of a file or folder at the end of ``text`` may become."""
    begun = _BEGUN.search(text)
    if begun is None:
        return []
    written = begun[1] or begun[2] or ""
    above, name = written[: written.rfind("/") + 1], written[written.rfind("/") + 1 :]
    fitting = sorted(
        (path.name, path.is_dir())
        for path in file_names.beginning(_path(above, folder), name)
        if path.is_dir() or path.is_file()
    )
    return [_completion(begun[0], above + name, is_folder) for name, is_folder in fitting]


def _path(name: str, folder: Path) -> Path:
    try:
        return folder / Path(name).expanduser()
    except RuntimeError:  # ~somebody whom this machine does not know
        return folder / name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a word may be longer than a name can be
        return False


def _completion(typed: str, path: str, is_folder: bool) -> Completion:
    quote = '"' if " " in path else ""
    if is_folder:
        return Completion(typed, f"@{quote}{path}/", "folder")
    return Completion(typed, f"@{quote}{path}{quote} ")


def _read(name: str, path: Path) -> Attachment:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise InvalidParameter(f"{name} is too large to attach", "4 MB are the most")
        return Attachment(name, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"{name} is no text file, so it cannot be attached") from error
    except OSError as error:
        raise InvalidParameter(f"cannot read {name}: {error.strerror}") from error

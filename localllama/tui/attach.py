"""Files that a message names with an @, read as texts."""

from __future__ import annotations

import re
from pathlib import Path

from localllama.chat.records import Attachment
from localllama.errors import InvalidParameter

_NAMED = re.compile(r"(?<!\S)@(\S+)")
_LARGEST_BYTES = 4 << 20


def named_in(text: str, folder: Path) -> tuple[Attachment, ...]:
    """Return the files named ``@path`` in ``text`` that exist; others are only words.

    Raises InvalidParameter for one that is too large or no text.
    """
    paths = dict.fromkeys(match.rstrip(".,;:!?)") for match in _NAMED.findall(text))
    found = ((name, folder / Path(name).expanduser()) for name in paths if name)
    return tuple(_read(name, path) for name, path in found if path.is_file())


def _read(name: str, path: Path) -> Attachment:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise InvalidParameter(f"{name} is too large to attach", "4 MB are the most")
        return Attachment(name, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"{name} is no text file, so it cannot be attached") from error
    except OSError as error:
        raise InvalidParameter(f"cannot read {name}: {error.strerror}") from error

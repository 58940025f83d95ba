"""Text of models and files made harmless for a terminal."""

from __future__ import annotations

import re

# C0 and C1 but for tab and new line: escape sequences set titles, move the cursor, write files.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return text of a file or a model without what would command the terminal."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))

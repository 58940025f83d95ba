"""The settings: each with its value, where that comes from, and what it does."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.widgets import DataTable, Static, Tab, Tabs

from localllama import plan, presets
from localllama.amounts import size
from localllama.errors import InvalidParameter, LocalLlamaError
from localllama.harmless import printable
from localllama.plan import KV_TYPES
from localllama.presets import Preset
from localllama.store import Installed
from localllama.tui.messages import ModelChanged
from localllama.tui.page import Page
from localllama.tui.screens.chat import ChatScreen
from localllama.tui.screens.dialogs import Ask, Choose
from localllama.tui.screens.memory import Memory
from localllama.tui.settings import CONTEXT, KV_TYPE, THEME, Scope, Setting, Settings
from localllama.tui.widgets.keys import Keys

if TYPE_CHECKING:
    from localllama.tui.app import LocalLlamaApp

_COLUMNS = ("SETTING", "VALUE", "FROM", "WHAT IT DOES")
_LONGEST = 28  # characters of a value in the table
_REST = 66  # columns that the others take at most
_NARROW = 100  # columns, below which only the lines below the table say what a setting does


class SettingsTable(DataTable[Text]):
    """One row a setting."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Change")]


class SettingsScreen(Page[None]):
    """The tabs say for what a change is made."""

    app: LocalLlamaApp

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("tab", "scope", "Chat/model/all", priority=True),
        Binding("delete,backspace", "unset", "Unset"),
        Binding("p", "preset", "Presets"),
        Binding("ctrl+s", "save", "Save as preset"),
        Binding("r", "remove", "Remove preset", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._settings: Settings | None = None
        self._rows: dict[str, Setting] = {}

    def compose(self) -> ComposeResult:
        """Make the parts."""
        yield Tabs(*(Tab(scope.value, id=scope.name) for scope in Scope), id="scopes")
        yield SettingsTable(id="settings", cursor_type="row", zebra_stripes=True)
        yield Static(id="layers", markup=False)
        yield Keys()

    @property
    def _table(self) -> DataTable[Text]:
        return self.query_one("#settings", DataTable)

    @property
    def _scope(self) -> Scope:
        active = self.query_one(Tabs).active
        return Scope[active] if active else Scope.CHAT

    def on_mount(self) -> None:
        """Begin with the table."""
        self._table.add_columns(*((name, name) for name in _COLUMNS[:-1]))
        self._table.focus()

    def on_resize(self, event: Resize) -> None:
        """Let the last column have what the others leave."""
        table, last = self._table, _COLUMNS[-1]
        if last in table.columns:
            table.remove_column(last)
        if event.size.width >= _NARROW:
            table.add_column(last, key=last, width=event.size.width - _REST)
        for name, setting in self._rows.items():
            self._fill(name, setting)

    def on_screen_resume(self) -> None:
        """Show what counts now."""
        if self._settings is None:
            self.edit(None)
        self._show()
        self._plan()

    def edit(self, model: Installed | None) -> None:
        """Show the settings of a model, or None for those of the chat."""
        chat = self.app.get_screen("chat")
        assert isinstance(chat, ChatScreen)
        self._settings = Settings(self.app, chat)
        if model is not None:
            self._settings.model = model
        if self.is_mounted:
            self.query_one(Tabs).active = (Scope.MODEL if model else Scope.CHAT).name

    def _plan(self) -> None:
        """Find out, in a thread, how the model would be loaded."""
        settings, app = self._settings, self.app
        if settings is None or settings.model is None or settings.model.remote:
            return
        model, want = settings.model, app.models.want

        def look() -> None:
            with suppress(LocalLlamaError):  # what loads the model tells
                settings.plan = app.runner.preview(model, want, app.runner.machine())[1]
                self.post_message(ModelChanged())

        threading.Thread(target=look, daemon=True).start()

    def on_model_changed(self) -> None:
        """Show what it has now."""
        self._show()

    def _show(self) -> None:
        if self._settings is None:
            return
        before = self._rows
        with self.app.telling():
            self._rows = {setting.name: setting for setting in self._settings.all()}
        for name, setting in self._rows.items():
            if name not in before:
                self._table.add_row(key=name)
            if setting != before.get(name):
                self._fill(name, setting)
        self._explain()

    def _fill(self, name: str, setting: Setting) -> None:
        for column, cell in zip(self._table.ordered_columns, _cells(setting), strict=False):
            self._table.update_cell(name, column.key, cell, update_width=True)

    @property
    def _row(self) -> Setting | None:
        table = self._table
        if not table.is_valid_coordinate(table.cursor_coordinate):
            return None
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        return self._rows.get(key or "")

    @on(DataTable.RowHighlighted)
    def _explain(self) -> None:
        """Say which layer wins."""
        setting = self._row
        if setting is None or self._settings is None:
            return
        lines = [f"{setting.name}: {setting.help}"]
        for label, value in setting.layers:
            mark = "►" if label == setting.origin else " "
            lines.append(f"{mark} {label:12} {printable(value) or '-'}")
        used = "►" if setting.origin == "default" else " "
        lines.append(f"{used} {'default':12} {setting.value if used == '►' else ''}".rstrip())
        model = self._settings.model
        lines.append(f"{self._scope.value}: {model.name if model else 'no model'}. The first wins.")
        self.query_one("#layers", Static).update("\n".join(lines))

    @on(Tabs.TabActivated)
    def _scoped(self) -> None:
        self._explain()

    # changing

    @on(DataTable.RowSelected)
    def _selected(self, event: DataTable.RowSelected) -> None:
        event.stop()
        self._edit()

    def action_scope(self) -> None:
        """Make changes for something else."""
        self.query_one(Tabs).action_next_tab()

    def _edit(self) -> None:
        """Ask for another value."""
        setting = self._row
        if setting is None:
            return
        question = f"{setting.name}, {self._scope.value.lower()}\n{setting.help}"
        value = "" if setting.origin == "default" else setting.value
        if setting.name == THEME:
            themes = [(name, name) for name in sorted(self.app.available_themes)]
            self.app.push_screen(Choose("Which theme?", themes, self.app.theme), self._choose)
        elif setting.name in (CONTEXT, KV_TYPE):
            kinds = f"\nKnown: {', '.join(KV_TYPES)}" if setting.name == KV_TYPE else ""
            self.app.push_screen(Memory(question + kinds, self._change, value, self._cost))
        else:
            self.app.push_screen(Ask(question, self._change, value))

    def _choose(self, name: str | None) -> None:
        if name is not None:
            with self.app.telling():
                self._change(name)

    def _change(self, text: str) -> None:
        if self._row is not None and self._settings is not None:
            self._settings.change(self._row.name, text, self._scope)
            self._show()
            self._plan()

    def action_unset(self) -> None:
        """Leave it to the next layer."""
        with self.app.telling():
            self._change("")

    def _cost(self, text: str) -> str:
        """Called in a thread: what a context length or a KV type takes."""
        settings, setting, app = self._settings, self._row, self.app
        if settings is None or settings.model is None or setting is None:
            return "No model is chosen, so nothing is known of its memory."
        if settings.model.remote:
            return "The model is not local: it takes no memory here."
        want = app.models.want
        if setting.name == KV_TYPE:
            want = replace(want, kv_type=text)
        elif text and not text.isdecimal():
            raise InvalidParameter("the context length is a number of tokens")
        else:
            want = replace(want, context_length=int(text or 0))
        chosen = app.runner.preview(settings.model, want, app.runner.machine())[1]
        kv_bytes = sum(use.kv_bytes for use in chosen.uses)
        free = sum(use.available_bytes for use in chosen.uses)
        return (
            f"KV cache {size(kv_bytes)}, {size(chosen.total_bytes)} in all, {size(free)} free: "
            f"{plan.verdict(chosen)}.\n{plan.sentence(chosen)}"
        )

    # presets

    def action_preset(self) -> None:
        """Give the chat the settings of a preset."""
        with self.app.telling():
            saved = presets.load(self._presets_file)
            if not saved:
                raise InvalidParameter("there are no presets yet", "Ctrl+S saves these settings")

            def chosen(name: str | None) -> None:
                if name is not None and self._settings is not None:
                    with self.app.telling():
                        self._settings.take(saved[name].system, saved[name].parameters)
                    self._show()

            options = [(name, f"{name}  {_summary(preset)}") for name, preset in saved.items()]
            self.app.push_screen(Choose("Which settings shall the chat have?", options), chosen)

    def action_save(self) -> None:
        """Save the chat's settings under a name."""
        settings = self._settings
        if settings is None:
            return

        def save(name: str) -> None:
            presets.save(self._presets_file, name, Preset(settings.system, settings.own))
            self.notify(f"saved as {name}", markup=False)

        self.app.push_screen(Ask("Save the chat's settings under which name?", save))

    def action_remove(self) -> None:
        """Forget a preset."""
        with self.app.telling():
            options = [(name, name) for name in presets.load(self._presets_file)]

            def chosen(name: str | None) -> None:
                if name is not None:
                    with self.app.telling():
                        presets.remove(self._presets_file, name)

            self.app.push_screen(Choose("Which preset shall be forgotten?", options), chosen)

    @property
    def _presets_file(self) -> Path:
        return self.app.store.paths.presets_file

    def action_back(self) -> None:
        """Leave the screen."""
        self._settings = None
        self.dismiss()


def _cells(setting: Setting) -> list[Text]:
    value = printable(setting.value).replace("\n", " ")
    value = value if len(value) <= _LONGEST else value[: _LONGEST - 1] + "…"
    texts = (setting.name, value, setting.origin, setting.help)
    return [Text(text, no_wrap=True, overflow="ellipsis") for text in texts]


def _summary(preset: Preset) -> str:
    values = [f"{name} {value}" for name, value in preset.parameters.items()]
    return printable(", ".join([*values, preset.system[:30]] if preset.system else values))

"""The keys that do something at this moment: as many as fit into the last line, and all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

from rich.cells import cell_len
from rich.style import Style
from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult, RenderResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.dom import DOMNode
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from localllama.tui.page import Dialog

_LAST = ("quit", "help")  # actions that have room in every footer


class Keys(Widget):
    """The footer: the first keys that fit, none of them cut, then how to leave and to get help.

    Textual's own has a widget for each key, and makes all of them anew whenever the focus moves:
    a third of what opening a chat took.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"keys--key"}

    def on_mount(self) -> None:
        """Follow the focus."""
        self.screen.bindings_updated_signal.subscribe(self, lambda _: self.refresh())

    def render(self) -> RenderResult:
        """Return the line."""
        keys = dict(self._keys())
        last = [keys.pop(action) for action in _LAST if action in keys]
        ends = accumulate(cell_len(text.plain) for text in keys.values())
        room = self.size.width - sum(cell_len(text.plain) for text in last)
        first = [text for text, end in zip(keys.values(), ends, strict=True) if end <= room]
        return Text.assemble(*first, *last, no_wrap=True)

    def _keys(self) -> Iterator[tuple[str, Text]]:
        """The actions and what is said of them; a click does what the key does."""
        style = self.get_component_rich_style("keys--key", partial=True)
        seen = set()
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if binding.show and active.enabled and binding.action not in seen:
                seen.add(binding.action)
                click = Style.from_meta({"@click": f"app.simulate_key({binding.key!r})"})
                key = (f" {self.app.get_key_display(binding)} ", style + click)
                text = Text.assemble(key, (f"{binding.description} ", click))
                yield binding.action.removeprefix("app."), text


@dataclass(frozen=True, slots=True)
class Section:
    """Part of the help: what one presses or writes, and what that does."""

    title: str
    rows: Sequence[tuple[str, str]]


class Help(Dialog[None]):
    """Sections over what one was doing."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close", priority=True),
    ]

    def __init__(self, sections: Sequence[Section]) -> None:
        super().__init__()
        self._sections = sections

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with VerticalScroll(classes="dialog help") as shown:
            shown.border_title = "Help"
            shown.border_subtitle = "↑ ↓ PgUp PgDn scroll, Esc or F1 closes"
            for section in self._sections:
                table = Table.grid(padding=(0, 2))
                table.add_column(style="bold", no_wrap=True)
                for pressed, does in section.rows:
                    table.add_row(pressed, does)
                yield Static(section.title, classes="title", markup=False)
                yield Static(table)


def sections(screen: Screen[Any], parts: Mapping[str, type[Widget]]) -> Iterator[Section]:
    """Yield the keys that do something on a screen; ``parts`` have keys once they have the focus.

    Those that every field of its kind understands come last.
    """
    active = [a for a in screen.active_bindings.values() if not a.binding.system]
    general: list[Binding] = []
    here: list[Binding] = []
    for bound in sorted(active, key=lambda bound: not bound.binding.show):
        if not isinstance(bound.node, tuple(parts.values())):
            at_once = bound.binding.show or isinstance(bound.node, App | Screen)
            (here if at_once else general).append(bound.binding)
    yield Section("Keys", _rows(screen.app, here))
    for name, part in parts.items():
        yield Section(name, _rows(screen.app, own_bindings(part)))
    yield Section("Moving and editing", _rows(screen.app, general))


def own_bindings(part: type[DOMNode]) -> Iterable[Binding]:
    """Return the keys that a class adds to those of the class it is made from, one by one."""
    return Binding.make_bindings(part.BINDINGS)


def actions(part: type[DOMNode]) -> Iterator[Binding]:
    """Yield what a class adds, each action once, without those that only move a cursor."""
    seen = set()
    for binding in own_bindings(part):
        moves = any(word in binding.action for word in ("cursor", "focus"))
        if binding.description and not moves and binding.action not in seen:
            seen.add(binding.action)
            yield binding


def _rows(app: App[object], bindings: Iterable[Binding]) -> list[tuple[str, str]]:
    keys: dict[tuple[str, str], list[str]] = {}
    for binding in bindings:
        if binding.description:
            said = keys.setdefault((binding.action, binding.description), [])
            said.append(app.get_key_display(binding))
    return [(" ".join(dict.fromkeys(names)), does) for (_, does), names in keys.items()]

"""The keys that do something at this moment: as many as fit into the last line, and all of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import ClassVar

from rich.cells import cell_len
from rich.style import Style
from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult, RenderResult
from textual.binding import ActiveBinding
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

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


class Help(VerticalScroll, can_focus=False):
    """All keys at the right of a screen, those that matter most first."""

    def compose(self) -> ComposeResult:
        """Make the parts."""
        yield Static()

    def on_mount(self) -> None:
        """Show the keys, and those of whatever gets the focus."""
        self.screen.bindings_updated_signal.subscribe(self, lambda _: self._show())
        self._show()

    def _show(self) -> None:
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right", style="bold", no_wrap=True)
        keys: dict[tuple[str, str], list[str]] = {}
        for active in sorted(self.screen.active_bindings.values(), key=_rank):
            binding = active.binding
            if not binding.system and binding.description:
                said = keys.setdefault((binding.action, binding.description), [])
                said.append(self.app.get_key_display(binding))
        for (_, description), names in keys.items():
            table.add_row(" ".join(dict.fromkeys(names)), description)
        self.query_one(Static).update(table)


def _rank(active: ActiveBinding) -> int:
    """What footers show comes first, and last what every field of its kind understands."""
    if active.binding.show:
        return 0
    return 1 if isinstance(active.node, App | Screen) else 2

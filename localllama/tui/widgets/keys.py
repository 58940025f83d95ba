"""The keys that do something at this moment: as many as fit into the last line, and all of them."""

from __future__ import annotations

from itertools import accumulate

from rich.cells import cell_len
from rich.table import Table
from textual.app import App, ComposeResult
from textual.binding import ActiveBinding
from textual.containers import VerticalScroll
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Footer, Static
from textual.widgets._footer import FooterKey

_LAST = ("quit", "help")  # actions that have room in every footer
_SPACES = 3  # of a key in the footer


class Keys(Footer):
    """The footer: the first keys that fit, none of them cut, then how to leave and to get help."""

    def __init__(self) -> None:
        super().__init__(show_command_palette=False)

    def compose(self) -> ComposeResult:
        """Make the parts."""
        keys = [key for key in super().compose() if isinstance(key, FooterKey)]
        last = [key for name in _LAST for key in keys if key.action.removeprefix("app.") == name]
        first = [key for key in keys if key not in last]
        room = (self.size.width or self.app.size.width) - sum(map(_cells, last))
        ends = accumulate(map(_cells, first))
        shown = [key for key, end in zip(first, ends, strict=True) if end <= room]
        self.styles.grid_size_columns = max(1, len(shown) + len(last))
        yield from (*shown, *last)

    def on_resize(self, event: Resize) -> None:
        """Choose anew."""
        self.bindings_changed(self.screen)


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


def _cells(key: FooterKey) -> int:
    return cell_len(key.key_display) + cell_len(key.description) + _SPACES


def _rank(active: ActiveBinding) -> int:
    """What footers show comes first, and last what every field of its kind understands."""
    if active.binding.show:
        return 0
    return 1 if isinstance(active.node, App | Screen) else 2

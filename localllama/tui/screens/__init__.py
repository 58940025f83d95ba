"""What fills the terminal, one file a screen; all but the chat are imported when opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from textual.screen import Screen


def _models() -> Screen[None]:
    from localllama.tui.screens.models import ModelsScreen

    return ModelsScreen()


def _settings() -> Screen[None]:
    from localllama.tui.screens.settings import SettingsScreen

    return SettingsScreen()


def _hardware() -> Screen[None]:
    from localllama.tui.screens.hardware import HardwareScreen

    return HardwareScreen()


def _compare() -> Screen[None]:
    from localllama.tui.screens.compare import CompareScreen

    return CompareScreen()


OTHER_SCREENS: Mapping[str, Callable[[], Screen[None]]] = {
    "models": _models,
    "settings": _settings,
    "hardware": _hardware,
    "compare": _compare,
}

"""What opens over the chat, and closes once however often it is told to."""

from __future__ import annotations

from textual.await_complete import AwaitComplete
from textual.screen import ModalScreen, Screen, ScreenResultType


class Page(Screen[ScreenResultType]):
    """A screen beside the chat."""

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """Close, and hand ``result`` over; nothing when it is closed already.

        Textual closes whatever is on top: a second Enter or Esc, pressed before the first one was
        heeded, would take the screen below away too.
        """
        return super().dismiss(result) if self.is_active else AwaitComplete()


class Dialog(ModalScreen[ScreenResultType], Page[ScreenResultType]):
    """A question or panel over a screen; the first base is the one whose style sheet counts."""

"""What threads tell the app; its handlers touch the widgets."""

from __future__ import annotations

from textual.message import Message

from localllama.errors import LocalLlamaError
from localllama.progress import Progress
from localllama.store import Installed
from localllama.tui.replies import Reply


class ModelChanged(Message):
    """The model is further loaded, loaded, or could not be loaded."""


class ReplyChanged(Message):
    """There is more of a reply, or its end."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply


class PullAdvanced(Message):
    """A model that is fetched is this far."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress


class PullEnded(Message):
    """A model is there, or could not be fetched."""

    def __init__(self, result: Installed | LocalLlamaError) -> None:
        super().__init__()
        self.result = result

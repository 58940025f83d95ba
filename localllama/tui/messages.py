"""What threads tell the app; its handlers touch the widgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.message import Message

from localllama.errors import LocalLlamaError
from localllama.runner import Running
from localllama.tui.comparing import Side
from localllama.tui.gauges import Gauge
from localllama.tui.pulls import Pull
from localllama.tui.replies import Reply

if TYPE_CHECKING:
    from localllama.sources.huggingface import Found


class ModelChanged(Message):
    """The model is further loaded, loaded, or could not be loaded."""


class ReplyChanged(Message):
    """There is more of a reply, or its end."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply


class ChatNamed(Message):
    """The model has found a title for a chat."""

    def __init__(self, chat: int, title: str) -> None:
        super().__init__()
        self.chat = chat
        self.title = title


class PullChanged(Message, bubble=False):
    """A pull is further, stands or asks something."""

    def __init__(self, pull: Pull) -> None:
        super().__init__()
        self.pull = pull


class FitsKnown(Message):
    """It is known which models fit."""


class ElsewhereKnown(Message):
    """It is known which models the endpoints have, or why not."""


class DetailsFound(Message):
    """What there is to tell of a model."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__()
        self.name = name
        self.text = text


class HubSearched(Message):
    """What the hub found for some words, or why it was not asked."""

    def __init__(self, words: str, result: list[Found] | LocalLlamaError) -> None:
        super().__init__()
        self.words = words
        self.result = result


class Measured(Message):
    """What processor and memories do now, and which models are loaded."""

    def __init__(self, gauges: list[Gauge], running: list[Running]) -> None:
        super().__init__()
        self.gauges = gauges
        self.running = running


class Examined(Message):
    """What doctor has found."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class SideChanged(Message):
    """There is more of one side of a comparison."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.side = side

"""Titles of chats as a model makes them, and which of those are any good."""

from __future__ import annotations

import re
from collections.abc import Callable

from localllama.chat import thinking
from localllama.chat.session import Model
from localllama.engine.api import Done, Message, Sampling, Text

CELLS = 1024  # of the context that asking takes at most
_EXCERPT_CHARS = 500  # of the question and of the reply
_MOST_WORDS, _MOST_CHARS = 8, 60
_SAMPLING = Sampling(temperature=0.0, max_tokens=32, stop=('"', "\n"))

_REQUEST = "Write a title of two to six words for this conversation. Reply with the title only."
# Small models go on with these words; asked without them, they answer the question once more.
_BEGINNING = 'Title: "'
_AROUND = " \t\"'`*_#.:,;-“”„«»()[]"


def ask(model: Model, question: str, reply: str, stopped: Callable[[], bool]) -> str:
    """Return a title for what was said, "" for none worth having; raises what the engine raises.

    Nothing of it goes to disk, and the conversation stays in the model's memory: its own request
    with a short prompt takes another sequence, and ``stopped`` is looked at between tokens.
    """
    said, done = "", None
    prompt = f"{_REQUEST}\n\nUser: {_excerpt(question)}\n\nAssistant: {_excerpt(reply)}"
    messages = (Message("user", prompt), Message("assistant", _BEGINNING))
    for event in model.stream(
        _SAMPLING, messages=messages, think=False, continue_last=True, snapshot=False
    ):
        if stopped():
            model.cancel()
        if isinstance(event, Text):
            said += event.text
        elif isinstance(event, Done):
            done = event
    if done is None or done.reason != "stop":
        return ""
    return cleaned(said, question, reply)


def cleaned(said: str, question: str, reply: str = "") -> str:
    """Return the title in what a model said; "" where it is empty, too long or only an echo.

    A subtitle goes where it makes a title too long.

    >>> cleaned('Tides and the Moon."\\n', "Why are there tides?")
    'Tides and the Moon'
    >>> cleaned("Why are there tides", "Why are there tides?")
    ''
    """
    title = " ".join(thinking.split(said)[1].split()).strip(_AROUND)
    if _too_long(title):
        title = title.partition(":")[0]
    words = _letters(title)
    echoed = (_letters(question), _letters(reply), _letters(_REQUEST))
    if _too_long(title) or not title.isprintable() or not words:
        return ""
    return "" if any(text.startswith(words) for text in echoed) else title


def _too_long(title: str) -> bool:
    return len(title.split()) > _MOST_WORDS or len(title) > _MOST_CHARS


def _excerpt(text: str) -> str:
    return " ".join(text[: 2 * _EXCERPT_CHARS].split())[:_EXCERPT_CHARS]


def _letters(text: str) -> str:
    """The text for comparing: words in lower case."""
    return " ".join(re.findall(r"\w+", text.lower()))

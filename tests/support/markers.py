"""Many short requests at once, each of which must be answered with its own marker."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from localllama.engine.api import Done, Sampling, Text
from localllama.engine.client import Engine

CLIENTS = 6  # for four places, so that some always wait


def wrong_answers(engine: Engine, numbers: range) -> list[str]:
    """Ask for the marker of every number; return the answers that are not the one asked for."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = clients.map(lambda number: _answer(engine, number), numbers)
        return list(_wrong(answers, numbers))


def _wrong(answers: Iterator[str], numbers: range) -> Iterator[str]:
    for number, answer in zip(numbers, answers, strict=True):
        if answer != marker(number):
            yield f"{marker(number)}: {answer!r}"


def marker(number: int) -> str:
    """What the reply to the request of that number must be."""
    return f"{number:04}"


def _answer(engine: Engine, number: int) -> str:
    wanted = marker(number)
    # A prompt that lets the model expect what it must say, and an end without a token for it: to
    # ask the grammar about the whole vocabulary takes longer than all the rest.
    sampling = Sampling(temperature=0, max_tokens=len(wanted), grammar=f'root ::= "{wanted}"')
    *events, done = engine.stream(sampling, prompt=f"{wanted},{wanted},")
    assert isinstance(done, Done)
    return "".join(event.text for event in events if isinstance(event, Text))

"""What a reply consists of: the engine's events, with thoughts and tool calls told apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from localllama.engine.api import Done, Prefill, Text, TokenLogprob, ToolCall, Truncated
from localllama.server import thinking, tools
from localllama.server.asking import Ask
from localllama.server.bridge import Models


@dataclass(frozen=True, slots=True)
class Said:
    """More of the answer."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Thought:
    """More of what the model thinks before it answers."""

    text: str


Part = Said | Thought | ToolCall | Truncated | Done


async def parts(models: Models, ask: Ask) -> AsyncGenerator[Part, None]:
    """Yield what becomes of a request; the last part is Done, or the generator raises."""
    sieve = _Sieve(ask)
    async with aclosing(models.stream(ask.model, ask.want, ask.begin)) as events:
        async for event in events:
            if isinstance(event, Text):
                for part in sieve.feed(event):
                    yield part
            elif isinstance(event, Done):
                for part in sieve.finish():
                    yield part
                yield event
            elif not isinstance(event, Prefill):
                yield event


class _Sieve:
    """Tells thoughts, calls and answer apart."""

    def __init__(self, ask: Ask) -> None:
        self._splitter = thinking.Splitter(inside=ask.thinking) if ask.thinks else None
        self._parser = tools.Parser(ask.offered) if ask.offered else None

    def feed(self, event: Text) -> Iterator[Part]:
        if self._splitter is None:
            found = list(self._answer(event.text))
        else:
            found = list(self._split(self._splitter.feed(event.text)))
        if event.logprobs:  # they go with the text in which they came, wherever that is held
            yield Said("".join(p.text for p in found if isinstance(p, Said)), event.logprobs)
            found = [part for part in found if not isinstance(part, Said)]
        yield from found

    def finish(self) -> Iterator[Part]:
        if self._splitter is not None:
            yield from self._split(self._splitter.finish())
        if self._parser is not None:
            yield from map(_part, self._parser.finish())

    def _split(self, pieces: Iterator[tuple[bool, str]]) -> Iterator[Part]:
        for thought, text in pieces:
            if thought:
                yield Thought(text)
            else:
                yield from self._answer(text)

    def _answer(self, text: str) -> Iterator[Part]:
        if self._parser is not None:
            yield from map(_part, self._parser.feed(text))
        elif text:
            yield Said(text)


def _part(found: str | ToolCall) -> Part:
    return Said(found) if isinstance(found, str) else found


@dataclass(slots=True)
class Whole:
    """A reply that is over."""

    done: Done
    text: str = ""
    thought: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    truncated: Truncated | None = None


def more(before: Truncated | None, now: Truncated) -> Truncated:
    """Return all that was left out by now: a reply that shifts says so each time."""
    if before is None:
        return now
    return Truncated(before.messages + now.messages, before.tokens + now.tokens)


async def whole(models: Models, ask: Ask) -> Whole:
    """Return the reply as one."""
    said: list[Said] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    truncated: Truncated | None = None
    async with aclosing(parts(models, ask)) as found:
        async for part in found:
            match part:
                case Said():
                    said.append(part)
                case Thought():
                    thoughts.append(part.text)
                case ToolCall():
                    calls.append(part)
                case Truncated():
                    truncated = more(truncated, part)
                case Done():
                    done = part
    logprobs = [one for part in said for one in part.logprobs]
    text = "".join(part.text for part in said)
    return Whole(done, text, "".join(thoughts), calls, logprobs, truncated)


async def all_of(models: Models, asks: Sequence[Ask]) -> list[Whole]:
    """Return several replies, made side by side; the first error ends them all."""
    following = [asyncio.create_task(whole(models, ask)) for ask in asks]
    try:
        return await asyncio.gather(*following)
    finally:
        for task in following:
            task.cancel()


async def together(models: Models, asks: Sequence[Ask]) -> AsyncGenerator[tuple[int, Part], None]:
    """Yield the parts of several replies as they come, each with its reply's index."""
    queue: asyncio.Queue[tuple[int, Part] | None] = asyncio.Queue()

    async def follow(index: int, ask: Ask) -> None:
        try:
            async with aclosing(parts(models, ask)) as found:
                async for part in found:
                    queue.put_nowait((index, part))
        finally:
            queue.put_nowait(None)

    following = [asyncio.create_task(follow(index, ask)) for index, ask in enumerate(asks)]
    try:
        for _ in following:
            while (item := await queue.get()) is not None:
                yield item
            for task in following:
                if task.done():
                    task.result()  # raises
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)

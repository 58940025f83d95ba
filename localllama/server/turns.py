"""Whose turn it is: clients that wait are let in one after the other, not request by request."""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar

# Who asks: an API key that was checked, else an address. Set by the guard, inherited by tasks.
client: ContextVar[str] = ContextVar("client", default="")


class Turns:
    """Lets in so many at once. Where several clients wait, each gets every n-th free place, however
    many requests it has sent; its own are let in in order."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # whose turn it is comes first

    async def acquire(self) -> None:
        """Return when there is a place for the client that asks."""
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client.get(), deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn had just come
                self.release()
            raise

    def release(self) -> None:
        """Give a place to who waits for one."""
        while self._waiting:
            name = next(iter(self._waiting))
            turns = deque(turn for turn in self._waiting.pop(name) if not turn.done())
            if not turns:
                continue  # they have left
            turns.popleft().set_result(None)
            if turns:
                self._waiting[name] = turns  # behind the others
            return
        self._free += 1

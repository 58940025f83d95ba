"""Between asyncio and the workers: loads once for all who wait, queues, streams, cancels.

The engine's streams are plain iterators that block; each running one is drained by a thread into
a buffer that its request reads at its own pace, so that a slow reader holds up nobody.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Generic, TypeVar

from localllama.engine.api import Event, Ready
from localllama.engine.client import Engine, Stream
from localllama.errors import LocalLlamaError, WorkerDied
from localllama.runner import Runner
from localllama.server.errors import Busy
from localllama.server.turns import Turns
from localllama.store import Installed
from localllama.wants import Want

T = TypeVar("T")

_LOG = logging.getLogger("localllama.server")
_THREADS = 256  # made as they are needed: one a running reply, download or hash


class Lane:
    """One request's share of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._held: Stream[Any] | None = None
        self._cancelled = False
        self._lock = threading.Lock()

    def hold(self, stream: Stream[T]) -> Stream[T]:
        """Return ``stream``, which cancel() ends from now on."""
        with self._lock:
            self._held = stream
            if self._cancelled:
                stream.cancel()
        return stream

    def cancel(self) -> None:
        """End what this request waits for, and whatever else it may begin; from any thread."""
        with self._lock:
            self._cancelled = True
            if self._held is not None:
                self._held.cancel()


class Channel(Generic[T]):
    """Takes items from a thread to a coroutine; grows as long as nobody reads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[T | None] = deque()
        self._ready = asyncio.Event()
        self._reader_sleeps = False
        self._lock = threading.Lock()

    def put(self, item: T | None) -> None:
        """Add an item; None is the end."""
        with self._lock:
            self._items.append(item)
            wakes, self._reader_sleeps = self._reader_sleeps, False
        if wakes:  # once for many items: waking a sleeping thread costs more than an item
            with suppress(RuntimeError):  # the loop has ended, and whoever would read with it
                self._loop.call_soon_threadsafe(self._ready.set)

    async def items(self) -> AsyncGenerator[T, None]:
        """Yield the items up to the end."""
        while True:
            self._ready.clear()
            with self._lock:
                self._reader_sleeps = not self._items
            if self._reader_sleeps:
                await self._ready.wait()
            while self._items:
                item = self._items.popleft()
                if item is None:
                    return
                yield item


class _Loaded:
    """An engine that requests share. ``places`` lets in twice as many as the worker answers at
    once, so that the next ones are prepared when a slot becomes free; the others wait here, each
    client for its turn."""

    def __init__(self, opening: Awaitable[Engine]) -> None:
        self.opening = asyncio.create_task(self._open(opening))
        self.users = 0

    async def _open(self, opening: Awaitable[Engine]) -> Engine:
        engine = await opening
        self.places = Turns(2 * engine.record.label.slots)
        return engine


class _Place:
    """One request's hold on a loaded model."""

    def __init__(self, lane: Lane, threads: ThreadPoolExecutor) -> None:
        self.lane = lane
        self._threads = threads
        self._working: list[Future[Any]] = []

    def start(self, work: Callable[[], T]) -> Future[T]:
        """Work in another thread."""
        future = self._threads.submit(work)
        self._working.append(future)
        return future

    async def over(self) -> None:
        """Return when all that was started has ended, however it did."""
        pending = [asyncio.wrap_future(future) for future in self._working]
        await asyncio.gather(*pending, return_exceptions=True)


_Key = tuple[str, Want]


class Models:
    """The models in use by requests, opened when they are first asked for.

    An engine is left when its last request is over; how long its worker stays then is the
    worker's own business, and that of all front ends.
    """

    def __init__(self, runner: Runner, *, most_waiting: int) -> None:
        self.runner = runner
        self._most_waiting = most_waiting
        self._waiting = 0
        self._loaded: dict[_Key, _Loaded] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="request")
        self._tidying: set[asyncio.Task[None]] = set()

    async def load(self, model: Installed, want: Want) -> Ready:
        """Load a model, or keep it for as long as ``want`` says from now on."""
        return await self.call(model, want, lambda lane: lane.engine.ready)

    async def unload(self, model: Installed) -> None:
        """Let a model go as soon as nobody uses it."""
        await self.run(lambda: self.runner.release(model))

    async def stream(
        self, model: Installed, want: Want, begin: Callable[[Lane], Iterator[Event]]
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of the reply that ``begin`` asks a lane for, in another thread.

        Closing the generator cancels the reply. Raises what opening and replying raise, and Busy.
        """
        channel: Channel[Event] = Channel()
        async with self._place(model, want) as place:

            def pump() -> None:
                _keep(place.lane, want)
                for event in begin(place.lane):
                    channel.put(event)

            working = place.start(pump)
            working.add_done_callback(lambda _: channel.put(None))
            async for event in channel.items():
                yield event
            await asyncio.wrap_future(working)  # raises

    async def call(self, model: Installed, want: Want, work: Callable[[Lane], T]) -> T:
        """Return what ``work`` does with a lane in another thread; raises what it raises."""
        async with self._place(model, want) as place:

            def do() -> T:
                _keep(place.lane, want)
                return work(place.lane)

            return await asyncio.wrap_future(place.start(do))

    async def run(self, work: Callable[[], T]) -> T:
        """Return what ``work`` does in another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def progress(self, work: Generator[T, None, object]) -> AsyncGenerator[T, None]:
        """Yield what a long piece of work yields in another thread; closing ends it."""
        channel: Channel[T] = Channel()
        stopped = threading.Event()

        def pump() -> None:
            for item in work:
                channel.put(item)
                if stopped.is_set():
                    work.close()

        working = self._threads.submit(pump)
        working.add_done_callback(lambda _: channel.put(None))
        try:
            async for item in channel.items():
                yield item
            await asyncio.wrap_future(working)  # raises
        finally:
            stopped.set()

    async def close(self) -> None:
        """Leave the engines, once their requests are over."""
        while self._tidying:
            await asyncio.wait(self._tidying)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # who uses what

    @asynccontextmanager
    async def _place(self, model: Installed, want: Want) -> AsyncIterator[_Place]:
        """Give a place at a loaded model; who leaves it early cancels what was started there."""
        key = (model.digest, replace(want, keep_alive_seconds=None))
        loaded = await self._enter(key, model, want)
        place = _Place(Lane(loaded.opening.result()), self._threads)
        try:
            yield place
        except WorkerDied:
            self._forget(key, loaded)
            raise
        finally:
            place.lane.cancel()
            self._tidy(self._exit(key, loaded, place))

    async def _enter(self, key: _Key, model: Installed, want: Want) -> _Loaded:
        if self._waiting >= self._most_waiting:
            raise Busy(
                "server busy, please try again. maximum pending requests exceeded",
                f"{self._most_waiting} requests wait already",
            )
        loaded = self._loaded.get(key)
        if loaded is None:
            opening = self.run(lambda: self._open(model, want))
            loaded = self._loaded[key] = _Loaded(opening)
        loaded.users += 1
        self._waiting += 1
        try:
            await asyncio.shield(loaded.opening)
            await loaded.places.acquire()
        except LocalLlamaError:
            self._forget(key, loaded)
            self._tidy(self._leave(key, loaded))
            raise
        except asyncio.CancelledError:
            self._tidy(self._leave(key, loaded))
            raise
        finally:
            self._waiting -= 1
        return loaded

    def _open(self, model: Installed, want: Want) -> Engine:
        engine = self.runner.open(model, want)
        if not engine.joined:
            label = engine.record.label
            _LOG.info("loaded %s: %s %s", model.name, label.explanation, label.parallel)
        return engine

    async def _exit(self, key: _Key, loaded: _Loaded, place: _Place) -> None:
        await place.over()  # only then has the worker a slot again
        loaded.places.release()
        await self._leave(key, loaded)

    async def _leave(self, key: _Key, loaded: _Loaded) -> None:
        loaded.users -= 1
        if loaded.users:
            return
        self._forget(key, loaded)
        await asyncio.wait([loaded.opening])
        if not loaded.opening.cancelled() and loaded.opening.exception() is None:
            await self.run(loaded.opening.result().close)

    def _forget(self, key: _Key, loaded: _Loaded) -> None:
        """Have the next request open the model anew."""
        if self._loaded.get(key) is loaded:
            del self._loaded[key]

    def _tidy(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what a request need not wait for."""
        task = asyncio.create_task(work)
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)


def _keep(lane: Lane, want: Want) -> None:
    if want.keep_alive_seconds is not None:
        lane.engine.keep(want.keep_alive_seconds)

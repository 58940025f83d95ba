"""The process that holds one model: ``python -m localllama.engine.worker FD``.

FD is a listening socket. Gets a Start on stdin, then serves its clients; see protocol.py. The main
thread loads, decodes and samples and does nothing else; each connection has a thread that reads
requests and one that turns bytes into text and writes. It ends when it is told to, and when no
client has been connected for the keep-alive time.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from localllama.engine.api import Failed, Loading, Ready
from localllama.engine.connection import Connection
from localllama.engine.protocol import Start, Status, Stop, failed
from localllama.engine.scheduler import Scheduler
from localllama.errors import LocalLlamaError, WorkerDied

_SAVE_SECONDS = 8.0  # whoever waits for the end of this process does so for 10


class Worker:
    """Who the clients of this process are, and when it ends."""

    def __init__(self, start: Start, listener: socket.socket) -> None:
        self._start = start
        self._listener = listener
        self.scheduler: Scheduler | None = None  # None = still loading
        self._changed = threading.Condition()  # guards what follows
        self._connections: set[Connection] = set()
        self._news: Loading | Ready = Loading(0.0)
        self._keep_alive_seconds = start.options.keep_alive_seconds
        self._left_at = self._used_at = monotonic()  # by the last client; for the last reply
        self._ending = threading.Lock()  # never released

    def serve(self) -> None:
        """Load the model and decode for ever."""
        self._accept().joined = True  # whoever started this process waits, also for bad news
        threading.Thread(target=self._accept_all, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            self.scheduler = Scheduler(self._start.options, self._loading)
        except LocalLlamaError as error:
            self.end(failed(error))
            return
        self._announce(self.scheduler.ready)
        self.scheduler.run()
        self._ending.acquire()  # end() never gives it back

    def _accept_all(self) -> None:
        while True:
            self._accept()

    def _accept(self) -> Connection:
        sock, _ = self._listener.accept()
        connection = Connection(sock, self)
        with self._changed:
            self._connections.add(connection)
            connection.open()
        return connection

    def _loading(self, fraction: float) -> None:
        told = self._news.fraction if isinstance(self._news, Loading) else 1.0
        if int(100 * fraction) > int(100 * told):
            self._announce(Loading(fraction))

    def _announce(self, news: Loading | Ready) -> None:
        with self._changed:
            self._news = news
            for connection in self._connections:
                if connection.joined:
                    connection.tell(news)

    # what connections report

    def join(self, connection: Connection, keep_alive_seconds: float) -> None:
        """Count a connection as a client; the latest one decides how long the model stays."""
        with self._changed:
            self._keep_alive_seconds = keep_alive_seconds
            if not connection.greeted:
                connection.greeted = connection.joined = True
                connection.tell(self._news)

    def leave(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        with self._changed:
            self._connections.remove(connection)
            if connection.joined:
                self._left_at = monotonic()
            ends = self._seconds_left() == 0
            self._changed.notify()
        if not ends:  # else the end of this process closes it, so that the client can wait for that
            connection.close()

    def used(self) -> None:
        """A reply has ended."""
        self._used_at = monotonic()

    def stop(self, request: Stop) -> bool:
        """End, unless a reply is under way and the request does not mean that."""
        if request.only_idle and self.status().running:
            return False
        self.end(Failed(WorkerDied.code, request.why))
        return True

    def forget(self, conversation: str) -> None:
        """Keep nothing of a conversation beyond this process."""
        if self.scheduler is not None:
            self.scheduler.forget(conversation)

    def status(self) -> Status:
        """What this process is doing."""
        with self._changed:
            return Status(
                loaded=self.scheduler is not None,
                clients=sum(connection.joined for connection in self._connections),
                running=sum(connection.running for connection in self._connections),
                idle_seconds=monotonic() - self._used_at,
                seconds_left=self._seconds_left(),
            )

    # the end

    def _seconds_left(self) -> float | None:
        """Until this process ends by itself; None while it does not count."""
        if any(connection.joined for connection in self._connections):
            return None
        if self.scheduler is None:  # a load that nobody waits for is not worth finishing
            return 0.0
        if self._keep_alive_seconds < 0:
            return None
        return max(0.0, self._left_at + self._keep_alive_seconds - monotonic())

    def _watch(self) -> None:
        with self._changed:
            while (left := self._seconds_left()) != 0:
                self._changed.wait(left and min(left, threading.TIMEOUT_MAX))
        self.end(Failed(WorkerDied.code, "the model was unloaded: nobody used it any more"))

    def end(self, farewell: Failed) -> None:
        """Take everything away, save conversations, tell the clients why and end the process."""
        self._ending.acquire()
        for file in self._start.files:
            Path(file).unlink(missing_ok=True)
        if self.scheduler is not None:
            self.scheduler.close(_SAVE_SECONDS)
        with self._changed:
            connections = list(self._connections)
        for connection in connections:
            connection.tell(farewell)
            connection.finish()
        sys.stderr.flush()
        os._exit(0)  # llama.cpp must not log into an interpreter that is being taken down


def _end_thread(failure: threading.ExceptHookArgs) -> None:
    """A worker without one of its threads would only hang: leave a traceback and go."""
    threading.__excepthook__(failure)
    os._exit(1)


def _end_main(*failure: Any) -> None:
    sys.__excepthook__(*failure)
    os._exit(1)


def main() -> None:
    """Serve the listening socket whose file descriptor is the only argument."""
    threading.excepthook = _end_thread
    sys.excepthook = _end_main
    told = sys.stdin.buffer.read()
    if not told:  # whoever started this process is gone
        return
    listener = socket.socket(fileno=int(sys.argv[1]))
    worker = Worker(msgspec.msgpack.decode(told, type=Start), listener)
    farewell = Failed(WorkerDied.code, "the model was unloaded: its process was told to end")
    # In a thread of its own: a signal's handler may stand in for one that holds a lock.
    signal.signal(
        signal.SIGTERM, lambda *_: threading.Thread(target=worker.end, args=(farewell,)).start()
    )
    worker.serve()


if __name__ == "__main__":
    main()

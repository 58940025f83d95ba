"""A worker's side of one connection: reads its requests, turns bytes into text and writes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, groupby
from queue import SimpleQueue
from time import sleep
from typing import TYPE_CHECKING

import msgspec

from localllama.engine import wire
from localllama.engine.api import Cancel, Done, Generate, Reply, Task, Text, TokenLogprob
from localllama.engine.job import End, Output, Ticket
from localllama.engine.protocol import (
    WORKER,
    Answered,
    Asked,
    Forget,
    Inquire,
    KeepAlive,
    Status,
    Stop,
    failed,
)
from localllama.engine.text import TextStream
from localllama.errors import EngineError

if TYPE_CHECKING:
    from localllama.engine.worker import Worker

# Every message wakes the front end, which takes a core from the decoding threads: on 2 cores 3 % of
# the rate at 90 tokens/s with 50 messages a second. Text at the rate of a film still looks fluent.
_REST_SECONDS = 1 / 30
_FLUSH_SECONDS = 2.0

# What one token or event adds to a reply; or what goes out as it is; None ends the connection.
_Item = tuple["_Stream", Output] | Answered | None


class _Stream:
    """A request under way; ``text`` is fed by the writing thread."""

    def __init__(self, id: int, ticket: Ticket) -> None:
        self.id = id
        self.ticket = ticket
        request = ticket.request
        self.stops = request.sampling.stop if isinstance(request, Generate) else ()
        self.text = TextStream(self.stops)

    def replies(self, output: Output) -> Iterator[Reply]:
        """What the client gets for one token, or for an event."""
        if isinstance(output, bytes | TokenLogprob):
            if text := self.text.feed(output):
                yield text
            return
        if isinstance(output, Done):
            if text := self.text.finish():
                yield text
            if self.text.stop:
                output = self._stopped(output)
        yield output

    def _stopped(self, done: Done) -> Done:
        """The end as it is for the client: the decoding thread was a token or two ahead."""
        usage = msgspec.structs.replace(done.usage, completion_tokens=self.text.tokens)
        return msgspec.structs.replace(
            done,
            reason="stop",
            usage=usage,
            stop=self.text.stop,
            tokens=done.tokens[: usage.prompt_tokens + usage.completion_tokens],
        )


class Connection:
    """``joined`` = it is a client, for whom the model is kept; others only ask or stop."""

    def __init__(self, sock: socket.socket, worker: Worker) -> None:
        self.joined = False
        self.greeted = False  # was told how far loading is
        self._sock = sock
        self._worker = worker
        self._streams: dict[int, _Stream] = {}
        self._outbox: SimpleQueue[_Item] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, daemon=True)

    @property
    def running(self) -> int:
        """How many replies are under way."""
        return len(self._streams)

    def open(self) -> None:
        """Start to read and write."""
        self._writer.start()
        threading.Thread(target=self._read, daemon=True).start()

    def tell(self, news: Reply | Status) -> None:
        """Say something about the worker."""
        self._outbox.put(Answered(WORKER, news))

    def finish(self) -> None:
        """Write what was told so far, but do not wait long for a client that does not read."""
        self._outbox.put(None)
        self._writer.join(_FLUSH_SECONDS)

    def close(self) -> None:
        """End the connection."""
        self.finish()
        self._sock.close()

    # requests

    def _read(self) -> None:
        receiver = wire.Receiver[Asked](self._sock, Asked)
        with suppress(OSError, EngineError):  # a stream out of step is as good as ended
            while (asked := receiver.receive()) is not None:
                self._handle(asked)
        for stream in list(self._streams.values()):
            self._cancel(stream)
        self._worker.leave(self)

    def _handle(self, asked: Asked) -> None:
        request = asked.request
        if isinstance(request, Cancel):
            if stream := self._streams.get(asked.id):
                self._cancel(stream)
        elif isinstance(request, KeepAlive):
            self._worker.join(self, request.seconds)
        elif isinstance(request, Stop):
            if not self._worker.stop(request):
                self.tell(self._worker.status())
        elif isinstance(request, Forget):
            self._worker.forget(request.conversation)
            self.tell(self._worker.status())
        elif isinstance(request, Inquire):
            self.tell(self._worker.status())
        else:
            self._begin(asked.id, request)

    def _begin(self, id: int, request: Task) -> None:
        scheduler = self._worker.scheduler
        ticket = Ticket(request, lambda _, output: self._outbox.put((stream, output)))
        stream = _Stream(id, ticket)
        self._streams[id] = stream
        if scheduler is None:
            self._outbox.put((stream, failed(EngineError("the model is still being loaded"))))
        else:
            scheduler.submit(ticket)

    def _cancel(self, stream: _Stream) -> None:
        if self._worker.scheduler is not None:
            self._worker.scheduler.cancel(stream.ticket)

    # replies

    def _write(self) -> None:
        with suppress(OSError):  # the reading thread notices too, and ends what is under way
            while self._write_some():
                pass

    def _write_some(self) -> bool:
        """Write all there is, at least one item; False after the last one."""
        items = [self._outbox.get()]
        while not self._outbox.empty():
            items.append(self._outbox.get())
        answers: list[Answered] = []
        for item in items:
            if isinstance(item, Answered):
                answers.append(item)
            elif item is not None:
                answers += self._answers(*item)
        for answer in _merged(answers):
            wire.send(self._sock, answer)
        if any(isinstance(answer.reply, Text) for answer in answers) and not self._watching():
            sleep(_REST_SECONDS)
        return None not in items

    def _watching(self) -> bool:
        """Whether the text of a reply decides when it ends."""
        streams = list(self._streams.values())  # the reading thread adds some
        return any(stream.stops for stream in streams)

    def _answers(self, stream: _Stream, output: Output) -> list[Answered]:
        answers = [Answered(stream.id, reply) for reply in stream.replies(output)]
        if isinstance(output, End):
            del self._streams[stream.id]
            self._worker.used()
        elif stream.text.stop and not stream.ticket.cancelled:
            self._cancel(stream)
        return answers


def _merged(answers: list[Answered]) -> Iterator[Answered]:
    """Put texts of one reply that follow one another together; other replies stay in order."""
    by_id = sorted(answers, key=lambda answer: answer.id)
    for (id, is_text), group in groupby(by_id, lambda a: (a.id, isinstance(a.reply, Text))):
        if is_text:
            texts = [a.reply for a in group if isinstance(a.reply, Text)]
            logprobs = chain.from_iterable(text.logprobs for text in texts)
            tokens = sum(text.tokens for text in texts)
            yield Answered(id, Text("".join(text.text for text in texts), tuple(logprobs), tokens))
        else:
            yield from group

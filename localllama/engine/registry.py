"""The live workers of this user: a record, a socket and a log for each, in the runtime folder.

    <id>.json           the record, mode 0600
    <id>.sock           where the worker listens, mode 0600
    worker-<id>.log     in the log folder

A worker that ends takes all three away. One that was killed leaves them; its socket refuses, and
whoever finds that removes record and socket (the log of a crash stays).
"""

from __future__ import annotations

import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from localllama.engine import wire
from localllama.engine.api import DeviceBytes
from localllama.engine.protocol import WORKER, Answered, Asked, Forget, Inquire, Status, Stop
from localllama.errors import EngineError
from localllama.files import write_atomic
from localllama.plan import HOST

_LOCK_SECONDS = 60.0  # choosing and starting takes milliseconds, making room a few seconds
_ANSWER_SECONDS = 10.0
_KEPT_LOGS = 10
_CLOCK_SECONDS = 2.0  # Linux counts from a boot time that moves when the clock is set


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker holds, for people and for comparing; or which ``endpoint`` stands for one.

    ``key`` is equal for workers that can stand in for each other, except for the context length
    and the slots.
    ``asked_context`` 0 = the program chose the length, -1 = the longest that fits. ``mapped_bytes``
    of the host's are pages of the file, which the system counts as available.
    """

    key: str = ""
    name: str = ""  # of the model, as it was asked for
    digest: str = ""
    architecture: str = ""
    devices: tuple[DeviceBytes, ...] = ()  # as planned
    mapped_bytes: int = 0
    asked_context: int = 0
    layers: int = 0  # the output counts as one
    gpu_layers: int = 0
    explanation: str = ""  # where it runs and with what context, in a sentence
    slots: int = 1  # replies at once
    parallel: str = ""  # how many, and why, in words
    idle_gpu: str = ""  # why a GPU computes nothing of it
    endpoint: str = ""

    @property
    def size_bytes(self) -> int:
        """What it takes on all devices."""
        return sum(self.device_bytes.values())

    @property
    def device_bytes(self) -> dict[str, int]:
        """What it takes of each device."""
        return {held.device: held.total_bytes for held in self.devices}

    @property
    def gpu_bytes(self) -> int:
        """What of that is on GPUs."""
        return self.size_bytes - self.device_bytes.get(HOST, 0)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. ``process_started``, in seconds since the epoch, tells a reused ``pid``.

    ``started_at`` says the same for people (ISO 8601, UTC).
    """

    id: str
    pid: int
    process_started: float
    label: Label
    context_length: int
    started_at: str


class Registry:
    """The runtime folder ``folder`` and the log folder ``logs``."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder = folder
        self.logs = logs

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep others from starting workers; raises EngineError when one holds on for a minute."""
        import filelock

        self._prepare()
        held = filelock.FileLock(self.folder / ".lock", timeout=_LOCK_SECONDS)
        try:
            held.acquire()
        except filelock.Timeout as error:
            raise EngineError(
                "another localllama has been starting a model for a minute",
                "wait for it to finish, or end it",
            ) from error
        try:
            self._sweep()
            yield
        finally:
            held.release()

    def records(self) -> list[Record]:
        """Return the records, those of dead workers included; unreadable ones are removed."""
        found = []
        for path in self.folder.glob("*.json"):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Record))
            except FileNotFoundError:  # its worker has just ended
                continue
            except msgspec.MsgspecError:  # damaged, or of another version of this program
                self.forget(path.stem)
        return found

    def connect(self, record: Record) -> socket.socket | None:
        """Connect to a worker; None when it is gone, and then its record is too.

        Raises TimeoutError when it is there and does not accept.
        """
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(_ANSWER_SECONDS)
        try:
            sock.connect(str(self.socket(record.id)))
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            self.forget(record.id)
            return None
        except (TimeoutError, BlockingIOError) as error:  # Linux says the second
            sock.close()
            raise TimeoutError("the process that holds the model hangs") from error
        sock.settimeout(None)
        return sock

    def status(self, record: Record) -> Status | None:
        """Ask a worker what it is doing; None when it is gone; raises TimeoutError if it hangs."""
        return self._ask(record, Inquire())

    def forget_conversation(self, record: Record, conversation: str) -> None:
        """Have a worker write nothing more of a conversation to disk; raises TimeoutError."""
        self._ask(record, Forget(conversation))

    def stop(self, record: Record, why: str, *, only_idle: bool = False) -> bool:
        """End a worker and wait until it is gone; False when it was busy and should not be ended.

        A worker that hangs is killed.
        """
        try:
            ended = self._ask(record, Stop(why, only_idle)) is None
        except TimeoutError:
            ended = not only_idle
            if ended:
                _kill(record)
        if ended:
            self.forget(record.id)
        return ended

    def _ask(self, record: Record, request: Inquire | Forget | Stop) -> Status | None:
        """Return the answer, None when the worker is gone; raises TimeoutError when it hangs."""
        sock = self.connect(record)
        if sock is None:
            return None
        with sock, suppress(BrokenPipeError):
            sock.settimeout(_ANSWER_SECONDS)
            wire.send(sock, Asked(WORKER, request))
            receiver = wire.Receiver[Answered](sock, Answered)
            while (answer := receiver.receive()) is not None:
                if isinstance(answer.reply, Status):
                    return answer.reply
        return None

    def publish(self, record: Record) -> None:
        """Write the record of a worker that has just been started."""
        write_atomic(self._record(record.id), msgspec.json.encode(record), 0o600)

    def forget(self, id: str) -> None:
        """Remove the record and the socket of a worker that is gone."""
        self._record(id).unlink(missing_ok=True)
        self.socket(id).unlink(missing_ok=True)

    def listen(self) -> tuple[str, socket.socket]:
        """Return a fresh id and its listening socket; raises EngineError."""
        id = secrets.token_hex(6)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(self.socket(id)))
            self.socket(id).chmod(0o600)  # nobody can connect before listen()
            listener.listen()
        except OSError as error:
            listener.close()
            raise EngineError(
                f"cannot make a socket in {self.folder}: {error.strerror or error}"
            ) from error
        return id, listener

    def log(self, id: str) -> Path:
        """Where that worker's log is."""
        return self.logs / f"worker-{id}.log"

    def socket(self, id: str) -> Path:
        """Where that worker listens."""
        return self.folder / f"{id}.sock"

    def files(self, id: str) -> tuple[Path, ...]:
        """All that a worker takes away when it ends."""
        return self._record(id), self.socket(id), self.log(id)

    def new_log(self, id: str) -> Path:
        """Make that worker's log, and remove old ones: those of crashes stay, a few are enough."""
        self.logs.mkdir(parents=True, exist_ok=True)
        for log in sorted(self.logs.glob("worker-*.log"), key=_modified_at)[: 1 - _KEPT_LOGS]:
            if not self._record(log.stem.removeprefix("worker-")).exists():
                log.unlink(missing_ok=True)
        self.log(id).touch(0o600)
        return self.log(id)

    def _record(self, id: str) -> Path:
        return self.folder / f"{id}.json"

    def _prepare(self) -> None:
        """Make the runtime folder; refuse one that others can write to."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise EngineError(f"{self.folder} belongs to somebody else", "remove it")
            self.folder.chmod(0o700)
        except OSError as error:
            raise EngineError(
                f"cannot use the folder {self.folder}: {error.strerror}",
                "set LOCALLLAMA_HOME to a folder you may write to",
            ) from error

    def _sweep(self) -> None:
        """Remove what a front end left that was killed between two steps; needs the lock."""
        for path in self.folder.iterdir():
            if path.suffix in (".sock", ".tmp") and not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)


def _kill(record: Record) -> None:
    """Make sure that the process is gone, unless the pid belongs to another one by now."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(record.pid)
        if abs(process.create_time() - record.process_started) < _CLOCK_SECONDS:
            process.kill()


def _modified_at(log: Path) -> float:
    try:
        return log.stat().st_mtime
    except FileNotFoundError:  # another process was quicker
        return 0.0

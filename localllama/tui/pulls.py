"""Models on their way here: each pull in a thread, to be paused, resumed or cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from enum import StrEnum

from localllama import names, pull
from localllama.catalog import Catalog
from localllama.config import Network
from localllama.errors import InvalidName, LocalLlamaError
from localllama.progress import Progress
from localllama.store import Installed, Store


class State(StrEnum):
    """Where a pull is; ``asks`` waits for the user's yes, ``failed`` and ``paused`` for a start."""

    LOOKING = "looking"
    ASKS = "asks"
    PULLING = "pulling"
    PAUSED = "paused"
    FAILED = "failed"
    DONE = "done"
    CANCELLED = "cancelled"


class Pull:
    """One model; ``changed`` is called in its thread whenever ``text`` is another.

    ``file`` is what a GGUF file on this machine says of itself, where that is taken in.
    """

    def __init__(
        self,
        name: str,
        quant: str,
        known: Catalog,
        store: Store,
        network: Network,
        changed: Callable[[Pull], None],
        file: Installed | None = None,
    ) -> None:
        self.name = name
        self.file = file
        self.state = State.LOOKING
        self.question = ""
        self.error: LocalLlamaError | None = None
        self.installed: Installed | None = None
        self._quant = quant
        self._known = known
        self._store = store
        self._network = network
        self._changed = changed
        self._offer: pull.Offer | None = None
        self.progress: Progress | None = None
        self._agreed = self._stopped = self._dropped = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether its thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def open(self) -> bool:
        """Whether there is still something to do: it is neither done nor cancelled."""
        return self.state not in (State.DONE, State.CANCELLED)

    @property
    def text(self) -> str:
        """The state in a few characters, with the share that is here."""
        if self._stopped and self.state in (State.LOOKING, State.PULLING):
            return "cancelling" if self._dropped else "pausing"
        progress = self.progress
        if progress is None or not progress.total_bytes or self.state not in _MOVING:
            return self.state.value
        share = progress.done_bytes * 100 // progress.total_bytes
        word = progress.phase if self.state is State.PULLING else self.state.value
        return f"{word} {share}%"

    @property
    def line(self) -> str:
        """The state with speed and time left."""
        progress = self.progress
        if progress is None or self.state is not State.PULLING:
            return f"{self.name}: {self.text}"
        rate = f", {progress.bytes_per_second / 1e6:.1f} MB/s" if progress.bytes_per_second else ""
        left = progress.seconds_left
        return f"{self.name}: {self.text}{rate}{f', {left:.0f} s left' if left else ''}"

    def start(self, *, agreed: bool = False) -> None:
        """Begin, or go on where it stopped."""
        if not self.busy:
            self._agreed = self._agreed or agreed
            self._stopped = self._dropped = False
            self.state, self.error = State.LOOKING, None
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
            self._changed(self)

    def pause(self) -> None:
        """Stop; what arrived stays."""
        self._stopped = True
        self._changed(self)

    def cancel(self) -> None:
        """Stop, and remove what arrived."""
        self._stopped = self._dropped = True
        self.error = None
        if not self.busy:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._changed(self)

    def wait(self, seconds: float) -> None:
        """Return when it has stopped, or after so long."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self.state = self._next()
        except LocalLlamaError as error:
            self.state, self.error = State.FAILED, error
        self._changed(self)

    def _next(self) -> State:
        """Work until something else has to happen; returns what the state is then."""
        try:
            self._work()
        except LocalLlamaError:
            if not self._stopped:  # else the user has given up, and need not know
                raise
        if self.question and not self._agreed and not self._stopped:
            return State.ASKS
        if self.installed is not None:
            return State.DONE
        if not self._dropped:
            return State.PAUSED
        if self._offer is not None:
            pull.forget(self._offer, self._store.paths)
        return State.CANCELLED

    def _work(self) -> None:
        """Look, ask and fetch, as far as that goes."""
        if self._offer is None and not self._dropped:
            self._offer = self._look()
        if self._offer is None or self._stopped:
            return
        self.question = self._ask(self._offer)
        if self._agreed or not self.question:
            self._fetch(self._offer)

    def _look(self) -> pull.Offer:
        offer = pull.look(
            _local(self.file.source) if self.file else names.parse(self.name),
            known=self._known,
            store=self._store,
            network=self._network,
            quant=self._quant,
        )
        return replace(offer, name=names.own(self.name)) if self.file else offer

    def _ask(self, offer: pull.Offer) -> str:
        """What the user must agree to, empty where there is nothing."""
        trouble = pull.judge(offer, self._store.paths)
        licence = offer.licence
        terms = f"By going on you accept the licence {licence.name} ({licence.link})."
        parts = [terms] if licence.accept else []
        if trouble is not None:
            parts.append(f"{trouble.message}.")
        return "\n".join(parts)

    def _fetch(self, offer: pull.Offer) -> None:
        self.state = State.PULLING
        with closing(pull.pull(offer, store=self._store, network=self._network)) as work:
            while not self._stopped:
                before = self.line
                try:
                    self.progress = next(work)
                except StopIteration as end:
                    self.installed = end.value
                    return
                if self.line != before:
                    self._changed(self)


def _local(path: str) -> names.ModelName:
    return names.ModelName(names.Source.LOCAL, path)


_MOVING = (State.PULLING, State.PAUSED)


class Pulls:
    """All pulls of one sitting, by name."""

    def __init__(self, store: Store, network: Network, changed: Callable[[Pull], None]) -> None:
        self._store = store
        self._network = network
        self._changed = changed
        self.by_name: dict[str, Pull] = {}

    def start(self, name: str, known: Catalog, quant: str = "") -> Pull:
        """Begin to pull a model, or go on with it."""
        present = self.by_name.get(name)
        if present is None or (not present.busy and not present.open):
            present = Pull(name, quant, known, self._store, self._network, self._changed)
            self.by_name[name] = present
        present.start()
        return present

    def take_in(self, path: str, name: str, known: Catalog) -> Pull:
        """Begin to take a GGUF file of this machine into the store, ``name`` "" = as it is called.

        Raises NotFound, UsageProblem, BadFile or InvalidName before anything is done.
        """
        file = pull.describe(_local(path.strip()))
        own = str(names.own(name)) if name else str(pull.local_name(file.source))
        present = self.by_name.get(own)
        if self._store.find(names.parse(own)) or (present is not None and present.open):
            raise InvalidName(f"there is {own} already", "choose another name")
        taken = Pull(own, "", known, self._store, self._network, self._changed, file)
        self.by_name[own] = taken
        taken.start()
        return taken

    def leave(self, seconds: float) -> None:
        """Pause all of them; what arrived is gone on with at the next start."""
        for each in self.by_name.values():
            each.pause()
        for each in self.by_name.values():
            each.wait(seconds)

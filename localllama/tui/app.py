"""The app: what all screens share, and where they are registered."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import PurePath
from time import monotonic
from typing import ClassVar

from textual.app import App, SuspendNotSupported, SystemCommand
from textual.binding import Binding, BindingType
from textual.events import Event, InputEvent, Paste
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.theme import Theme

from localllama import catalog, config_file, endpoints, names
from localllama.chat.history import History
from localllama.config import Config
from localllama.config import load as load_config
from localllama.engine import sampling
from localllama.engine.api import Sampling
from localllama.errors import InvalidName, LocalLlamaError, ModelNotFound
from localllama.store import Installed, Store
from localllama.tui import commands
from localllama.tui.elsewhere import Elsewhere
from localllama.tui.fits import Fits
from localllama.tui.messages import ElsewhereKnown, FitsKnown, ModelChanged, PullChanged
from localllama.tui.models import Models, Opener
from localllama.tui.pulls import Pull, Pulls, State
from localllama.tui.screens import OTHER_SCREENS
from localllama.tui.screens.chat import ChatScreen
from localllama.tui.widgets.composer import Composer
from localllama.tui.widgets.keys import Help, actions, sections
from localllama.wants import Want, parameter_layers

_GOOD_BYE_SECONDS = 2.0
_LOOK_SECONDS = 1.0
_IDLE_SECONDS = 4.0  # without a key or the mouse: who reads on or thinks waits for nothing

_DONE_HERE = ("Keys", "Quit")  # commands of Textual that are among the app's own


class LocalLlamaApp(App[None]):
    """Chats with the models of ``store``, opened by ``runner``, kept in ``history``."""

    TITLE = "localllama"
    CSS_PATH: ClassVar[list[str | PurePath]] = ["styles.tcss", "screens.tcss"]
    SCREENS: ClassVar[dict[str, Callable[[], Screen[None]]]] = {
        "chat": ChatScreen,
        **OTHER_SCREENS,
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Help", priority=True),
        Binding("f2", "go('models')", "Models", priority=True),
        Binding("f3", "go('settings')", "Settings", priority=True),
        Binding("f4", "go('hardware')", "Hardware", priority=True),
        Binding("f5", "go('compare')", "Compare", priority=True),
        Binding("ctrl+q", "quit", "Quit", priority=True),
        Binding("ctrl+z", "suspend_process", "Suspend", show=False, priority=True),
    ]

    def __init__(
        self,
        runner: Opener,
        store: Store,
        config: Config,
        history: History | None = None,
        *,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        super().__init__()
        self.usual_theme = self.theme  # where nobody chose one
        self.store = store
        self.config = config
        self.history = history or History.temporary()
        self.runner = runner
        self.models = Models(runner, self._model_changed)
        self.pulls = Pulls(store, config.network, self._pull_changed)
        self.fits = Fits(runner, config.run.reserve_bytes, self._fits_known)
        self.elsewhere = Elsewhere(config, self._elsewhere_known)
        self._idle_seconds = idle_seconds
        self._input_at = monotonic()

    async def on_mount(self) -> None:
        """Show the chat, and load a model behind it."""
        if not self.is_headless:
            self._leave_with_the_terminal()
        with self.telling():
            self.history.purge_old()
        if self.config.tui.theme in self.available_themes:
            self.theme = self.config.tui.theme
        self.theme_changed_signal.subscribe(self, self._keep_theme)
        self.push_screen("chat")
        self.elsewhere.look()
        self.call_after_refresh(self.run_worker, _prepare, thread=True)
        if (model := self._first_model()) is not None:
            self.load(model)
        elif not self.config.endpoints:
            self._welcome()

    def _leave_with_the_terminal(self) -> None:
        """Save everything also when somebody ends the app or closes its terminal."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.call_later, self.action_quit)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        # A terminal that is not the controlling one goes without a signal.
        self.set_interval(_LOOK_SECONDS, self._look_for_the_terminal)

    def _look_for_the_terminal(self) -> None:
        if sys.__stdin__ is not None and not os.isatty(sys.__stdin__.fileno()):
            self._hung_up()

    def _hung_up(self) -> None:
        self._save_all()
        self.history.close()
        os._exit(128 + signal.SIGHUP)  # Textual would wait for what it writes to be taken

    def _first_model(self) -> Installed | None:
        """The model of the latest chat, else the configured one, else the latest installed."""
        latest = [chat.model for chat in self.history.chats()[:1]]
        others = [model.name for model in self.known_models()]
        wanted = [*latest, self.config.run.model, *others]
        return next(filter(None, map(self.known_model, wanted)), None)

    def known_models(self) -> list[Installed]:
        """Return the installed models, then those of endpoints."""
        return [*self.store.models(), *self.elsewhere.models]

    def known_model(self, name: str) -> Installed | None:
        """Return the installed model of that name, or one that its endpoint may have."""
        if name.startswith("@"):
            try:
                return endpoints.find(names.parse(name), self.config)
            except (InvalidName, ModelNotFound):
                return None
        full = (name, f"{name}:latest")
        return next((model for model in self.store.models() if model.name in full), None)

    def _welcome(self) -> None:
        from localllama.tui.screens.welcome import Welcome

        with self.telling():  # a catalog of the user's own may have mistakes
            known = catalog.load(user=self.store.paths.user_catalog)
            self.push_screen(Welcome(known), self._welcomed)

    def _welcomed(self, model: Installed | None) -> None:
        if model is not None:
            self.load(model)

    # models

    def load(self, model: Installed) -> None:
        """Begin to load a model, with the context length of the present chat."""
        chat = self.get_screen("chat")
        assert isinstance(chat, ChatScreen)
        want = Want(context_length=chat.own_context, exact_context=True)
        self.models.choose(model, want)

    def take_in(self, path: str, name: str = "") -> Pull:
        """Begin to take a GGUF file into the store, under its own name or another.

        Raises NotFound, UsageProblem, BadFile or InvalidName.
        """
        return self.pulls.take_in(path, name, catalog.load(user=self.store.paths.user_catalog))

    def choose_model(self) -> None:
        """Ask which of the installed models to load."""
        from localllama.tui.screens.dialogs import Choose

        models = {model.name: model for model in self.known_models()}
        if not models:
            self._welcome()
            return
        present = self.models.installed
        options = [(name, f"{name}  {model.variant}") for name, model in models.items()]

        def chosen(name: str | None) -> None:
            if name is not None:
                self.load(models[name])

        question = "Which model should reply?"
        self.push_screen(Choose(question, options, present.name if present else ""), chosen)

    def _model_changed(self) -> None:
        self._tell_screens(ModelChanged)

    def _pull_changed(self, pull: Pull) -> None:
        self._tell_screens(partial(PullChanged, pull))
        if self.is_running:
            self.post_message(PullChanged(pull))

    def _elsewhere_known(self) -> None:
        self._tell_screens(ElsewhereKnown)

    def _fits_known(self) -> None:
        self._tell_screens(FitsKnown)

    def _tell_screens(self, news: Callable[[], Message]) -> None:
        """Called in any thread."""
        if self.is_running:
            for screen in self.screen_stack:
                screen.post_message(news())

    def on_pull_changed(self, event: PullChanged) -> None:
        """Say so, wherever the user is."""
        pull = event.pull
        if pull.state is State.DONE:
            self.notify(f"{pull.name} is installed", markup=False)
        elif pull.error is not None and not self._shows_pulls:
            self.tell(pull.error)

    @property
    def _shows_pulls(self) -> bool:
        """Whether a screen says itself what became of a pull, for as long as it matters."""
        from localllama.tui.screens.models import ModelsScreen
        from localllama.tui.screens.welcome import Welcome

        return any(isinstance(screen, ModelsScreen | Welcome) for screen in self.screen_stack)

    def configure(
        self,
        section: str,
        key: str,
        value: config_file.Value | None,
        *,
        also: Sequence[str] = (),
    ) -> None:
        """Set something in config.toml and go by it from now on; raises InvalidConfig."""
        file = self.store.paths.config_file
        config_file.change(file, section, key, value, also=also)
        changed = {section: getattr(load_config(file), section)}
        self.config = self.runner.config = replace(self.config, **changed)

    def _keep_theme(self, theme: Theme) -> None:
        if theme.name != (self.config.tui.theme or self.usual_theme):
            with self.telling():
                self.configure("tui", "theme", theme.name)

    def sampling(self, own: Mapping[str, object]) -> Sampling:
        """Return the parameters that count for a chat with ``own`` ones."""
        installed = self.models.installed
        below = parameter_layers(installed, self.config) if installed else []
        return sampling.resolve([("chat", own), *below]).sampling

    async def on_event(self, event: Event) -> None:
        """Remember when the user last did something."""
        if isinstance(event, InputEvent | Paste):
            self._input_at = monotonic()
        await super().on_event(event)

    @property
    def idle(self) -> bool:
        """Whether the user does nothing at the moment."""
        return monotonic() - self._input_at >= self._idle_seconds

    # telling

    def tell(self, error: LocalLlamaError) -> None:
        """Show what went wrong and what to do about it."""
        self.notify(f"{error.message}. {error.hint}".strip(), severity="error", markup=False)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Show an error of what is done inside."""
        try:
            yield
        except LocalLlamaError as error:
            self.tell(error)

    # actions

    def action_go(self, name: str) -> None:
        """Go to a screen beside the chat, or from there back to the chat."""
        if isinstance(self.screen, ModalScreen):
            return
        there = self.screen is self.get_screen(name)
        while not isinstance(self.screen, ChatScreen):
            self.pop_screen()
        if not there:
            # Who comes back goes on writing: in the list of chats a letter may delete one.
            self.screen.set_focus(self.screen.query_one(Composer))
            self.push_screen(name)

    def edit_model(self, model: Installed) -> None:
        """Show the settings of a model."""
        from localllama.tui.screens.settings import SettingsScreen

        settings = self.get_screen("settings")
        assert isinstance(settings, SettingsScreen)
        settings.edit(model)
        self.push_screen(settings)

    def action_take_in(self) -> None:
        """Ask for a GGUF file to take into the store."""
        from localllama.tui.screens.take_in import TakeIn

        self.push_screen(TakeIn())

    def action_help(self) -> None:
        """Show all keys that do something here, or hide them."""
        if isinstance(self.screen, Help):
            self.screen.dismiss()
        elif isinstance(self.screen, ChatScreen):
            *first, last = sections(self.screen, ChatScreen.PARTS)
            self.push_screen(Help([*first, *commands.HELP, last]))
        else:
            self.push_screen(Help(list(sections(self.screen, {}))))

    def action_focus_previous_message(self) -> None:
        """Go to the message above."""
        self.screen.focus_previous("MessageView")

    def action_focus_next_message(self) -> None:
        """Go to the message below."""
        self.screen.focus_next("MessageView")

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Yield every action, for the command palette: whatever has the focus."""
        for command in super().get_system_commands(screen):
            if command.title not in _DONE_HERE:
                yield command
        own = [binding for part in (type(self), type(screen)) for binding in actions(part)]
        for binding in own:
            active = screen.active_bindings.get(binding.key)
            if active is not None and active.enabled and active.binding.action == binding.action:
                run = partial(self.run_action, binding.action, active.node)
                key = self.get_key_display(binding)
                yield SystemCommand(binding.description, binding.tooltip or key, run)
        if isinstance(screen, ChatScreen):
            yield from screen.chats.palette()
            yield from screen.messages.palette()

    def action_suspend_process(self) -> None:
        """Give the terminal back to the shell, whose ``fg`` goes on here."""
        if os.getpgrp() == os.getsid(0):  # the terminal runs nothing else: a stop would be for ever
            self.notify("There is no shell to go back to", severity="warning")
            return
        with suppress(SuspendNotSupported), self.suspend():
            # Textual's own handler could come back to the screen, too: two threads would read keys.
            resume = signal.signal(signal.SIGCONT, signal.SIG_DFL)
            # All of the group: the shell waits also for a uv or make that started this.
            os.killpg(os.getpgrp(), signal.SIGSTOP)
            signal.signal(signal.SIGCONT, resume)

    async def action_quit(self) -> None:
        """Save everything and leave."""
        self._save_all()
        self.exit()

    def _save_all(self) -> None:
        for screen in self.screen_stack:
            if isinstance(screen, ChatScreen):
                screen.leave()
        self.pulls.leave(_GOOD_BYE_SECONDS)
        if (engine := self.models.leave()) is not None:
            engine.close()


def _prepare() -> None:
    """Import what the first message needs, behind the first screen."""
    import localllama.tui.markdown  # noqa: F401

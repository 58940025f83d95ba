"""What every command begins with: the home, the configuration, the store and the catalog."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

from localllama import config as settings
from localllama import paths
from localllama.errors import ModelNotFound, UsageProblem
from localllama.store import Installed, Store

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from localllama.catalog import Catalog
    from localllama.chat.history import History
    from localllama.names import ModelName

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class App:
    """One run of the program: where things are and what the user set."""

    paths: paths.Paths
    config: settings.Config

    @classmethod
    def start(cls) -> App:
        """Read the configuration; raises InvalidConfig."""
        home = paths.locate()
        config = settings.load(home.config_file)
        return cls(paths.locate(data=config.models) if config.models else home, config)

    @cached_property
    def store(self) -> Store:
        """The installed models."""
        return Store(self.paths)

    @cached_property
    def catalog(self) -> Catalog:
        """The known models, the user's own included."""
        from localllama import catalog

        return catalog.load(user=self.paths.user_catalog)

    def history(self) -> History:
        """Open the saved chats; raises HistoryError, StoreError."""
        from localllama.chat.history import History

        return History(self.paths.chats_file)

    def network(self, **changes: Any) -> settings.Network:
        """Return the network settings with what this command's flags say."""
        wanted = {key: value for key, value in changes.items() if value}
        return replace(self.config.network, **wanted)

    def name(self, text: str) -> ModelName:
        """Return the full name ``text`` stands for: an installed one first, else the catalog's."""
        from localllama import pull

        return pull.full_name(text, self.store, lambda: self.catalog)

    def installed(self, text: str) -> Installed:
        """Return the installed model called ``text``; raises ModelNotFound with near misses."""
        from localllama import names

        name = self.name(text)
        if name.source is names.Source.ENDPOINT:
            raise UsageProblem(
                f"{name} is not on this machine", "run, show and the app know such models"
            )
        try:
            return self.store.get(name)
        except ModelNotFound as error:
            if str(name) in self.catalog.names() or name.source is not names.Source.CATALOG:
                error.hint = f"get it: localllama pull {name}"
            raise


def offline(yes: bool) -> None:
    """Make ``--offline`` hold for the whole process, its children and its libraries."""
    if yes:
        os.environ["LOCALLLAMA_OFFLINE"] = "1"


def complete_installed(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the names of installed models."""
    return _complete([model.name for model in App.start().store.models()], incomplete)


def complete_known(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the names of installed models, those of the catalog, and files."""
    if incomplete.startswith((".", "/", "~")):
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]
    from localllama import endpoints

    app = App.start()
    models = [*app.store.models(), *endpoints.models(app.config)]
    return _complete(sorted({m.name for m in models} | set(app.catalog.names())), incomplete)


def _complete(names: list[str], incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in names if name.startswith(incomplete.lower())]


def json_option(command: F) -> F:
    """Add ``--json``."""
    option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
    return option(command)


def yes_option(command: F) -> F:
    """Add ``--yes``."""
    option = click.option("-y", "--yes", is_flag=True, help="Answer every question with yes.")
    return option(command)


def offline_option(command: F) -> F:
    """Add ``--offline``, which sets the environment before the configuration is read."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        offline(value)

    return click.option(
        "--offline",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        help="Refuse all network.",
    )(command)

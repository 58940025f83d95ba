"""What config.toml says of endpoints, as models with names like @desktop/llama3; asks no network.

Cheap to import, because ``list`` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from localllama.config import Config
from localllama.errors import InvalidName, ModelNotFound
from localllama.store.manifest import Installed

if TYPE_CHECKING:
    from localllama.names import ModelName


def models(config: Config) -> list[Installed]:
    """Return the models that the configuration names; @desktop stands for those of desktop that
    it does not name."""
    named = config.endpoints.items()
    return [model for name, each in named for model in of(name, each.models or ("",), config)]


def of(endpoint: str, ids: Iterable[str], config: Config) -> list[Installed]:
    """Return an endpoint's models, which it knows by ``ids``."""
    url = config.endpoints[endpoint].url
    names = (f"@{endpoint}/{id}" if id else f"@{endpoint}" for id in ids)
    return [Installed(name=name, files=(), source=url) for name in names]


def find(name: ModelName, config: Config) -> Installed:
    """Return the model of that name, whether or not its endpoint has it.

    Raises ModelNotFound for an endpoint that is not in the configuration, InvalidName for a name
    that lacks the model.
    """
    require(name.repo, config)
    if not name.tag:
        raise InvalidName(f"{name} lacks the model", f"write @{name.repo}/model")
    return of(name.repo, (name.tag,), config)[0]


def require(endpoint: str, config: Config) -> None:
    """Raise ModelNotFound for an endpoint that is not in the configuration."""
    if endpoint not in config.endpoints:
        known = ", ".join(config.endpoints)
        raise ModelNotFound(
            f"there is no endpoint {endpoint!r}",
            f"config.toml has {known}" if known else "config.toml names them: [endpoints.desktop]",
        )

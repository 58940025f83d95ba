"""Where everything lives. Knows names of folders only; creates nothing.

``LOCALLLAMA_HOME`` puts everything under one folder; without it, platformdirs decides.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders and files of one localllama home."""

    data: Path
    config: Path
    cache: Path
    log: Path

    @property
    def blobs(self) -> Path:
        """``sha256-<hex>`` files, shared between names."""
        return self.data / "models" / "blobs"

    @property
    def manifests(self) -> Path:
        """One JSON file per installed name."""
        return self.data / "models" / "manifests"

    @property
    def partials(self) -> Path:
        """Downloads under way; resumable, never listed."""
        return self.data / "models" / "partials"

    @property
    def links(self) -> Path:
        """Split models under the file names that llama.cpp's own tools expect."""
        return self.data / "models" / "links"

    @property
    def history_file(self) -> Path:
        """What was typed into the REPL."""
        return self.data / "history.txt"

    @property
    def config_file(self) -> Path:
        """The user's settings."""
        return self.config / "config.toml"

    @property
    def user_catalog(self) -> Path:
        """The user's own models.toml: adds to the shipped one and overrides it."""
        return self.config / "models.toml"

    @property
    def token_file(self) -> Path:
        """Hugging Face token saved by ``localllama login`` (mode 0600)."""
        return self.config / "hf-token"


def locate(home: str | os.PathLike[str] | None = None, data: str | None = None) -> Paths:
    """Return the Paths of ``home`` (or ``$LOCALLLAMA_HOME``, or the platform's own folders).

    ``data`` (from the configuration) moves only the folder with the models.
    """
    home = home or os.environ.get("LOCALLLAMA_HOME")
    if home:
        root = Path(home).expanduser().absolute()
        paths = Paths(root, root, root / "cache", root / "logs")
    else:
        # platformdirs costs 5 ms: not when a home is given.
        from platformdirs import PlatformDirs

        dirs = PlatformDirs("localllama", appauthor=False)
        paths = Paths(
            dirs.user_data_path,
            dirs.user_config_path,
            dirs.user_cache_path,
            dirs.user_log_path,
        )
    if data:
        moved = Path(data).expanduser().absolute()
        paths = Paths(moved, paths.config, paths.cache, paths.log)
    return paths

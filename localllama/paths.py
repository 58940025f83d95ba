"""Where everything lives. Knows names of folders only; creates nothing.

``LOCALLLAMA_HOME`` puts everything under one folder; without it, platformdirs decides.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

# A unix socket's address ends at 104 bytes on macOS and 108 on Linux, the file name included.
_LONGEST_RUNTIME_BYTES = 85


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders and files of one localllama home."""

    data: Path
    config: Path
    cache: Path
    log: Path
    runtime: Path  # sockets and records of the live workers

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
    def originals(self) -> Path:
        """Original weights that a pull was asked to keep; a folder for each repository."""
        return self.data / "originals"

    @property
    def links(self) -> Path:
        """Split models under the file names that llama.cpp's own tools expect."""
        return self.data / "models" / "links"

    @property
    def snapshots(self) -> Path:
        """KV states of conversations, so that a long one need not be read again (mode 0700)."""
        return self.cache / "snapshots"

    @property
    def history_file(self) -> Path:
        """What was typed into the REPL."""
        return self.data / "history.txt"

    @property
    def chats_file(self) -> Path:
        """The saved chats, a SQLite database (mode 0600)."""
        return self.data / "chats.db"

    @property
    def devices_file(self) -> Path:
        """What this build of llama.cpp can use, where only another build changes it."""
        return self.cache / "devices.json"

    @property
    def loads_file(self) -> Path:
        """What loads took, beside what was planned."""
        return self.cache / "loads.json"

    @property
    def config_file(self) -> Path:
        """The user's settings."""
        return self.config / "config.toml"

    @property
    def user_catalog(self) -> Path:
        """The user's own models.toml: adds to the shipped one and overrides it."""
        return self.config / "models.toml"

    @property
    def presets_file(self) -> Path:
        """Settings saved under names."""
        return self.config / "presets.json"

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
        paths = Paths(root, root, root / "cache", root / "logs", _short(root / "run"))
    else:
        # platformdirs costs 5 ms: not when a home is given.
        from platformdirs import PlatformDirs

        dirs = PlatformDirs("localllama", appauthor=False)
        paths = Paths(
            dirs.user_data_path,
            dirs.user_config_path,
            dirs.user_cache_path,
            dirs.user_log_path,
            _short(_session_folder() or dirs.user_cache_path / "run"),
        )
    if data:
        paths = replace(paths, data=Path(data).expanduser().absolute())
    return paths


def _session_folder() -> Path | None:
    """The folder that belongs to this user's login on this machine, where the system has one."""
    folder = os.environ.get("XDG_RUNTIME_DIR")
    return Path(folder, "localllama") if folder and os.access(folder, os.W_OK) else None


def _short(folder: Path) -> Path:
    """Return ``folder``, or one in the temporary folder when sockets in it had too long a name."""
    if len(os.fsencode(folder)) <= _LONGEST_RUNTIME_BYTES:
        return folder
    import hashlib
    import tempfile

    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"localllama-{digest}")

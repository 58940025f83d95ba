"""Every exception a user can meet; front ends map the classes, nobody maps texts.

    LocalLlamaError
    ├── UsageProblem                the request itself is wrong
    │   ├── InvalidName             a model name that cannot be a name
    │   ├── InvalidConfig           config.toml, models.toml or the environment
    │   └── InvalidParameter        a sampling or load parameter
    ├── NotFound
    │   ├── ModelNotFound           neither installed nor known
    │   ├── ChatNotFound            no saved chat of that number
    │   └── RemoteNotFound          the source has no such repository, tag or file
    ├── NetworkError                the other side could not be reached or would not answer
    │   ├── Offline                 refused because of --offline
    │   ├── AccessDenied            401: no token or a wrong one
    │   ├── Gated                   403: the owner must grant access first
    │   ├── RateLimited             429 for longer than we waited
    │   ├── ServerFailed            5xx for longer than we retried
    │   └── ConnectionLost          refused, reset, stalled, unresolved
    ├── BadFile                     what we have is not a model we can use
    │   ├── ChecksumMismatch        size or sha256 differ from what the source promised
    │   ├── InvalidGGUF             cut, or with impossible counts, lengths or types
    │   ├── UnsupportedFile         sound, but of a kind this program does not run
    │   └── InvalidTemplate         a chat template that does not parse, render or end
    ├── DoesNotFit                  needs more memory than there is (needed, available)
    │   └── NotEnoughDisk           needs more disk than is free
    ├── StoreError                  the model store cannot be read or written
    │   └── DiskFull                the disk filled up while writing
    ├── HistoryError                the saved chats cannot be read or written
    └── EngineError                 a loaded model could not do it
        ├── ContextFull             the prompt is longer than the context (needed, available)
        └── WorkerDied              the process that held the model is gone

A message says what happened in the user's words, a hint says what to do about it.
Cancelling is not an error. Any other exception is a bug.
"""

from __future__ import annotations


class LocalLlamaError(Exception):
    """Base of everything a user can meet: ``message`` tells, ``hint`` helps, ``code`` is stable."""

    code = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageProblem(LocalLlamaError):
    """The request itself is wrong."""

    code = "usage"


class InvalidName(UsageProblem):
    """A text that cannot be a model name."""

    code = "invalid_name"


class InvalidConfig(UsageProblem):
    """A mistake in config.toml, models.toml or an environment variable."""

    code = "invalid_config"


class InvalidParameter(UsageProblem):
    """A sampling or load parameter out of its range or of the wrong type."""

    code = "invalid_parameter"


class NotFound(LocalLlamaError):
    """Something that was asked for does not exist."""

    code = "not_found"


class ModelNotFound(NotFound):
    """A model that is neither installed nor known; ``suggestions`` are near misses."""

    code = "model_not_found"

    def __init__(self, message: str, hint: str = "", suggestions: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.suggestions = suggestions


class ChatNotFound(NotFound):
    """No saved chat has that number, or it was deleted."""

    code = "chat_not_found"


class RemoteNotFound(NotFound):
    """The source answered, and has no such repository, tag or file."""

    code = "remote_not_found"


class NetworkError(LocalLlamaError):
    """The other side could not be reached or would not answer."""

    code = "network"


class Offline(NetworkError):
    """The network was needed and ``--offline`` forbids it."""

    code = "offline"


class AccessDenied(NetworkError):
    """401: the source wants a token, or does not accept the one it got."""

    code = "access_denied"


class Gated(NetworkError):
    """403: the owner of the repository must grant access first; ``page`` is where to ask."""

    code = "gated"

    def __init__(self, message: str, hint: str = "", page: str = "") -> None:
        super().__init__(message, hint)
        self.page = page


class RateLimited(NetworkError):
    """429 for longer than we were willing to wait."""

    code = "rate_limited"


class ServerFailed(NetworkError):
    """The server failed (5xx, or an answer that makes no sense) more often than we retried."""

    code = "server_failed"


class ConnectionLost(NetworkError):
    """Refused, reset, stalled or unresolved for longer than we retried."""

    code = "connection_lost"


class BadFile(LocalLlamaError):
    """A file that is not a model we can use; ``path`` names it where there is one."""

    code = "bad_file"

    def __init__(self, message: str, hint: str = "", path: str = "") -> None:
        super().__init__(message, hint)
        self.path = path


class ChecksumMismatch(BadFile):
    """Size or sha256 differ from what the source promised."""

    code = "checksum_mismatch"


class InvalidGGUF(BadFile):
    """A GGUF that is cut or has impossible counts, lengths or types."""

    code = "invalid_gguf"


class UnsupportedFile(BadFile):
    """A sound file of a kind, version or architecture that this program does not run."""

    code = "unsupported_file"


class InvalidTemplate(BadFile):
    """A chat template that does not parse, fails to render, or does not end in time."""

    code = "invalid_template"


class DoesNotFit(LocalLlamaError):
    """More memory is needed than there is; both figures in bytes."""

    code = "does_not_fit"

    def __init__(
        self, message: str, hint: str = "", *, needed_bytes: int = 0, available_bytes: int = 0
    ) -> None:
        super().__init__(message, hint)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class NotEnoughDisk(DoesNotFit):
    """More disk is needed than is free; nothing was written."""

    code = "not_enough_disk"


class StoreError(LocalLlamaError):
    """The model store cannot be read or written."""

    code = "store"


class DiskFull(StoreError):
    """The disk filled up while writing; what was written so far is kept."""

    code = "disk_full"


class HistoryError(LocalLlamaError):
    """The saved chats cannot be read or written."""

    code = "history"


class EngineError(LocalLlamaError):
    """A loaded model, or its process, could not do what was asked."""

    code = "engine"


class ContextFull(EngineError):
    """The prompt is longer than the context; both figures in tokens."""

    code = "context_full"

    def __init__(
        self, message: str, hint: str = "", *, needed_tokens: int = 0, available_tokens: int = 0
    ) -> None:
        super().__init__(message, hint)
        self.needed_tokens = needed_tokens
        self.available_tokens = available_tokens


class WorkerDied(EngineError):
    """The process that held the model is gone; ``log`` holds its last lines."""

    code = "worker_died"

    def __init__(self, message: str, hint: str = "", log: str = "") -> None:
        super().__init__(message, hint)
        self.log = log

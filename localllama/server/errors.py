"""What goes wrong as HTTP says it: a status for each class, a body in each API's own words."""

from __future__ import annotations

from typing import Any

from localllama import errors
from localllama.errors import InvalidParameter, LocalLlamaError

OPENAI = "/v1/"
ANTHROPIC = "/v1/messages"


class Refused(LocalLlamaError):
    """The request is not let in: a foreign Host or Origin, or something this server forbids."""

    code = "forbidden"


class KeyNeeded(LocalLlamaError):
    """No API key, or none that this server knows."""

    code = "unauthorized"


class TooLarge(LocalLlamaError):
    """The request has more bytes than this server takes."""

    code = "too_large"


class TooSlow(LocalLlamaError):
    """The request did not arrive in time."""

    code = "too_slow"


class Busy(LocalLlamaError):
    """As many requests wait as are allowed to."""

    code = "busy"


class Unsupported(InvalidParameter):
    """A parameter of the API that this server does not have."""

    code = "unsupported_parameter"

    def __init__(self, message: str, hint: str = "", *, parameter: str = "") -> None:
        super().__init__(message, hint)
        self.parameter = parameter


class Ending(LocalLlamaError):
    """The server ends, and what still runs cannot be waited for."""

    code = "ending"

    def __init__(self, message: str = "the server was stopped", hint: str = "") -> None:
        super().__init__(message, hint)


class NoSuchPage(LocalLlamaError):
    """The path is none of this server's."""

    code = "not_found"


class WrongMethod(LocalLlamaError):
    """The path is there, for another method."""

    code = "method_not_allowed"


STATUSES: tuple[tuple[type[LocalLlamaError], int], ...] = (
    (KeyNeeded, 401),
    (Refused, 403),
    (NoSuchPage, 404),
    (WrongMethod, 405),
    (TooSlow, 408),
    (TooLarge, 413),
    (Busy, 503),
    (Ending, 503),
    (errors.UsageProblem, 400),
    (errors.NotFound, 404),
    (errors.Gated, 403),
    (errors.RateLimited, 429),
    (errors.NetworkError, 502),
    (errors.BadFile, 422),
    (errors.DoesNotFit, 507),
    (errors.DiskFull, 507),
    (errors.ContextFull, 400),
    (errors.WorkerDied, 503),
    (LocalLlamaError, 500),
)

# OpenAI's clients tell these apart by ``code``.
_OPENAI_CODES = {
    "context_full": "context_length_exceeded",
    "unauthorized": "invalid_api_key",
}
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def status(error: LocalLlamaError) -> int:
    """Return the HTTP status that stands for this error."""
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def headers(error: LocalLlamaError) -> dict[str, str]:
    """Return what a client should know beside the status."""
    if isinstance(error, Busy):
        return {"Retry-After": "1"}
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, KeyNeeded) else {}


def body(error: LocalLlamaError, path: str) -> dict[str, Any]:
    """Return the error in the words of the API that ``path`` belongs to."""
    code, hint = status(error), error.hint.replace("--ctx", "num_ctx")  # the API's word for it
    if not path.startswith(OPENAI):
        # Clients know these messages, so the hint stays apart.
        return {"error": error.message} | ({"hint": hint} if hint else {})
    message = f"{error.message} ({hint})" if hint else error.message
    if path.startswith(ANTHROPIC):
        kind = _ANTHROPIC_TYPES.get(code, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}
    kind = "server_error" if code >= 500 else _OPENAI_TYPES.get(code, "invalid_request_error")
    known = _OPENAI_CODES.get(error.code, error.code)
    parameter = error.parameter if isinstance(error, Unsupported) else None
    return {"error": {"message": message, "type": kind, "param": parameter, "code": known}}

"""What a server says no with. Each kind carries the HTTP status that says the same."""

from loralab.errors import LoralabError

__all__ = [
    "BadRequest",
    "Conflict",
    "Forbidden",
    "Full",
    "Overloaded",
    "ServingError",
    "TooLarge",
    "Unavailable",
    "UnknownModel",
]


class ServingError(LoralabError, RuntimeError):
    """A request cannot be served. This kind itself: the server failed."""

    status = 500
    """The HTTP status."""
    kind = "server_error"
    """OpenAI's type of error."""
    code = "internal_error"
    retry_after: float | None = None
    """After how many seconds to try again, where that may help."""


class BadRequest(ServingError):
    """What was asked for makes no sense."""

    status, kind, code = 400, "invalid_request_error", "invalid_request"


class Forbidden(ServingError):
    """Who asks may not do this."""

    status, kind, code = 403, "permission_error", "forbidden"


class UnknownModel(ServingError):
    """There is no base and no adapter of that name."""

    status, kind, code = 404, "invalid_request_error", "model_not_found"


class Conflict(ServingError):
    """The name is taken, or the adapter is in use."""

    status, kind, code = 409, "invalid_request_error", "conflict"


class TooLarge(ServingError):
    """A file or a text is larger than the server allows."""

    status, kind, code = 413, "invalid_request_error", "too_large"


class Overloaded(ServingError):
    """There is too much waiting already."""

    status, kind, code = 429, "rate_limit_error", "overloaded"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(ServingError):
    """The server is stopping, or its engine is dead."""

    status, kind, code = 503, "server_error", "unavailable"


class Full(ServingError):
    """The memory for adapters is taken by what is pinned or in use."""

    status, kind, code = 507, "server_error", "out_of_memory"

"""Every error that suffice raises, as one tree.

SufficeError
├── ConfigError                a file, key or flag is wrong: names the field and the remedy (exit code 2)
├── UsageError                 a command or function was called wrongly (exit code 2)
├── JobError                   a command ran and failed (exit code 1)
├── RequestError               the client's request is refused (HTTP 4xx), never sent upstream
│   ├── BadRequestError            400 bad JSON, missing or wrong-typed field
│   ├── UnauthorizedError          401 no key or an unknown one
│   ├── ForbiddenError             403 the key may not do this
│   ├── NotFoundError              404 unknown path, decision, ...
│   │   └── ModelNotFoundError         404 unknown model or route; offers the nearest known names
│   ├── MethodNotAllowedError      405
│   ├── PayloadTooLargeError       413
│   ├── UnprocessableError         422 well-formed but out of range
│   └── RateLimitedError           429 our own limits
│       └── BudgetExceededError        429 the route's daily budget does not cover the request
├── NoEligibleModelError       no model can serve this query now (503), or ever (400): a reason per model
├── UpstreamError              one attempt at one model failed; classified by status first
├── AllAttemptsFailedError     every attempt of a plan failed; carries the attempts
├── StoreError                 the store cannot be read or written
├── TableError                 an outcomes or queries table is unusable: names file, column, row
└── ArtifactError              a trained artifact is missing, changed or of another schema

Errors carry fields, not only prose, so that every surface can render them in its own shape.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from suffice.types import Attempt, Decision

UpstreamKind = Literal[
    "connect",  # no connection could be made
    "timeout_connect",
    "timeout_first_chunk",
    "timeout_idle",
    "timeout_total",
    "rate_limit",  # 429
    "overloaded",  # 503, 529
    "server",  # other 5xx
    "auth",  # 401, 403
    "not_found",  # 404: the upstream does not know this model
    "bad_request",  # other 4xx: the request itself is at fault
    "context_length",  # the prompt does not fit the upstream's window
    "content_filter",
    "malformed",  # 200 with a body that is not the dialect's
    "cut",  # the stream ended before its terminator
    "cancelled",  # client disconnected
]


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The known names closest to `name`.

    Args:
        name: an unknown name.
        known: what there is.
        n: at most this many.

    Returns:
        Known names, best first.

    >>> nearest("gpt4o", ["gpt-4o", "claude"])
    ['gpt-4o']
    """
    names = list(known)
    folded: dict[str, str] = {}
    for k in names:
        folded.setdefault(k.lower(), k)
        folded.setdefault(k.rsplit("/", 1)[-1].lower(), k)
    hits = difflib.get_close_matches(name.lower(), list(folded), n=2 * n, cutoff=0.5)
    return list(dict.fromkeys(folded[h] for h in hits))[:n]


class SufficeError(Exception):
    """Base of every error that suffice raises on purpose.

    Attributes:
        message: what is wrong.
        remedy: what would be right.
    """

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}" if self.remedy else self.message


class ConfigError(SufficeError):
    """A configuration value is wrong.

    Attributes:
        field: a dotted path such as `routes.auto.objective`.
        source: the file.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        remedy: str | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.field = field
        self.source = source

    def __str__(self) -> str:
        where = ": ".join(p for p in (self.source, self.field) if p)
        text = super().__str__()
        return f"{where}: {text}" if where else text


class UsageError(SufficeError):
    """A command or function was called with wrong arguments."""


class JobError(SufficeError):
    """A command ran and failed."""


class RequestError(SufficeError):
    """A client's request is refused before anything is called.

    Attributes:
        status: of HTTP.
        type, code, param: the fields of OpenAI's error object.
        retry_after_s: when it makes sense to try again.
    """

    status: ClassVar[int] = 400
    type: ClassVar[str] = "invalid_request_error"
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        remedy: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.param = param
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s


class BadRequestError(RequestError):
    """The body is not valid: bad JSON, a missing or a wrong-typed field."""

    status = 400


class UnauthorizedError(RequestError):
    """The client's key is missing or unknown."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class ForbiddenError(RequestError):
    """The client's key may not do this."""

    status = 403
    type = "permission_error"
    default_code = "forbidden"


class NotFoundError(RequestError):
    """What is asked for does not exist."""

    status = 404
    default_code = "not_found"


class ModelNotFoundError(NotFoundError):
    """The model or route does not exist; `nearest` has close names."""

    default_code = "model_not_found"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = list(known)
        close = nearest(name, names) or names[:3]
        remedy = f"Nearest known: {', '.join(close)}." if close else "GET /v1/models lists them."
        super().__init__(
            f"There is no model or route named {name!r}.", param="model", remedy=remedy
        )
        self.name = name
        self.nearest = close


class MethodNotAllowedError(RequestError):
    """The path exists, but not for this method."""

    status = 405
    default_code = "method_not_allowed"


class PayloadTooLargeError(RequestError):
    """The body is too large."""

    status = 413
    default_code = "request_too_large"


class UnprocessableError(RequestError):
    """A field is well-formed but out of range."""

    status = 422
    default_code = "out_of_range"


class RateLimitedError(RequestError):
    """One of our own limits is reached."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class BudgetExceededError(RateLimitedError):
    """The rest of a route's daily budget covers no model.

    Attributes:
        final: it is spent until the next day; False = it is only reserved by calls in flight.
    """

    default_code = "budget_exceeded"

    def __init__(self, message: str, *, retry_after_s: float, final: bool) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.final = final


class NoEligibleModelError(SufficeError):
    """No model of the route can take this query.

    Attributes:
        reasons: why each model was left out.
        permanent: waiting would not help, so the status is 400, else 503.
    """

    def __init__(
        self, message: str, *, reasons: dict[str, str], permanent: bool, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.reasons = reasons
        self.permanent = permanent
        self.param = param
        self.status = 400 if permanent else 503
        self.retry_after_s: float | None = None if permanent else 5.0


class UpstreamError(SufficeError):
    """One attempt at one model failed.

    Attributes:
        kind: see `UpstreamKind`.
        status: the upstream's HTTP status; None = there was none.
        provider, model: which were called.
        retry_after_s: how long the upstream asks to wait.
        body: of the upstream's response, at most 4 KiB.
        param, code: of the upstream's error object.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: UpstreamKind,
        status: int | None = None,
        provider: str = "",
        model: str = "",
        retry_after_s: float | None = None,
        body: bytes = b"",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind: UpstreamKind = kind
        self.status = status
        self.provider = provider
        self.model = model
        self.retry_after_s = retry_after_s
        self.body = body[:4096]
        self.param = param
        self.code = code


class AllAttemptsFailedError(SufficeError):
    """Every attempt of the plan failed.

    Attributes:
        last: the error to show.
        attempts: what was tried.
        decision, overhead_ms: of the request; the router attaches them.
    """

    def __init__(self, message: str, *, last: UpstreamError, attempts: tuple[Attempt, ...]) -> None:
        super().__init__(message)
        self.last = last
        self.attempts = attempts
        self.decision: Decision | None = None
        self.overhead_ms = 0.0


class StoreError(SufficeError):
    """The store cannot be opened, read or written."""


class TableError(SufficeError):
    """A table of queries or outcomes is unusable.

    Attributes:
        path, column, row: where.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        column: str | None = None,
        row: int | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.path = path
        self.column = column
        self.row = row

    def __str__(self) -> str:
        where = ", ".join(
            p
            for p in (
                self.path,
                f"column {self.column!r}" if self.column else None,
                f"row {self.row}" if self.row is not None else None,
            )
            if p
        )
        text = super().__str__()
        return f"{where}: {text}" if where else text


class ArtifactError(SufficeError):
    """A trained artifact is missing, changed, or of a schema that this version cannot read."""

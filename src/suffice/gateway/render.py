"""Our answers as bytes: error objects, response headers, server-sent events."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import msgspec

from suffice.errors import (
    AllAttemptsFailedError,
    BudgetExceededError,
    NoEligibleModelError,
    RequestError,
    StoreError,
    SufficeError,
    UpstreamError,
)

if TYPE_CHECKING:
    from suffice.routing.response import RoutedResponse
    from suffice.types import Decision

Headers = list[tuple[bytes, bytes]]

_encode = msgspec.json.encode

JSON = (b"content-type", b"application/json")
SSE: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"
KEEPALIVE = b": keepalive\n\n"

# Status and code of the answer to a client whose upstream failed, by the kind of failure. Kinds that
# are not the client's fault never show the upstream's own 401 or 404: its key and model are fine.
_UPSTREAM_STATUS: dict[str, tuple[int, str]] = {
    "connect": (502, "upstream_unreachable"),
    "timeout_connect": (504, "upstream_timeout"),
    "timeout_first_chunk": (504, "upstream_timeout"),
    "timeout_idle": (504, "upstream_timeout"),
    "timeout_total": (504, "upstream_timeout"),
    "rate_limit": (429, "rate_limit_exceeded"),
    "overloaded": (503, "upstream_overloaded"),
    "server": (502, "upstream_error"),
    "auth": (502, "upstream_auth"),
    "not_found": (502, "upstream_model_not_found"),
    "bad_request": (400, "upstream_bad_request"),
    "context_length": (400, "context_length_exceeded"),
    "content_filter": (400, "content_filter"),
    "malformed": (502, "upstream_malformed"),
    "cut": (502, "upstream_cut"),
    "cancelled": (499, "client_closed_request"),
}


_OPENAI_TYPE = {
    400: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


class ErrorResponse(msgspec.Struct, frozen=True):
    """An error as a client sees it, before it takes the shape of a dialect.

    Attributes:
        status: of HTTP.
        message: for people.
        type: the dialect's class of errors.
        code: for programs.
        param: the field at fault.
        retry_after_s: when it makes sense to try again.
        retries_exhausted: retries or a budget are used up, so the client's SDK must not try again.
    """

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    retries_exhausted: bool = False


def to_error_response(error: BaseException) -> ErrorResponse:
    """Any exception as an error for clients.

    Args:
        error: one of ours, or any other.

    Returns:
        The error. An exception that is not ours becomes a 500 without its text, which may hold a
        secret; its traceback goes to the log.
    """
    if isinstance(error, RequestError):
        exhausted = isinstance(error, BudgetExceededError) and error.final
        return ErrorResponse(
            error.status,
            str(error),
            error.type,
            error.code,
            error.param,
            error.retry_after_s,
            exhausted,
        )
    if isinstance(error, AllAttemptsFailedError):
        last = _upstream_error(error.last)
        exhausted = last.status >= 429
        return msgspec.structs.replace(last, message=str(error), retries_exhausted=exhausted)
    if isinstance(error, UpstreamError):
        return _upstream_error(error)
    if isinstance(error, NoEligibleModelError):
        kind = "invalid_request_error" if error.permanent else "service_unavailable"
        return ErrorResponse(
            error.status, str(error), kind, "no_candidate", error.param, error.retry_after_s
        )
    if isinstance(error, StoreError):
        return ErrorResponse(503, str(error), "api_error", "store_unavailable", None, 5.0)
    message = (
        str(error)
        if isinstance(error, SufficeError)
        else "An internal error occurred; the log has its traceback."
    )
    return ErrorResponse(500, message, "api_error", "internal_error")


def _upstream_error(error: UpstreamError) -> ErrorResponse:
    status, code = _UPSTREAM_STATUS[error.kind]
    if error.kind == "bad_request" and error.status in (400, 413, 415, 422):
        status = error.status
    wait_s = error.retry_after_s
    if wait_s is None and status in (429, 503):
        wait_s = 5.0
    return ErrorResponse(
        status,
        str(error),
        _OPENAI_TYPE.get(status, "api_error"),
        error.code or code,
        error.param,
        wait_s,
        retries_exhausted=status >= 429,
    )


def openai_error(f: ErrorResponse) -> bytes:
    """OpenAI's error object."""
    return _encode(
        {"error": {"message": f.message, "type": f.type, "param": f.param, "code": f.code}}
    )


_ANTHROPIC_TYPE = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def anthropic_error(f: ErrorResponse) -> bytes:
    """Anthropic's error object."""
    kind = _ANTHROPIC_TYPE.get(f.status, "api_error")
    return _encode({"type": "error", "error": {"type": kind, "message": f.message}})


def error_body(f: ErrorResponse, path: str) -> bytes:
    """An error in the shape of the dialect that owns `path`."""
    return anthropic_error(f) if path.startswith("/v1/messages") else openai_error(f)


def error_headers(f: ErrorResponse, request_id: str) -> Headers:
    """The headers of an error."""
    headers: Headers = [JSON, (b"x-request-id", request_id.encode("latin-1", "replace"))]
    if f.retry_after_s is not None:
        # `retry-after` is whole seconds by RFC 9110; SDKs prefer the exact `-ms` form.
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(f.retry_after_s))))
        headers.append((b"retry-after-ms", b"%d" % max(0, round(f.retry_after_s * 1000))))
    if f.retries_exhausted:
        headers.append((b"x-should-retry", b"false"))
    return headers


def sse_error(f: ErrorResponse) -> bytes:
    """An error as an event of a stream."""
    return b"data: " + openai_error(f) + b"\n\n"


def sanitize_header_value(text: str, limit: int = 300) -> bytes:
    """`text` as one header value: printable ASCII, no line ends, at most `limit` bytes."""
    if not text.isascii() or not text.isprintable():
        text = "".join(c if " " <= c <= "~" else "?" for c in text)
    return text[:limit].encode("ascii")


# Names of models and routes: few, and the same in every response.
_encode_name = functools.lru_cache(maxsize=4096)(sanitize_header_value)


def format_usd(value: float | None) -> bytes:
    """An amount without exponent or needless zeros; `unknown` if a price is unknown."""
    if value is None:
        return b"unknown"
    return (b"%.9f" % value).rstrip(b"0").rstrip(b".")


def decision_headers(
    request_id: bytes, response: RoutedResponse, model: str, cost: bytes
) -> Headers:
    """The headers of a response that a model answered."""
    attempts = len(response.attempts)
    return _headers(request_id, response.decision, model, attempts, cost, response.overhead_ms)


def failure_headers(error: AllAttemptsFailedError) -> Headers:
    """The headers of a request whose attempts all failed, without its id."""
    decision = error.decision
    if decision is None:
        return []
    model = error.attempts[-1].model if error.attempts else decision.model
    return _headers(b"", decision, model, len(error.attempts), b"0", error.overhead_ms)[1:]


def _headers(
    request_id: bytes,
    decision: Decision,
    model: str,
    attempts: int,
    cost: bytes,
    overhead_ms: float,
) -> Headers:
    return [
        (b"x-request-id", request_id),
        (b"x-suffice-model", _encode_name(model)),
        (b"x-suffice-route", _encode_name(decision.route)),
        (b"x-suffice-decision-id", decision.id.encode()),
        (b"x-suffice-reason", sanitize_header_value(decision.reason)),
        (b"x-suffice-attempts", b"%d" % attempts),
        (b"x-suffice-cost-usd", cost),
        (b"x-suffice-overhead-ms", b"%.3f" % overhead_ms),
    ]


def to_json(value: object) -> bytes:
    """`value` as JSON."""
    return _encode(value)

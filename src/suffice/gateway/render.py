"""Our answers as bytes: error objects, response headers, server-sent events."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

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

# What a client is told when an upstream failed, by the kind of failure. Kinds that are not the
# client's fault never show the upstream's own 401 or 404: the client's key and model are fine.
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
    """An error as a client sees it, before it takes the shape of a dialect."""

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    spent: bool = False  # retries or a budget are used up: the SDK must not try again by itself


def failure(error: BaseException) -> ErrorResponse:
    """Any exception as a Failure. What we did not foresee is a 500 without its text: that text may
    hold a secret; the traceback goes to the log."""
    if isinstance(error, RequestError):
        return ErrorResponse(
            error.status,
            str(error),
            error.type,
            error.code,
            error.param,
            error.retry_after_s,
            spent=isinstance(error, BudgetExceededError) and error.final,
        )
    if isinstance(error, NoEligibleModelError):
        kind = "invalid_request_error" if error.permanent else "service_unavailable"
        return ErrorResponse(
            error.status, str(error), kind, "no_candidate", error.param, error.retry_after_s
        )
    if isinstance(error, AllAttemptsFailedError):
        inner = failure(error.last)
        return ErrorResponse(
            inner.status,
            str(error),
            inner.type,
            inner.code,
            inner.param,
            inner.retry_after_s,
            spent=inner.status >= 429,
        )
    if isinstance(error, UpstreamError):
        status, code = _UPSTREAM_STATUS[error.kind]
        if error.kind == "bad_request" and error.status in (400, 413, 415, 422):
            status = error.status
        wait = error.retry_after_s
        if wait is None and status in (429, 503):
            wait = 5.0
        return ErrorResponse(
            status,
            str(error),
            _OPENAI_TYPE.get(status, "api_error"),
            error.code or code,
            error.param,
            wait,
            spent=status >= 429,
        )
    if isinstance(error, StoreError):
        return ErrorResponse(503, str(error), "api_error", "store_unavailable", None, 5.0)
    if isinstance(error, SufficeError):
        return ErrorResponse(500, str(error), "api_error", "internal_error")
    return ErrorResponse(
        500, "An internal error occurred; the log has its traceback.", "api_error", "internal_error"
    )


def openai_error(f: ErrorResponse) -> bytes:
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
    kind = _ANTHROPIC_TYPE.get(f.status, "api_error")
    return _encode({"type": "error", "error": {"type": kind, "message": f.message}})


def error_body(f: ErrorResponse, path: str) -> bytes:
    """In the shape of the dialect that owns `path`."""
    return anthropic_error(f) if path.startswith("/v1/messages") else openai_error(f)


def error_headers(f: ErrorResponse, request_id: str) -> Headers:
    headers: Headers = [JSON, (b"x-request-id", request_id.encode("latin-1", "replace"))]
    if f.retry_after_s is not None:
        # `retry-after` is whole seconds by RFC 9110; SDKs prefer the exact `-ms` form.
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(f.retry_after_s))))
        headers.append((b"retry-after-ms", b"%d" % max(0, round(f.retry_after_s * 1000))))
    if f.spent:
        headers.append((b"x-should-retry", b"false"))
    return headers


def sse_error(f: ErrorResponse) -> bytes:
    return b"data: " + openai_error(f) + b"\n\n"


def header_text(text: str, limit: int = 300) -> bytes:
    """`text` as one header value: printable ASCII, no line ends, at most `limit` bytes."""
    if not text.isascii() or not text.isprintable():
        text = "".join(c if " " <= c <= "~" else "?" for c in text)
    return text[:limit].encode("ascii")


def usd(value: float | None) -> bytes:
    """An amount without exponent or needless zeros; `unknown` where a price is unknown."""
    if value is None:
        return b"unknown"
    text = f"{value:.9f}".rstrip("0").rstrip(".")
    return text.encode()


def decision_headers(
    request_id: bytes,
    decision: Decision,
    model: str,
    attempts: int,
    cost: bytes,
    overhead_ms: float,
) -> Headers:
    return [
        (b"x-request-id", request_id),
        (b"x-suffice-model", header_text(model)),
        (b"x-suffice-route", header_text(decision.route)),
        (b"x-suffice-decision-id", decision.id.encode()),
        (b"x-suffice-reason", header_text(decision.reason)),
        (b"x-suffice-attempts", b"%d" % attempts),
        (b"x-suffice-cost-usd", cost),
        (b"x-suffice-overhead-ms", b"%.3f" % overhead_ms),
    ]


def to_json(value: Any) -> bytes:
    return _encode(value)

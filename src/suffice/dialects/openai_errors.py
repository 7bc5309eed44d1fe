"""Errors of OpenAI-compatible upstreams: their many shapes, classified by status before message."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable

import msgspec

from suffice.errors import UpstreamError, UpstreamKind
from suffice.types import Deployment

BROKEN_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_MAX_RAW_TEXT = 300  # characters shown of a body that is not an error object
_MAX_MESSAGE = 1000

_KIND_OF_STATUS: dict[int, UpstreamKind] = {
    401: "auth",
    403: "auth",
    402: "auth",  # no credit left: a retry helps as little as with a wrong key
    404: "not_found",
    408: "timeout_total",
    429: "rate_limit",
    503: "overloaded",
    504: "timeout_total",
    529: "overloaded",
}
_CONTEXT_LENGTH_WORDS = ("context length", "context_length", "maximum context", "too many tokens")

_decode = msgspec.json.Decoder().decode


class ErrorBody(msgspec.Struct, frozen=True):
    """What an error body says."""

    message: str
    code: str | None = None
    param: str | None = None
    type: str = ""


def parse_error_body(body: bytes) -> ErrorBody:
    """Read an error in any of the shapes that providers use."""
    try:
        value = _decode(body)
    except BROKEN_JSON:
        return ErrorBody(body[:_MAX_RAW_TEXT].decode("utf-8", "replace").strip())
    if isinstance(value, list) and value:  # Google wraps its error in a list
        value = value[0]
    if not isinstance(value, dict):
        return ErrorBody(str(value)[:_MAX_RAW_TEXT])
    error = value.get("error", value)
    if isinstance(error, str):
        return ErrorBody(error[:_MAX_MESSAGE])
    if not isinstance(error, dict):
        error = value
    message = error.get("message") or error.get("detail") or error.get("msg") or ""
    if not isinstance(message, str):
        message = msgspec.json.encode(message).decode()
    code, param, kind = error.get("code"), error.get("param"), error.get("type")
    return ErrorBody(
        message[:_MAX_MESSAGE],
        code if isinstance(code, str) else None,
        param if isinstance(param, str) else None,
        kind if isinstance(kind, str) else "",
    )


def error_kind(status: int, error: ErrorBody) -> UpstreamKind:
    """Classify a failure by its status, and by its message if the status says too little."""
    kind = _KIND_OF_STATUS.get(status)
    if kind is not None:
        return kind
    if status >= 500:
        return "server"
    if status < 400:
        return "malformed"  # a redirect: upstreams are never followed elsewhere
    text = f"{error.code or ''} {error.type} {error.message}".lower()
    if any(words in text for words in _CONTEXT_LENGTH_WORDS):
        return "context_length"
    if "content_filter" in text or "content_policy" in text:
        return "content_filter"
    return "bad_request"


def status_error(
    status: int, header: Callable[[str], str | None], body: bytes, target: Deployment
) -> UpstreamError:
    """The error that an HTTP status other than 2xx means."""
    error = parse_error_body(body)
    message = error.message or f"HTTP {status} without a message"
    return UpstreamError(
        f"{target.model.name} answered {status}: {message}",
        kind=error_kind(status, error),
        status=status,
        provider=target.provider.name,
        model=target.model.name,
        retry_after_s=retry_after_s(header),
        body=body,
        param=error.param,
        code=error.code,
    )


def stream_error(chunk_error: object, payload: bytes, target: Deployment) -> UpstreamError:
    """The error that an error event in a stream means."""
    error = parse_error_body(payload)
    status = chunk_error.get("code") if isinstance(chunk_error, dict) else None
    return UpstreamError(
        f"{target.model.name} failed in its stream: {error.message}",
        kind=error_kind(status if isinstance(status, int) else 500, error),
        provider=target.provider.name,
        model=target.model.name,
        body=payload,
        param=error.param,
        code=error.code,
    )


def malformed_error(target: Deployment, reason: str, body: bytes) -> UpstreamError:
    """The error of a reply with status 200 that is not a chat completion."""
    return UpstreamError(
        f"{target.model.name} answered 200 with a body that is not a chat completion: {reason}.",
        kind="malformed",
        status=200,
        provider=target.provider.name,
        model=target.model.name,
        body=body,
    )


def retry_after_s(header: Callable[[str], str | None], now_s: float | None = None) -> float | None:
    """Seconds to wait by `retry-after-ms`, else `retry-after` (seconds or an HTTP date)."""
    milliseconds = _parse_seconds(header("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = header("retry-after")
    seconds = _parse_seconds(value)
    if value is None or seconds is not None:
        return seconds
    try:
        date_s = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, date_s - (time.time() if now_s is None else now_s))


def _parse_seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None

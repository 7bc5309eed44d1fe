"""The OpenAI chat completions dialect, which most providers and local servers speak.

Inbound and outbound dialect are equal, so the body passes through byte for byte but for `model`
and, on streams, `stream_options.include_usage`.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from suffice.dialects.base import Event, ParsedReply
from suffice.errors import UpstreamError, UpstreamKind
from suffice.types import Deployment, Usage

name = "openai"

_encode = msgspec.json.encode
_Raw = msgspec.Raw
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek's name for cached tokens


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Delta(msgspec.Struct):
    content: Any = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None


class _ChunkChoice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_ChunkChoice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_any = msgspec.json.Decoder().decode


def _usage(u: _Usage | None) -> Usage | None:
    if u is None or (u.prompt_tokens is None and u.completion_tokens is None):
        return None
    cached = (u.prompt_tokens_details and u.prompt_tokens_details.cached_tokens) or 0
    details = u.completion_tokens_details
    prompt = max(0, u.prompt_tokens or 0)
    return Usage(
        input_tokens=prompt,
        output_tokens=max(0, u.completion_tokens or 0),
        cached_input_tokens=min(prompt, max(0, cached or u.prompt_cache_hit_tokens or 0)),
        reasoning_tokens=max(0, (details and details.reasoning_tokens) or 0),
    )


_NEWER_NAME = ("api.openai.com", ".openai.azure.com")
_INCLUDE = _Raw(b'{"include_usage":true}')
_TRUE = _Raw(b"true")


class OpenAIChat:
    """The dialect. Keeps the static part of each target's request, nothing else."""

    name = name

    def __init__(self) -> None:
        # target name -> url, headers, model as JSON. Bounded by the number of targets.
        self._static: dict[
            str, tuple[Deployment, str, tuple[tuple[str, str], ...], msgspec.Raw]
        ] = {}

    def _prepare(
        self, target: Deployment
    ) -> tuple[Deployment, str, tuple[tuple[str, str], ...], msgspec.Raw]:
        p = target.provider
        headers = [("content-type", "application/json"), *p.headers]
        if p.api_key and p.auth == "bearer":
            headers.append(("authorization", f"Bearer {p.api_key}"))
        elif p.api_key and p.auth in ("x-api-key", "api-key"):
            headers.append((p.auth, p.api_key))
        row = (
            target,
            p.base_url.rstrip("/") + "/chat/completions",
            tuple(headers),
            _Raw(_encode(target.model.upstream)),
        )
        self._static[target.model.name] = row
        return row

    def build_request(
        self, fields: dict[str, msgspec.Raw], target: Deployment, *, stream: bool
    ) -> tuple[str, Sequence[tuple[str, str]], bytes]:
        row = self._static.get(target.model.name)
        if row is None or row[0] is not target:
            row = self._prepare(target)
        body = fields.copy()
        body["model"] = row[3]
        if stream:
            options = body.get("stream_options")
            if options is None:
                body["stream_options"] = _INCLUDE
            else:
                own = _decode_fields(options) if bytes(options) != b"null" else {}
                own["include_usage"] = _TRUE
                body["stream_options"] = _Raw(_encode(own))
        return row[1], row[2], _encode(body)

    def with_max_tokens(
        self, fields: dict[str, msgspec.Raw], target: Deployment, output_tokens: int
    ) -> dict[str, msgspec.Raw]:
        # OpenAI's newer models refuse the old name, which all the others know.
        p = target.provider
        newer = p.name in ("openai", "azure") or any(h in p.base_url for h in _NEWER_NAME)
        name_ = "max_completion_tokens" if newer else "max_tokens"
        return {**fields, name_: _Raw(b"%d" % output_tokens)}

    def parse_reply(self, body: bytes, target: Deployment) -> ParsedReply:
        try:
            reply = _decode_reply(body)
            fields = _decode_fields(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _malformed(target, str(error), body) from None
        if not reply.choices:
            raise _malformed(target, "it holds no choices", body)
        fields["model"] = _Raw(_encode(target.model.name))
        return ParsedReply(_encode(fields), _usage(reply.usage), reply.choices[0].finish_reason)

    def classify_error(
        self, status: int, header: Callable[[str], str | None], body: bytes, target: Deployment
    ) -> UpstreamError:
        message, code, param, kind_text = _error_fields(body)
        kind = _kind(status, code or "", kind_text, message)
        shown = message or f"HTTP {status} without a message"
        return UpstreamError(
            f"{target.model.name} answered {status}: {shown}",
            kind=kind,
            status=status,
            provider=target.provider.name,
            model=target.model.name,
            retry_after_s=retry_after_s(header),
            body=body,
            param=param,
            code=code,
        )

    def stream_parser(self, target: Deployment) -> OpenAIStream:
        return OpenAIStream(target)


def retry_after_s(header: Callable[[str], str | None], now_s: float | None = None) -> float | None:
    """Seconds to wait by `retry-after-ms`, else `retry-after` (seconds or an HTTP date)."""
    exact = header("retry-after-ms")
    if exact is not None:
        seconds = _number(exact)
        if seconds is not None:
            return seconds / 1000
    given = header("retry-after")
    if given is None:
        return None
    seconds = _number(given)
    if seconds is not None:
        return seconds
    try:
        when = email.utils.parsedate_to_datetime(given).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, when - (time.time() if now_s is None else now_s))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None


def _malformed(target: Deployment, why: str, body: bytes) -> UpstreamError:
    return UpstreamError(
        f"{target.model.name} answered 200 with a body that is not a chat completion: {why}.",
        kind="malformed",
        status=200,
        provider=target.provider.name,
        model=target.model.name,
        body=body,
    )


def _error_fields(body: bytes) -> tuple[str, str | None, str | None, str]:
    """(message, code, param, type) from the error shapes that providers use."""
    try:
        found = _decode_any(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[:300].decode("utf-8", "replace").strip(), None, None, ""
    if isinstance(found, list) and found:  # Google wraps its error in a list
        found = found[0]
    if not isinstance(found, dict):
        return str(found)[:300], None, None, ""
    inner = found.get("error", found)
    if isinstance(inner, str):
        return inner[:1000], None, None, ""
    if not isinstance(inner, dict):
        inner = found
    message = inner.get("message") or inner.get("detail") or inner.get("msg") or ""
    code, param, kind = inner.get("code"), inner.get("param"), inner.get("type")
    return (
        (message if isinstance(message, str) else _encode(message).decode())[:1000],
        code if isinstance(code, str) else None,
        param if isinstance(param, str) else None,
        kind if isinstance(kind, str) else "",
    )


_BY_STATUS: dict[int, UpstreamKind] = {
    401: "auth",
    403: "auth",
    402: "auth",  # no credit left: as little use retrying as a bad key
    404: "not_found",
    408: "timeout_total",
    429: "rate_limit",
    503: "overloaded",
    504: "timeout_total",
    529: "overloaded",
}
_WINDOW_WORDS = ("context length", "context_length", "maximum context", "too many tokens")


def _kind(status: int, code: str, kind: str, message: str) -> UpstreamKind:
    by_status = _BY_STATUS.get(status)
    if by_status is not None:
        return by_status
    if status >= 500:
        return "server"
    if status < 400:
        return "malformed"  # a redirect: upstreams are never followed elsewhere
    said = f"{code} {kind} {message}".lower()
    if any(w in said for w in _WINDOW_WORDS):
        return "context_length"
    if "content_filter" in said or "content_policy" in said:
        return "content_filter"
    return "bad_request"


class OpenAIStream:
    """Server-sent events of a chat stream, as whole events whatever way the bytes are split.

    After the first content most events are forwarded without being decoded: a chunk is only looked
    into where its bytes say that it carries usage, a finish reason or an error.
    """

    __slots__ = (
        "_committed",
        "_model_new",
        "_model_old",
        "_rest",
        "_target",
        "error",
        "finish_reason",
        "finished",
        "usage",
    )

    def __init__(self, target: Deployment) -> None:
        self._target = target
        self._rest = b""
        self._committed = False
        self._model_old: bytes | None = None
        self._model_new = b'"model":' + _encode(target.model.name)
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.error: UpstreamError | None = None
        self.finished = False

    def feed(self, data: bytes) -> list[Event]:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if b"\r" in data:
            # A lone CR at the end may be half of a CRLF: wait for the other half.
            if data.endswith(b"\r"):
                self._rest = b"\r"
                data = data[:-1]
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        cut = data.rfind(b"\n\n")
        if cut < 0:
            self._rest = data + self._rest
            return []
        self._rest = data[cut + 2 :] + self._rest
        data = data[: cut + 2]
        if (
            self._committed
            and b'"usage":{' not in data
            and b'"usage": {' not in data
            and b'"finish_reason":"' not in data
            and b'"finish_reason": "' not in data
            and b"[DONE]" not in data
            and b'"error"' not in data
        ):
            return [Event(self._renamed(data), "content", data.count(b"\n\n"))]
        out: list[Event] = []
        for block in data.split(b"\n\n"):
            if block and not self.finished:
                self._one(block, out)
        return out

    def _one(self, block: bytes, out: list[Event]) -> None:
        block = block.lstrip(b"\xef\xbb\xbf\n")
        lines = [x[5:].removeprefix(b" ") for x in block.split(b"\n") if x.startswith(b"data:")]
        if not lines:
            return  # a comment or a bare event name: nothing to forward
        payload = lines[0] if len(lines) == 1 else b"\n".join(lines)
        if payload.strip() == b"[DONE]":
            self.finished = True
            out.append(Event(b"data: [DONE]\n\n", "done"))
            return
        try:
            chunk = _decode_chunk(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._fail(_malformed(self._target, f"a chunk cannot be read ({error})", payload), out)
            return
        if chunk.error is not None:
            message, code, param, kind = _error_fields(payload)
            status = chunk.error.get("code") if isinstance(chunk.error, dict) else None
            found = _kind(status if isinstance(status, int) else 500, code or "", kind, message)
            shown = f"{self._target.model.name} failed in its stream: {message}"
            self._fail(
                UpstreamError(
                    shown,
                    kind=found,
                    provider=self._target.provider.name,
                    model=self._target.model.name,
                    body=payload,
                    param=param,
                    code=code,
                ),
                out,
            )
            return
        usage = _usage(chunk.usage)
        if usage is not None:
            self.usage = usage
        raw = self._renamed(b"data: " + payload.replace(b"\n", b"") + b"\n\n")
        if not chunk.choices:
            out.append(Event(raw, "usage" if usage is not None else "preamble"))
            return
        content = False
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
                content = True
            d = choice.delta
            if d is not None and not content:
                content = bool(
                    d.content
                    or d.tool_calls
                    or d.refusal
                    or d.reasoning_content
                    or d.reasoning
                    or d.function_call
                    or d.audio
                )
        self._committed = self._committed or content
        out.append(Event(raw, "content" if content or self._committed else "preamble"))

    def _fail(self, error: UpstreamError, out: list[Event]) -> None:
        self.error = error
        self.finished = True
        out.append(Event(b"", "error"))

    def _renamed(self, data: bytes) -> bytes:
        """`data` with the catalog's name of the model. The bytes `"model":"` cannot stand inside a
        JSON string, where the quotes would be escaped."""
        old = self._model_old
        if old is None:
            start = data.find(b'"model":')
            if start < 0:
                return data
            quote = data.find(b'"', start + 8)
            end = data.find(b'"', quote + 1)
            if quote < 0 or end < 0 or data[start + 8 : quote].strip():
                return data
            old = self._model_old = data[start : end + 1]
        return data.replace(old, self._model_new)

"""The OpenAI dialect: requests, replies, streams and errors of upstreams."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from suffice.dialects import DIALECTS, open_response
from suffice.dialects.openai_errors import retry_after_s
from suffice.errors import UpstreamError
from suffice.types import Deployment, Model, Provider, Usage

TARGET = Deployment(
    Model("p/m", "p", "m-upstream"),
    Provider("p", "openai", "http://127.0.0.1:1/v1/", api_key="sk-1"),
)
DIALECT = DIALECTS["openai"]()
CONTENT = b'data: {"model":"m-upstream","choices":[{"delta":{"content":"hi"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


class ScriptedResponse:
    """A transport.Response that hands out its chunks."""

    def __init__(self, *chunks: bytes, status: int = 200, **headers: str) -> None:
        self.status = status
        self.drained = self.closed = False
        self._chunks = list(chunks)
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def header(self, name: str) -> str | None:
        return self._headers.get(name)

    async def read(self, limit: int | None = None) -> bytes:
        return b"".join(self._chunks)[:limit]

    async def read_chunk(self) -> bytes:
        return self._chunks.pop(0) if self._chunks else b""

    def drain(self) -> None:
        self.drained = True

    async def aclose(self) -> None:
        self.closed = True


def stream_of(*chunks: bytes) -> tuple[list[Any], UpstreamError | None, ScriptedResponse]:
    """(events, what was raised after them, the response)."""
    response = ScriptedResponse(*chunks, content_type="text/event-stream; charset=utf-8")

    async def read() -> tuple[list[Any], UpstreamError | None]:
        reply = await open_response(DIALECT, response, TARGET, stream=True)
        events: list[Any] = []
        try:
            while new := await reply.next_events():
                events += new
        except UpstreamError as error:
            return events, error
        finally:
            await reply.aclose()
        return events, None

    return *asyncio.run(read()), response


def test_a_request_names_the_upstream_model_and_carries_the_key() -> None:
    fields = {"model": msgspec.Raw(b'"auto"'), "x": msgspec.Raw(b'{"a": [1,  2]}')}
    url, headers, body = DIALECT.build_request(fields, TARGET, stream=False)
    assert url == "http://127.0.0.1:1/v1/chat/completions"
    assert ("authorization", "Bearer sk-1") in headers
    assert body == b'{"model":"m-upstream","x":{"a": [1,  2]}}', "other fields byte for byte"


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (None, {"include_usage": True}),
        (b"null", {"include_usage": True}),
        (b'{"include_usage": false, "y": 1}', {"include_usage": True, "y": 1}),
    ],
)
def test_a_streamed_request_always_asks_for_usage(
    options: bytes | None, sent: dict[str, Any]
) -> None:
    fields = {} if options is None else {"stream_options": msgspec.Raw(options)}
    _, _, body = DIALECT.build_request(fields, TARGET, stream=True)
    assert json.loads(body)["stream_options"] == sent


def test_a_stream_ends_at_its_terminator_and_keeps_its_connection() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
    events, error, response = stream_of(CONTENT, usage + DONE)
    assert error is None
    assert [event.kind for event in events] == ["content", "usage", "done"]
    assert b'"model":"p/m"' in events[0].raw
    assert response.drained
    assert not response.closed


@pytest.mark.parametrize(
    ("chunks", "kind"),
    [
        ((CONTENT,), "cut"),
        ((CONTENT, b'data: {"error": {"message": "busy", "code": 503}}\n\n'), "overloaded"),
        ((b"data: {\n\n",), "malformed"),
        ((), "cut"),
    ],
)
def test_a_stream_that_breaks_gives_its_events_and_then_the_error(
    chunks: tuple[bytes, ...], kind: str
) -> None:
    events, error, response = stream_of(*chunks)
    assert [event.raw for event in events if event.kind == "content"] == [
        CONTENT.replace(b"m-upstream", b"p/m") for chunk in chunks if chunk == CONTENT
    ]
    assert error is not None
    assert error.kind == kind
    assert response.closed


def test_the_last_event_of_a_stream_may_lack_its_blank_line() -> None:
    events, error, _ = stream_of(CONTENT, DONE.rstrip())
    assert error is None
    assert [event.kind for event in events] == ["content", "done"]


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, b'{"error": {"message": "maximum context length"}}', "context_length", "maximum"),
        (400, b'{"error": {"code": "content_filter", "message": "no"}}', "content_filter", "no"),
        (400, b'[{"error": {"message": "wrapped in a list"}}]', "bad_request", "wrapped"),
        (401, b'{"detail": "who are you"}', "auth", "who are you"),
        (429, b"slow down", "rate_limit", "slow down"),
        (500, b"", "server", "HTTP 500 without a message"),
        (302, b"", "malformed", "HTTP 302"),
    ],
)
def test_an_error_status_is_classified_and_keeps_its_message(
    status: int, body: bytes, kind: str, message: str
) -> None:
    response = ScriptedResponse(body, status=status, retry_after="7")
    with pytest.raises(UpstreamError, match=message) as caught:
        asyncio.run(open_response(DIALECT, response, TARGET, stream=False))
    assert (caught.value.kind, caught.value.status) == (kind, status)
    assert caught.value.retry_after_s == 7.0
    assert response.closed


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"choices": []}', b'{"choices": 3}'])
def test_a_body_that_is_not_a_completion_is_malformed(body: bytes) -> None:
    with pytest.raises(UpstreamError) as caught:
        DIALECT.parse_reply(body, TARGET)
    assert caught.value.kind == "malformed"


def test_a_whole_reply_names_the_catalog_model_and_its_usage() -> None:
    body = b"""{"model": "m-upstream", "choices": [{"finish_reason": "stop"}], "usage": {
        "prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 6},
        "completion_tokens_details": {"reasoning_tokens": 2}}}"""
    reply = DIALECT.parse_reply(body, TARGET)
    assert json.loads(reply.body)["model"] == "p/m"
    assert reply.finish_reason == "stop"
    assert reply.usage == Usage(9, 4, cached_input_tokens=6, reasoning_tokens=2)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "9"}, 9.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_each_of_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers.get, now_s=60.0) == seconds

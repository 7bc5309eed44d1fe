"""`POST /v1/chat/completions`: a plain ASGI callable, because this is the path that costs money.

bytes -> Query -> router.answer -> JSON or server-sent events + x-suffice-* headers -> bytes
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from suffice.dialects.openai_request import parse_chat
from suffice.errors import (
    AllAttemptsFailedError,
    BadRequestError,
    PayloadTooLargeError,
    SufficeError,
)
from suffice.gateway.render import (
    DONE,
    JSON,
    KEEPALIVE,
    SSE,
    Headers,
    decision_headers,
    error_body,
    error_headers,
    failure,
    sse_error,
    to_json,
    usd,
)

if TYPE_CHECKING:
    from suffice.gateway.auth import Auth
    from suffice.router import Router
    from suffice.routing.response import RoutedResponse

Scope = MutableMapping[str, Any]
AsgiReceive = Callable[[], Awaitable[MutableMapping[str, Any]]]
AsgiSend = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_log = logging.getLogger("suffice.gateway")

# A client that leaves is noticed by a task that waits for the server's word. Most requests to a
# light model are over before it would matter, and the task costs 15 us, so it starts late.
_WATCH_AFTER_S = 0.05
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


# Request ids are names, not secrets: one draw from the system at start, not 17 us for each.
_ids = random.Random(os.urandom(16))


class ClientDisconnected(Exception):
    """The client closed its connection while its body was still being read."""


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The client's own x-request-id where it is one safe header value, else a new one."""
    given = headers.get(b"x-request-id")
    if given and len(given) <= 128 and given.isascii():
        text = given.decode("ascii")
        if text.isprintable():
            return text
    return f"req_{_ids.getrandbits(96):024x}"


async def read_body(receive: AsgiReceive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """The whole body; PayloadTooLarge past `limit` bytes, before it is all read."""
    declared = headers.get(b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(body) > limit:
            raise _too_large(limit)
        return body
    parts, size = [body], len(body)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"The body is larger than {limit} bytes.", remedy="Raise server.max_body_bytes to allow it."
    )


class DisconnectWatcher:
    """Cancels the serving task once the client has left. Made for each request, so it does nothing
    but hold; `DisconnectMonitor` begins to watch it when the request has lasted a while."""

    __slots__ = ("_receive", "_task", "_watcher", "left", "since_s")

    def __init__(self, receive: AsgiReceive, now_s: float) -> None:
        self.left = False
        self.since_s = now_s
        self._receive = receive
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._watcher is None:
            self._watcher = loop.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.left = True
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()


class DisconnectMonitor:
    """One timer for all requests of an app, running only while there are any."""

    def __init__(self) -> None:
        self._open: set[DisconnectWatcher] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, leaving: DisconnectWatcher) -> None:
        self._open.add(leaving)
        if self._timer is None:
            self._loop = asyncio.get_running_loop()
            self._timer = self._loop.call_later(_WATCH_AFTER_S, self._sweep)

    def discard(self, leaving: DisconnectWatcher) -> None:
        self._open.discard(leaving)
        leaving.stop()

    def _sweep(self) -> None:
        assert self._loop is not None
        due_s = perf_counter() - _WATCH_AFTER_S * 0.8
        for leaving in self._open:
            if leaving.since_s <= due_s:
                leaving.watch(self._loop)
        self._timer = None
        if self._open:
            self._timer = self._loop.call_later(_WATCH_AFTER_S, self._sweep)


async def send_all(send: AsgiSend, status: int, headers: Headers, body: bytes) -> None:
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: AsgiSend, error: BaseException, path: str, request_id: str) -> None:
    f = failure(error)
    if f.status == 500:
        _log.error("request %s failed", request_id, exc_info=error)
    headers = error_headers(f, request_id)
    if isinstance(error, AllAttemptsFailedError) and error.decision is not None:
        shown = error.attempts[-1].model if error.attempts else error.decision.model
        headers += decision_headers(
            b"", error.decision, shown, len(error.attempts), b"0", error.overhead_ms
        )[1:]
    await send_all(send, f.status, headers, error_body(f, path))


class ChatEndpoint:
    """The chat completions endpoint over a Router."""

    def __init__(
        self, router: Router, auth: Auth, *, max_body_bytes: int, keepalive_s: float = 15.0
    ) -> None:
        self._router = router
        self._auth = auth
        self._max_body_bytes = max_body_bytes
        self._keepalive_s = keepalive_s
        self._sweeper = DisconnectMonitor()

    async def __call__(self, scope: Scope, receive: AsgiReceive, send: AsgiSend) -> None:
        started = perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = request_id_of(headers)
        try:
            key_id = self._auth.check(headers)
            body = await read_body(receive, headers, self._max_body_bytes)
            query = parse_chat(body, headers, request_id=request_id, key_id=key_id)
        except SufficeError as error:
            await send_error(send, error, scope["path"], request_id)
            return
        except ClientDisconnected:
            return
        leaving = DisconnectWatcher(receive, started)
        self._sweeper.add(leaving)
        stream = SSEWriter(send, request_id, self._keepalive_s) if query.stream else None
        try:
            answer = await self._router.answer(query, started)
            if stream is not None:
                await stream.run(answer, include_usage=query.include_usage)
            else:
                self._sweeper.discard(leaving)
                await self._send_whole(send, answer, request_id.encode("latin-1"))
        except asyncio.CancelledError:
            if not leaving.left:
                raise  # the server is stopping, not the client leaving
            _log.info("request %s: the client left", request_id)
        except Exception as error:  # every failure gets an answer in the dialect's shape
            if stream is not None and stream.begun:
                await stream.fail(error)
            else:
                await send_error(send, error, scope["path"], request_id)
        finally:
            self._sweeper.discard(leaving)
            if stream is not None:
                stream.stop()

    async def _send_whole(self, send: AsgiSend, answer: RoutedResponse, request_id: bytes) -> None:
        body = answer.body
        if answer.query.options.explain:
            fields = _decode_fields(body)
            fields["suffice"] = msgspec.Raw(to_json(answer.explanation()))
            body = to_json(fields)
        headers = decision_headers(
            request_id,
            answer.decision,
            answer.model,
            len(answer.attempts),
            usd(answer.cost_usd),
            answer.overhead_ms,
        )
        headers.append(JSON)
        await send_all(send, answer.status, headers, body)


class SSEWriter:
    """Server-sent events to one client, with comments while an upstream thinks."""

    __slots__ = (
        "_answer",
        "_handle",
        "_keepalive_s",
        "_last_s",
        "_loop",
        "_request_id",
        "_send",
        "_tick_task",
        "begun",
    )

    def __init__(self, send: AsgiSend, request_id: str, keepalive_s: float) -> None:
        self._send = send
        self._request_id = request_id.encode("latin-1")
        self._keepalive_s = keepalive_s
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()
        self._handle = self._loop.call_later(keepalive_s, self._tick)
        self._tick_task: asyncio.Task[None] | None = None
        self.begun = False

    def _tick(self) -> None:
        quiet_s = self._loop.time() - self._last_s
        if quiet_s >= self._keepalive_s * 0.99:
            self._tick_task = self._loop.create_task(self._comment())
            quiet_s = 0.0
        self._handle = self._loop.call_later(self._keepalive_s - quiet_s, self._tick)

    async def _comment(self) -> None:
        # Before the commit point we do not know who will answer: the head goes out without the
        # decision's headers, and a failure from here on is an event in the stream.
        if not self.begun:
            await self._begin([(b"x-request-id", self._request_id), *SSE])
        await self._send({"type": "http.response.body", "body": KEEPALIVE, "more_body": True})

    async def _begin(self, headers: Headers) -> None:
        self.begun = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def run(self, answer: RoutedResponse, *, include_usage: bool) -> None:
        send = self._send
        try:
            if not self.begun:
                headers = decision_headers(
                    self._request_id,
                    answer.decision,
                    answer.model,
                    len(answer.attempts),
                    usd(answer.predicted_usd),
                    answer.overhead_ms,
                )
                await self._begin(headers + SSE)
            async for data in answer.events(include_usage=include_usage):
                self._last_s = self._loop.time()
                await send({"type": "http.response.body", "body": data, "more_body": True})
            tail = DONE
            if answer.query.options.explain:
                extra: dict[str, Any] = {"object": "chat.completion.chunk", "choices": []}
                extra["suffice"] = answer.explanation()
                tail = b"data: " + to_json(extra) + b"\n\n" + DONE
            await send({"type": "http.response.body", "body": tail, "more_body": False})
        finally:
            await answer.aclose()

    async def fail(self, error: BaseException) -> None:
        """After the head went out an error is an event: never silence, never a clean end."""
        f = failure(error)
        if f.status == 500:
            _log.error("stream %r failed", self._request_id, exc_info=error)
        await self._send({"type": "http.response.body", "body": sse_error(f), "more_body": False})

    def stop(self) -> None:
        self._handle.cancel()
        if self._tick_task is not None:
            self._tick_task.cancel()


__all__ = [
    "BadRequestError",
    "ChatEndpoint",
    "ClientDisconnected",
    "read_body",
    "request_id_of",
    "send_error",
]

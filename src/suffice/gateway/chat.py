"""`POST /v1/chat/completions`: a plain ASGI callable, because this is the path that costs money.

bytes -> Query -> Router.answer -> JSON or server-sent events + x-suffice-* headers -> bytes
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from suffice.dialects.openai_request import parse_chat
from suffice.errors import AllAttemptsFailedError, PayloadTooLargeError, SufficeError
from suffice.gateway.disconnect import (
    AsgiReceive,
    AsgiSend,
    ClientDisconnectedError,
    DisconnectMonitor,
    DisconnectWatcher,
    Scope,
)
from suffice.gateway.render import (
    JSON,
    Headers,
    decision_headers,
    error_body,
    error_headers,
    failure_headers,
    format_usd,
    to_error_response,
    to_json,
)
from suffice.gateway.sse import SSEWriter

if TYPE_CHECKING:
    from suffice.gateway.auth import Auth
    from suffice.router import Router
    from suffice.routing.response import RoutedResponse

_log = logging.getLogger("suffice.gateway")
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# Request ids are names, not secrets: one draw from the system at start, not 17 us for each.
_request_ids = random.Random()
_MAX_REQUEST_ID = 128


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The client's own x-request-id if it is one safe header value, else a new one."""
    raw = headers.get(b"x-request-id")
    if raw and len(raw) <= _MAX_REQUEST_ID and raw.isascii():
        text = raw.decode("ascii")
        if text.isprintable():
            return text
    return f"req_{_request_ids.getrandbits(96):024x}"


async def read_body(receive: AsgiReceive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """Read a request's body.

    Args:
        receive: ASGI's.
        headers: lower-case names to values.
        limit: the largest body, in bytes.

    Returns:
        The whole body.

    Raises:
        PayloadTooLargeError: the body is longer than `limit`; raised before it is all read.
        ClientDisconnectedError: the client left before it was all read.
    """
    declared = headers.get(b"content-length", b"")
    fits = not declared.isdigit() or int(declared) <= limit
    parts: list[bytes] = []
    size = 0
    while fits:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        body: bytes = message.get("body", b"")
        size += len(body)
        fits = size <= limit
        if fits and not message.get("more_body"):
            return b"".join((*parts, body)) if parts else body
        parts.append(body)
    raise PayloadTooLargeError(
        f"The body is larger than {limit} bytes.", remedy="Raise server.max_body_bytes to allow it."
    )


async def send_response(send: AsgiSend, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole response; adds its length to `headers`."""
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: AsgiSend, error: BaseException, path: str, request_id: str) -> None:
    """Send an error in the shape of the dialect that owns `path`."""
    shown = to_error_response(error)
    if shown.status == 500:
        _log.error("request %s failed", request_id, exc_info=error)
    headers = error_headers(shown, request_id)
    if isinstance(error, AllAttemptsFailedError):
        headers += failure_headers(error)
    await send_response(send, shown.status, headers, error_body(shown, path))


class ChatEndpoint:
    """The chat completions endpoint over a Router."""

    def __init__(
        self, router: Router, auth: Auth, *, max_body_bytes: int, keepalive_s: float = 15.0
    ) -> None:
        self._router = router
        self._auth = auth
        self._max_body_bytes = max_body_bytes
        self._keepalive_s = keepalive_s
        self._disconnects = DisconnectMonitor()

    async def __call__(self, scope: Scope, receive: AsgiReceive, send: AsgiSend) -> None:
        """Serve one request."""
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
        except ClientDisconnectedError:
            return
        watcher = DisconnectWatcher(receive, started)
        self._disconnects.add(watcher)
        id_bytes = request_id.encode("ascii")
        stream = SSEWriter(send, id_bytes, self._keepalive_s) if query.stream else None
        try:
            response = await self._router.answer(query, started)
            if stream is not None:
                await stream.write(response)
            else:
                self._disconnects.discard(watcher)
                await self._send_whole(send, response, id_bytes)
        except asyncio.CancelledError:
            if not watcher.disconnected:
                raise  # the server is stopping, not the client disconnecting
            _log.info("request %s: client disconnected", request_id)
        except Exception as error:  # noqa: BLE001  every failure is answered in the dialect's shape
            if stream is not None and stream.headers_sent:
                await stream.send_error(error)
            else:
                await send_error(send, error, scope["path"], request_id)
        finally:
            self._disconnects.discard(watcher)
            if stream is not None:
                stream.stop()

    async def _send_whole(
        self, send: AsgiSend, response: RoutedResponse, request_id: bytes
    ) -> None:
        reply = response.answered
        body = reply.body
        if response.query.options.explain:
            fields = _decode_fields(body)
            fields["suffice"] = msgspec.Raw(to_json(response.explanation()))
            body = to_json(fields)
        headers = decision_headers(request_id, response, reply.model, format_usd(reply.cost_usd))
        headers.append(JSON)
        await send_response(send, reply.status, headers, body)

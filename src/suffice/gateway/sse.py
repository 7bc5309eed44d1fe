"""Server-sent events to one client, with comments while an upstream thinks."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from suffice.gateway.render import (
    DONE,
    KEEPALIVE,
    SSE,
    Headers,
    decision_headers,
    format_usd,
    sse_error,
    to_error_response,
    to_json,
)

if TYPE_CHECKING:
    from suffice.gateway.disconnect import AsgiSend
    from suffice.routing.response import RoutedResponse

_log = logging.getLogger("suffice.gateway")


class SSEWriter:
    """Writes one stream.

    Attributes:
        headers_sent: from then on an error is an event of the stream.
    """

    __slots__ = (
        "_keepalive_s",
        "_keepalive_task",
        "_last_sent_s",
        "_loop",
        "_request_id",
        "_send",
        "_timer",
        "headers_sent",
    )

    def __init__(self, send: AsgiSend, request_id: bytes, keepalive_s: float) -> None:
        self._send = send
        self._request_id = request_id
        self._keepalive_s = keepalive_s
        self._loop = asyncio.get_running_loop()
        self._last_sent_s = self._loop.time()
        self._timer = self._loop.call_later(keepalive_s, self._on_timer)
        self._keepalive_task: asyncio.Task[None] | None = None
        self.headers_sent = False

    def _on_timer(self) -> None:
        quiet_s = self._loop.time() - self._last_sent_s
        if quiet_s >= self._keepalive_s * 0.99:
            self._keepalive_task = self._loop.create_task(self._send_keepalive())
            quiet_s = 0.0
        self._timer = self._loop.call_later(self._keepalive_s - quiet_s, self._on_timer)

    async def _send_keepalive(self) -> None:
        # Before the first content it is not known who will answer: the headers go out without the
        # decision's, and a failure from here on is an event of the stream.
        if not self.headers_sent:
            await self._send_headers([(b"x-request-id", self._request_id), *SSE])
        await self._send({"type": "http.response.body", "body": KEEPALIVE, "more_body": True})

    async def _send_headers(self, headers: Headers) -> None:
        self.headers_sent = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, response: RoutedResponse) -> None:
        """Send a whole stream, then close it.

        Raises:
            UpstreamError: the upstream failed after the first content.
        """
        send, loop = self._send, self._loop
        try:
            if not self.headers_sent:
                cost = format_usd(response.predicted_usd)
                headers = decision_headers(self._request_id, response, response.model, cost)
                await self._send_headers(headers + SSE)
            async for data in response.events(include_usage=response.query.include_usage):
                self._last_sent_s = loop.time()
                await send({"type": "http.response.body", "body": data, "more_body": True})
            tail = DONE
            if response.query.options.explain:
                chunk = {"object": "chat.completion.chunk", "choices": []}
                explained = to_json({**chunk, "suffice": response.explanation()})
                tail = b"data: " + explained + b"\n\n" + DONE
            await send({"type": "http.response.body", "body": tail, "more_body": False})
        finally:
            await response.aclose()

    async def send_error(self, error: BaseException) -> None:
        """Close a stream whose headers were sent with an error: never silence, never a clean end."""
        shown = to_error_response(error)
        if shown.status == 500:
            _log.error("stream %r failed", self._request_id, exc_info=error)
        body = sse_error(shown)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def stop(self) -> None:
        """Send no more comments."""
        self._timer.cancel()
        if self._keepalive_task is not None:
            self._keepalive_task.cancel()

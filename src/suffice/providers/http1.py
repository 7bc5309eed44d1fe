"""One HTTP/1.1 connection to an upstream, over asyncio and llhttp (httptools).

A connection carries one exchange at a time. The response parser runs inside `data_received`, so a
reply costs one wake-up of the waiting task and no further task, queue or thread.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from suffice.errors import UpstreamError

MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024  # of a reply that is read whole, after decompression
DRAIN_S = 1.0
_UNREADABLE_ENCODINGS = frozenset({b"br", b"zstd", b"compress", b"x-compress"})
PAUSE_READING_BYTES = 256 * 1024  # of a stream that arrived and was not read yet


class _ProtocolError(Exception):
    """The peer sent what we do not accept."""


class Response:
    """The response of one exchange.

    Attributes:
        status: HTTP status; 0 until the headers are complete.
        is_complete: whether the last byte of the body has arrived.
        streamed: whether the body is read as it arrives.
        untouched: whether no byte of the response has arrived.
    """

    __slots__ = (
        "_connection",
        "_decoder",
        "_error",
        "_header_size",
        "_headers",
        "_loop",
        "_parts",
        "_size",
        "_waiter",
        "is_complete",
        "status",
        "streamed",
        "untouched",
    )

    def __init__(
        self, connection: Connection, loop: asyncio.AbstractEventLoop, *, streamed: bool
    ) -> None:
        self.status = 0
        self.is_complete = False
        self.untouched = True
        self.streamed = streamed
        self._connection = connection
        self._loop = loop
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._size = 0
        self._header_size = 0
        self._decoder: zlib._Decompress | None = None
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def header(self, name: str) -> str | None:
        """The value of the first header called `name` (in any case), or None."""
        key = name.lower().encode("latin-1")
        for header, value in self._headers:
            if header.lower() == key:
                return value.decode("latin-1")
        return None

    async def wait_headers(self) -> None:
        """Wait until the status and the headers are there. Raises UpstreamError."""
        while not self.status:
            await self._wait()

    async def wait_complete(self) -> None:
        """Wait for the last byte of the body. Raises UpstreamError."""
        while not self.is_complete:
            await self._wait()

    async def read(self, limit: int | None = None) -> bytes:
        """The body, or its first `limit` bytes. Raises UpstreamError."""
        if limit is None and not self.is_complete:
            self._stop_streaming()
        while not self.is_complete and (limit is None or self._size < limit):
            await self._wait()
        body = b"".join(self._parts)
        return body if limit is None else body[:limit]

    async def read_chunk(self) -> bytes:
        """The bytes that arrived since the last call; none at the end. Raises UpstreamError."""
        while not self._parts:
            if self.is_complete:
                return b""
            await self._wait()
        parts = self._parts
        if self._size > PAUSE_READING_BYTES:
            self._connection.resume_reading()
        self._size = 0
        if len(parts) == 1:
            return parts.pop()
        self._parts = []
        return b"".join(parts)

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def drain(self) -> None:
        """Ignore the rest of the body; the connection is kept if it ends within a second.

        A stream's last event often comes before the end of its body.
        """
        if not self.is_complete and self._error is None:
            self._stop_streaming()
            self._loop.call_later(DRAIN_S, self.abort)

    def _stop_streaming(self) -> None:
        """What still comes wakes no reader before its end, and pauses nothing."""
        self.streamed = False
        self._connection.resume_reading()

    async def aclose(self) -> None:
        """Drop the connection unless the response is complete. Does not raise."""
        self.abort()

    def abort(self) -> None:
        """Drop the connection unless the response is complete."""
        if not self.is_complete and self._error is None:
            self._error = self._connection.broken("closed here")
            self._connection.abort()

    def expire(self) -> None:
        """Fail the exchange because its time is over, unless it is complete."""
        if not self.is_complete and self._error is None:
            self.fail(
                UpstreamError(f"{self._connection.host}: no answer in time.", kind="timeout_total")
            )
            self._connection.abort()

    def fail(self, error: UpstreamError) -> None:
        """End the exchange with `error`; its reader gets it after the bytes that arrived before."""
        if not self.is_complete and self._error is None:
            self._error = error
            self._wake()

    # What the connection reports.

    def add_header(self, name: bytes, value: bytes) -> None:
        """Take one header line."""
        self._headers.append((name, value))
        self._header_size += len(name) + len(value) + 4
        if self._header_size > MAX_HEADER_BYTES:
            raise _ProtocolError("the headers are too large")
        if len(name) == 16 and name.lower() == b"content-encoding":
            encoding = value.strip().lower()
            if encoding in (b"gzip", b"x-gzip", b"deflate"):
                self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
            elif encoding in _UNREADABLE_ENCODINGS:
                raise _ProtocolError(f"content-encoding {encoding!r} was not asked for")

    def drop_headers(self) -> None:
        """Forget the headers of an interim (1xx) response."""
        self._headers.clear()

    def add_body(self, data: bytes) -> None:
        """Take bytes of the body."""
        if self._decoder is not None:
            data = self._decoder.decompress(data, MAX_BODY_BYTES)
            if self._decoder.unconsumed_tail:
                raise _ProtocolError("the body is too large")
        if data:
            self._parts.append(data)
            self._size += len(data)
            if self._size > PAUSE_READING_BYTES and self.streamed:
                self._connection.pause_reading()
            elif self._size > MAX_BODY_BYTES:
                raise _ProtocolError("the body is too large")

    def notify(self) -> None:
        """Wake the reader if it has something to do."""
        if self._waiter is not None and (self.is_complete or (self.streamed and self.status)):
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """A connection that is kept alive between exchanges.

    Args:
        host: host and port, for messages.
        release: called with the connection when it is free for another exchange.
        discard: called with the connection when it is lost.
    """

    __slots__ = (
        "_discard",
        "_excess",
        "_header_bytes",
        "_keep_alive",
        "_loop",
        "_parser",
        "_paused",
        "_release",
        "_response",
        "_status",
        "_transport",
        "host",
        "idle_since_s",
        "is_closed",
        "is_lost",
        "is_reused",
    )

    def __init__(
        self,
        host: str,
        release: Callable[[Connection], None],
        discard: Callable[[Connection], None],
    ) -> None:
        self.host = host
        self.idle_since_s = 0.0
        self.is_closed = False
        self.is_lost = False
        self.is_reused = False
        self._release = release
        self._discard = discard
        self._loop = asyncio.get_running_loop()
        self._parser = HttpResponseParser(self)
        # RFC 9112 asks this of a recipient (sections 2.2 and 6.3); padding is common in old servers.
        self._parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True,
            lenient_chunked_length=True,
            lenient_spaces_after_chunk_size=True,
        )
        self._response: Response | None = None
        self._transport: asyncio.Transport | None = None
        self._status = 0
        self._header_bytes = 0
        self._keep_alive = False
        self._excess = False
        self._paused = False

    def send(self, request: bytes, *, stream: bool) -> Response:
        """Write a request; the response fills in as it arrives."""
        response = self._response = Response(self, self._loop, streamed=stream)
        self._header_bytes = 0
        assert self._transport is not None, "not connected"
        self._transport.write(request)
        return response

    def broken(self, reason: str) -> UpstreamError:
        """The error of an exchange that this connection could not finish."""
        return UpstreamError(f"{self.host}: the connection broke ({reason}).", kind="cut")

    def abort(self) -> None:
        """Drop the connection at once."""
        self.is_closed = True
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        """Let the peer wait: the reader is slower than the upstream."""
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._transport is not None and self._paused:
            self._paused = False
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class

    def data_received(self, data: bytes) -> None:
        """Parse, then wake the reader once for all that `data` held."""
        response = self._response
        if response is None:  # nothing was asked
            self.abort()
            return
        response.untouched = False
        try:
            if not response.status:
                self._header_bytes += len(data)
            self._parser.feed_data(data)
            if not response.status and self._header_bytes > MAX_HEADER_BYTES:
                raise _ProtocolError("the headers are too large")
        except (HttpParserError, HttpParserUpgrade, _ProtocolError) as error:
            if not response.is_complete:
                response.fail(self.broken(str(error.__context__ or error)))
                self.abort()
                return
            self._excess = True  # the response is whole; what follows it is not read
        if response.is_complete:
            self._finish()
        response.notify()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange under way, if there is one."""
        self.is_closed = self.is_lost = True
        self._discard(self)
        response, self._response = self._response, None
        if response is None:
            return
        if exc is None and response.status and _ends_with_connection(response):
            response.is_complete = True
            response.notify()
        else:
            response.fail(self.broken("closed by the peer"))

    def _finish(self) -> None:
        """The response is complete: free the connection for another one, if it may be kept."""
        self._response = None
        transport = self._transport
        assert transport is not None
        if not self._keep_alive or self._excess or transport.get_write_buffer_size():
            self.is_closed = True
            transport.close()
        elif not transport.is_closing():
            self.resume_reading()
            self.is_reused = True
            self._release(self)

    # llhttp

    def on_message_begin(self) -> None:
        """The first byte of a message: of the response, or of one that was not asked for."""
        response = self._response
        assert response is not None
        self._excess = response.is_complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line."""
        response = self._response
        assert response is not None
        if not response.is_complete:
            response.add_header(name, value)

    def on_headers_complete(self) -> None:
        """The status line and all headers are there."""
        response = self._response
        assert response is not None
        self._status = status = self._parser.get_status_code()
        if response.is_complete:
            return
        if status >= 200:
            response.status = status
        else:
            response.drop_headers()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        response = self._response
        assert response is not None
        if not response.is_complete:
            response.add_body(body)

    def on_message_complete(self) -> None:
        """The body is complete."""
        response = self._response
        assert response is not None
        if self._status >= 200 and not response.is_complete:
            response.is_complete = True
            self._keep_alive = self._parser.should_keep_alive()


def _ends_with_connection(response: Response) -> bool:
    """Whether the body states no length, so that the end of the connection ends it."""
    return response.header("content-length") is None and (
        "chunked" not in (response.header("transfer-encoding") or "").lower()
    )

"""HTTP to upstreams: a pool of HTTP/1.1 connections behind the `suffice.transport` Protocol.

The client is our own because each client we measured costs 35 us more per request or goes on with a
cancelled call (benchmarks/latency/http_clients.py). A client that disconnects, or a first chunk
that does not come, must end the upstream call at once, because it is being paid for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from time import monotonic
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import msgspec

from suffice.errors import UpstreamError
from suffice.providers.connect import Connector, Origin
from suffice.providers.http1 import Connection, Response
from suffice.types import Timeouts

_MAX_IDLE = 256  # connections kept per origin
_MAX_IDLE_S = 60.0
_MAX_ENDPOINTS = 4096


class _Endpoint(msgspec.Struct, frozen=True):
    """A URL, taken apart once."""

    origin: Origin
    head: str  # what follows the method in a request: target, version and constant headers


class _Pool:
    """The connections of one event loop."""

    __slots__ = ("_connections", "_idle")

    def __init__(self) -> None:
        self._idle: dict[Origin, list[Connection]] = {}
        self._connections: set[Connection] = set()

    def take(self, origin: Origin) -> Connection | None:
        """The connection that was used last, if one is free."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.is_closed:
                continue
            if monotonic() - connection.idle_since_s < _MAX_IDLE_S:
                return connection
            connection.abort()
        return None

    def new_connection(self, origin: Origin) -> Connection:
        """A protocol that returns to this pool after each exchange."""
        idle = self._idle.setdefault(origin, [])
        return Connection(origin.netloc, partial(self._release, idle), self._connections.discard)

    def add(self, connection: Connection) -> None:
        """Take a connection that is open: one whose handshake fails is never reported lost."""
        if not connection.is_lost:
            self._connections.add(connection)

    @staticmethod
    def _release(idle: list[Connection], connection: Connection) -> None:
        if len(idle) < _MAX_IDLE:
            connection.idle_since_s = monotonic()
            idle.append(connection)
        else:
            connection.abort()

    def close(self) -> None:
        """Drop all connections."""
        for connection in tuple(self._connections):
            connection.abort()
        self._idle.clear()


class HTTPTransport:
    """Sends requests over kept-alive connections; follows no redirect.

    May be used from several event loops; each has its own connections.

    Args:
        proxies: URL of the proxy per scheme, and host patterns without one under "no", as
            `urllib.request.getproxies_environment` returns them. Default: the environment's.
    """

    def __init__(self, proxies: Mapping[str, str] | None = None) -> None:
        self._connector = Connector(getproxies_environment() if proxies is None else proxies)
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}
        self._endpoints: dict[str, _Endpoint] = {}

    def prepare(self, urls: Iterable[str]) -> None:
        """Read the trusted certificates now (25 ms), if one of `urls` needs them."""
        if any(url.startswith("https:") for url in urls):
            self._connector.tls_context()

    async def send(
        self,
        url: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        *,
        stream: bool,
        timeouts: Timeouts,
    ) -> Response:
        """POST `body`; see `suffice.transport`. Raises UpstreamError."""
        return await self._exchange(
            "POST", url, headers, body, None if stream else timeouts.total_s, timeouts.connect_s
        )

    async def get(self, url: str, headers: Sequence[tuple[str, str]], timeout_s: float) -> Response:
        """GET, for discovery and health checks. Raises UpstreamError."""
        return await self._exchange("GET", url, headers, b"", timeout_s, timeout_s)

    async def _exchange(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        total_s: float | None,
        connect_s: float,
    ) -> Response:
        """total_s: None for a stream, whose headers are then awaited without a limit."""
        endpoint = self._endpoints.get(url) or self._endpoint(url)
        request = _serialize(method, endpoint, headers, body)
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop) or self._add_pool(loop)
        end_s = None if total_s is None else loop.time() + total_s
        connection = pool.take(endpoint.origin)
        while True:
            if connection is None:
                limit_s = connect_s if end_s is None else min(connect_s, end_s - loop.time())
                connection = await self._connector.connect(
                    endpoint.origin, partial(pool.new_connection, endpoint.origin), limit_s
                )
                pool.add(connection)
            response = connection.send(request, stream=end_s is None)
            timer = None if end_s is None else loop.call_at(end_s, response.expire)
            try:
                if timer is None:
                    await response.wait_headers()
                else:
                    await response.wait_complete()
            except UpstreamError:
                # The peer may have closed an idle connection just as we wrote: nothing was handled.
                if not (connection.is_reused and response.untouched and connection.is_lost):
                    raise
                connection = None
            except BaseException:
                response.abort()
                raise
            else:
                return response
            finally:
                if timer is not None:
                    timer.cancel()

    def _add_pool(self, loop: asyncio.AbstractEventLoop) -> _Pool:
        """A pool for a new event loop; the pools of closed loops are dropped."""
        for other in tuple(self._pools):
            if other.is_closed():
                del self._pools[other]
        pool = self._pools[loop] = _Pool()
        return pool

    def _endpoint(self, url: str) -> _Endpoint:
        """Take `url` apart. Raises ValueError if it is not an http(s) URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http(s) URL: {url!r}")
        origin = self._connector.origin(parts)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        head = (
            f" {origin.request_prefix}{target} HTTP/1.1\r\nhost: {origin.netloc}\r\naccept: */*\r\n"
        )
        if any(c <= " " for c in f"{origin.netloc}{target}"):
            raise ValueError(f"not an http(s) URL: {url!r}")
        if len(self._endpoints) >= _MAX_ENDPOINTS:
            self._endpoints.clear()
        endpoint = self._endpoints[url] = _Endpoint(origin, head + origin.proxy_header)
        return endpoint

    async def aclose(self) -> None:
        """Drop all connections."""
        here = asyncio.get_running_loop()
        pools, self._pools = self._pools, {}
        for loop, pool in pools.items():
            if loop is here:
                pool.close()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(pool.close)


def _serialize(
    method: str, endpoint: _Endpoint, headers: Sequence[tuple[str, str]], body: bytes
) -> bytes:
    """A request as bytes. Raises ValueError if a header holds a line end."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("a header holds a line end")
    head = f"{method}{endpoint.head}{lines}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body

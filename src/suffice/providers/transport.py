"""HTTP to upstreams over pyreqwest (Rust reqwest), behind the small `types.Transport` Protocol.

Measured traps: without `streamed_read_buffer_limit(0)` the client holds a one-second stream back
until it is over; a request that reads its whole body in Rust costs less than one that is streamed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

from pyreqwest import exceptions as px
from pyreqwest.client import ClientBuilder

from ..errors import UpstreamError, UpstreamKind
from ..types import Timeouts


def _upstream_error(error: Exception, url: str, late: UpstreamKind) -> UpstreamError:
    """A pyreqwest failure as ours. `late` is the kind of a timeout after the connect phase."""
    kind: UpstreamKind
    if isinstance(error, px.ConnectTimeoutError):
        kind, what = "timeout_connect", "no connection in time"
    elif isinstance(error, px.RequestTimeoutError):
        kind, what = late, "no answer in time"
    elif isinstance(error, px.ConnectError):
        kind, what = "connect", "no connection"
    else:
        kind, what = "cut", "the connection broke"
    host = url.split("/", 3)[2] if "://" in url else url
    return UpstreamError(f"{host}: {what}.", kind=kind)


class WholeResponse:
    """A response whose body was read on arrival."""

    __slots__ = ("_response", "_url", "status")

    def __init__(self, response: Any, url: str) -> None:
        self.status: int = response.status
        self._response = response
        self._url = url

    def header(self, name: str) -> str | None:
        found: str | None = self._response.get_header(name)
        return found

    async def read(self, limit: int | None = None) -> bytes:
        try:
            data: bytes = (await self._response.bytes()).to_bytes()
        except px.PyreqwestError as error:
            raise _upstream_error(error, self._url, "timeout_total") from None
        return data if limit is None else data[:limit]

    async def chunks(self) -> AsyncIterator[bytes]:
        yield await self.read()

    async def aclose(self) -> None:
        return


class StreamedResponse:
    """A response whose body is read as it arrives; `aclose` drops the connection at once."""

    __slots__ = ("_request", "_response", "_url", "status")

    def __init__(self, request: Any, response: Any, url: str) -> None:
        self.status: int = response.status
        self._request: Any = request
        self._response = response
        self._url = url

    def header(self, name: str) -> str | None:
        found: str | None = self._response.get_header(name)
        return found

    async def read(self, limit: int | None = None) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            parts.append(chunk)
            size += len(chunk)
            if limit is not None and size >= limit:
                break
        data = b"".join(parts)
        return data if limit is None else data[:limit]

    async def chunks(self) -> AsyncIterator[bytes]:
        read = self._response.body_reader.read_chunk
        try:
            while (chunk := await read()) is not None:
                yield chunk.to_bytes()
        except px.PyreqwestError as error:
            raise _upstream_error(error, self._url, "timeout_total") from None

    async def aclose(self) -> None:
        request, self._request = self._request, None
        if request is not None:
            await request.__aexit__(None, None, None)


class PyreqwestTransport:
    """One pooled client for each connect timeout in use. Follows no redirect, uses no proxy."""

    def __init__(self) -> None:
        self._clients: dict[float, Any] = {}

    def _client(self, connect_s: float) -> Any:
        client = self._clients.get(connect_s)
        if client is None:
            client = self._clients[connect_s] = (
                ClientBuilder()
                .connect_timeout(timedelta(seconds=connect_s))
                .follow_redirects(False)
                .no_proxy()
                .tcp_nodelay(True)
                .user_agent("suffice")
                .build()
            )
        return client

    async def send(
        self,
        url: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        *,
        stream: bool,
        timeouts: Timeouts,
    ) -> WholeResponse | StreamedResponse:
        builder = (
            self._client(timeouts.connect_s)
            .post(url)
            .headers(headers)
            .body_bytes(body)
            .timeout(timedelta(seconds=timeouts.total_s))
        )
        try:
            if stream:
                request = builder.streamed_read_buffer_limit(0).build_streamed()
                return StreamedResponse(request, await request.__aenter__(), url)
            return WholeResponse(await builder.build().send(), url)
        except px.PyreqwestError as error:
            raise _upstream_error(error, url, "timeout_total") from None

    async def get(
        self, url: str, headers: Sequence[tuple[str, str]], timeout_s: float
    ) -> WholeResponse:
        """A GET, for discovery and health checks. Raises UpstreamError."""
        builder = self._client(timeout_s).get(url).headers(headers)
        try:
            response = await builder.timeout(timedelta(seconds=timeout_s)).build().send()
        except px.PyreqwestError as error:
            raise _upstream_error(error, url, "timeout_total") from None
        return WholeResponse(response, url)

    async def aclose(self) -> None:
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()

"""HTTP to upstreams over pyqwest (Rust reqwest), behind the small `types.Transport` Protocol.

Chosen over pyreqwest, which costs 35 us less a request here but goes on with a call whose task was
cancelled: a client that leaves, or a first chunk that does not come, must end the upstream call at
once, because it is being paid for (docs/concepts/providers.md).
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pyqwest

from suffice.errors import UpstreamError, UpstreamKind
from suffice.types import Timeouts

# What the client raises: no connection, a peer that breaks off or breaks the protocol.
_FAILURES = (
    OSError,  # ConnectionError and TimeoutError are OSErrors
    pyqwest.ReadError,
    pyqwest.WriteError,
    pyqwest.RemoteProtocolError,
    pyqwest.StreamError,
)


def _upstream_error(error: Exception, url: str) -> UpstreamError:
    """A failure of the client as ours."""
    kind: UpstreamKind
    if isinstance(error, pyqwest.ConnectTimeout):
        kind, what = "timeout_connect", "no connection in time"
    elif isinstance(error, TimeoutError):
        kind, what = "timeout_total", "no answer in time"
    elif isinstance(error, ConnectionError):
        kind, what = "connect", "no connection"
    else:
        kind, what = "cut", "the connection broke"
    host = url.split("/", 3)[2] if "://" in url else url
    return UpstreamError(f"{host}: {what}.", kind=kind)


async def _reported(limit_s: float = 0.5) -> None:
    """Wait until the client's own threads have left Python, at most `limit_s`.

    A thread that has handed over a result may still be on its way back from waking the event loop.
    Were the interpreter to end meanwhile, CPython before 3.14 would unwind that thread through Rust
    code, which aborts the process after all its work is done: one short command in four on a
    loaded machine. The console script leaves by os._exit; this is for all who use us in-process.
    """
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        ours = {t.ident for t in threading.enumerate()}
        if all(ident in ours for ident in sys._current_frames()):
            return
        await asyncio.sleep(0.001)


class WholeResponse:
    """A response whose body was read on arrival."""

    __slots__ = ("_response", "status")

    def __init__(self, response: pyqwest.FullResponse) -> None:
        self.status = response.status
        self._response = response

    def header(self, name: str) -> str | None:
        return self._response.headers.get(name)

    async def read(self, limit: int | None = None) -> bytes:
        data = self._response.content
        return data if limit is None else data[:limit]

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._response.content

    async def aclose(self) -> None:
        return


class StreamedResponse:
    """A response whose body is read as it arrives; `aclose` drops the connection at once."""

    __slots__ = ("_context", "_response", "_url", "status")

    def __init__(
        self, context: AbstractAsyncContextManager[Any], response: pyqwest.Response, url: str
    ) -> None:
        self.status = response.status
        self._context: AbstractAsyncContextManager[Any] | None = context
        self._response = response
        self._url = url

    def header(self, name: str) -> str | None:
        return self._response.headers.get(name)

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
        try:
            async for chunk in self._response.content:
                yield bytes(chunk)
        except _FAILURES as error:
            raise _upstream_error(error, self._url) from None

    async def aclose(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            await context.__aexit__(None, None, None)


class HTTPTransport:
    """One pooled client for each connect timeout in use. Follows no redirect."""

    def __init__(self) -> None:
        self._clients: dict[float, tuple[pyqwest.HTTPTransport, pyqwest.Client]] = {}

    def _client(self, connect_s: float) -> pyqwest.Client:
        found = self._clients.get(connect_s)
        if found is None:
            transport = pyqwest.HTTPTransport(
                connect_timeout=connect_s,
                follow_redirects=False,
                enable_otel=False,
                tls_include_system_certs=True,
                pool_max_idle_per_host=256,
            )
            found = self._clients[connect_s] = (transport, pyqwest.Client(transport))
        return found[1]

    def prepare(self, connect_s: float) -> None:
        """Make the client for this connect timeout now: reading the certificates takes 25 ms."""
        self._client(connect_s)

    async def send(
        self,
        url: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        *,
        stream: bool,
        timeouts: Timeouts,
    ) -> WholeResponse | StreamedResponse:
        client = self._client(timeouts.connect_s)
        try:
            if stream:
                context = client.stream("POST", url, headers, body)
                return StreamedResponse(context, await context.__aenter__(), url)
            async with asyncio.timeout(timeouts.total_s):
                return WholeResponse(await client.post(url, headers, body))
        except _FAILURES as error:
            raise _upstream_error(error, url) from None

    async def get(
        self, url: str, headers: Sequence[tuple[str, str]], timeout_s: float
    ) -> WholeResponse:
        """A GET, for discovery and health checks. Raises UpstreamError."""
        try:
            async with asyncio.timeout(timeout_s):
                return WholeResponse(await self._client(timeout_s).get(url, headers))
        except _FAILURES as error:
            raise _upstream_error(error, url) from None

    async def aclose(self) -> None:
        clients, self._clients = self._clients, {}
        for transport, _ in clients.values():
            await transport.aclose()
        if clients:
            await _reported()

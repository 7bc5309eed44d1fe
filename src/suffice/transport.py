"""What sends HTTP requests to upstreams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from suffice.types import Timeouts


class Response(Protocol):
    """An upstream's response."""

    status: int

    def header(self, name: str) -> str | None:
        """The value of a header, or None."""
        ...

    async def read(self, limit: int | None = None) -> bytes:
        """The body, or its first `limit` bytes. Raises UpstreamError of kind cut."""
        ...

    async def read_chunk(self) -> bytes:
        """The bytes that arrived since the last call; empty at the end of the body.

        Raises UpstreamError of kind cut if the body ends early.
        """
        ...

    def drain(self) -> None:
        """Ignore the rest of the body, which is about to end. Does not raise."""
        ...

    async def aclose(self) -> None:
        """Drop the connection unless the body is complete. Does not raise."""
        ...


class Transport(Protocol):
    """Sends one HTTP request. Raises UpstreamError of kind connect, timeout_* or cut only."""

    def prepare(self, urls: Iterable[str]) -> None:
        """Do now what the first call to one of `urls` needs."""
        ...

    async def send(
        self,
        url: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        *,
        stream: bool,
        timeouts: Timeouts,
    ) -> Response:
        """Send a POST request. `stream`: the body is read as it arrives."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...

"""What execution asks of whoever calls the upstreams. The router adapts dialect and transport."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from suffice.types import Timeouts, Usage


class StreamEvent(Protocol):
    """Whole server-sent events, `chunks` of them joined in `raw`.

    kind: preamble (nothing that a reader would see yet) | content | usage | done | error.
    """

    @property
    def raw(self) -> bytes: ...
    @property
    def kind(self) -> str: ...
    @property
    def chunks(self) -> int: ...


class UpstreamReply(Protocol):
    """An upstream that answered 200. Whole: `body` is there. Stream: `usage` and `finish_reason`
    fill in as the batches are read."""

    status: int
    body: bytes
    usage: Usage | None
    finish_reason: str | None

    def batches(self) -> AsyncIterator[list[Any]]:
        """Lists of StreamEvents as they arrive; taken once. Ends after the dialect's terminator.

        Raises UpstreamError: `cut` without a terminator, or what the upstream's error event says.
        """
        ...

    async def aclose(self) -> None:
        """Drop the connection now. Harmless when repeated; does not raise."""
        ...


class Caller(Protocol):
    """Calls one model for the query at hand."""

    async def open(self, step_model: str, timeouts: Timeouts) -> UpstreamReply:
        """Send the query to `step_model`.

        A reply that is not streamed has been read whole when this returns, within
        `timeouts.total_s`, which the caller keeps itself. Cancelling must drop the upstream call.
        Raises UpstreamError, already classified.
        """
        ...

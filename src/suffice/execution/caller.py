"""What execution needs of the code that calls upstreams. The router adapts dialect and transport."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from suffice.types import Timeouts, Usage


class StreamEvent(Protocol):
    """One or more whole server-sent events."""

    @property
    def raw(self) -> bytes:
        """The events as bytes, ready to forward."""
        ...

    @property
    def kind(self) -> str:
        """`preamble` (nothing that a reader would see yet), `content`, `usage`, `done`, `error`."""
        ...

    @property
    def chunks(self) -> int:
        """How many events of the upstream are joined in `raw`."""
        ...


class UpstreamReply(Protocol):
    """An upstream's answer with status 200: read whole, or an open stream."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def body(self) -> bytes:
        """The whole reply; empty for a stream."""
        ...

    @property
    def usage(self) -> Usage | None:
        """The upstream's token counts; of a stream, known at its end."""
        ...

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended; of a stream, known at its end."""
        ...

    async def next_events(self) -> Sequence[StreamEvent]:
        """The events that arrived since the last call; empty at the end of the stream.

        Raises UpstreamError: `cut` without a terminator, or what the upstream's error event says.
        """
        ...

    async def aclose(self) -> None:
        """Drop the connection now. Harmless if repeated; does not raise."""
        ...


class Caller(Protocol):
    """Calls one model for the query at hand."""

    def has_larger_window(self, model: str, than: str) -> bool:
        """Whether a prompt that is too long for `than` may fit `model`."""
        ...

    async def open(self, step_model: str, timeouts: Timeouts) -> UpstreamReply:
        """Send the query to `step_model`.

        A reply that is not streamed has been read whole when this returns, within
        `timeouts.total_s`, which the caller keeps. Cancellation must drop the upstream call.
        Raises UpstreamError, already classified.
        """
        ...

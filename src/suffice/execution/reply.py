"""The result of a plan."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from suffice.execution.caller import StreamEvent
from suffice.types import Attempt, ExcludedModel, Usage


async def _no_events() -> Sequence[StreamEvent]:
    return ()


async def _nothing_to_close() -> None:
    return


class Reply:
    """The reply of the model that answered: whole in `body`, or a stream of events.

    Attributes:
        model: the model that answered.
        status: its HTTP status.
        attempts: all calls of the request; of a stream, complete at its end.
        body: a whole reply; empty for a stream.
        usage: tokens of the reply; of a stream, known at its end.
        cost_usd: of all attempts; None if a price is unknown. Of a stream, known at its end.
        finish_reason: why the answer ended.
        first_chunk_s: seconds to the first content of the attempt that answered; None if whole.
        skipped: steps that were due but not called, each with the reason.
        next_events: the next events of the stream, at least one; none at its end. Raises
            UpstreamError if the upstream fails after the first content: cut, timeout_idle,
            timeout_total, or its own error event. To be called from one task at a time.
        aclose: drops the upstream; harmless if the reply is complete.
    """

    __slots__ = (
        "aclose",
        "attempts",
        "body",
        "cost_usd",
        "finish_reason",
        "first_chunk_s",
        "model",
        "next_events",
        "skipped",
        "status",
        "usage",
    )

    def __init__(
        self,
        model: str,
        status: int,
        attempts: list[Attempt],
        body: bytes = b"",
        next_events: Callable[[], Awaitable[Sequence[StreamEvent]]] = _no_events,
        aclose: Callable[[], Awaitable[None]] = _nothing_to_close,
    ) -> None:
        self.model = model
        self.status = status
        self.attempts = attempts
        self.body = body
        self.usage: Usage | None = None
        self.cost_usd: float | None = None
        self.finish_reason: str | None = None
        self.first_chunk_s: float | None = None
        self.skipped: tuple[ExcludedModel, ...] = ()
        self.next_events = next_events
        self.aclose = aclose

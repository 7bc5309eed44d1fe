"""One attempt at one model: its clock readings, and the one Attempt that comes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from suffice.errors import UpstreamError
from suffice.execution.caller import UpstreamReply
from suffice.execution.circuit_breaker import CircuitBreaker
from suffice.execution.latency import LatencyTracker
from suffice.types import Attempt, ExcludedModel, Usage

if TYPE_CHECKING:
    from suffice.execution.stream import StreamingAttempt

CostOf = Callable[[str, Usage | None], float | None]
CLIENT_DISCONNECTED = "the client left"


class Reply:
    """What came of a plan.

    For a stream, `attempts`, `usage` and `cost_usd` are complete once `events` is exhausted or
    `aclose` was called. first_chunk_s: of the attempt that answered; None for a whole reply.
    skipped: steps that were due but not called, and why.
    """

    __slots__ = (
        "_stream",
        "attempts",
        "body",
        "cost_usd",
        "finish_reason",
        "first_chunk_s",
        "model",
        "skipped",
        "status",
        "usage",
    )

    def __init__(self, model: str, status: int, attempts: list[Attempt]) -> None:
        self.model = model
        self.status = status
        self.attempts = attempts
        self.body = b""
        self.usage: Usage | None = None
        self.cost_usd: float | None = None
        self.finish_reason: str | None = None
        self.first_chunk_s: float | None = None
        self.skipped: tuple[ExcludedModel, ...] = ()
        self._stream: StreamingAttempt | None = None

    @property
    def events(self) -> AsyncIterator[Any]:
        """StreamEvents from the first one on; taken once. Raises UpstreamError where the upstream
        fails after the commit point: cut, timeout_idle, timeout_total, or its own error event."""
        assert self._stream is not None, "not a stream"
        return self._stream.events()

    async def aclose(self) -> None:
        """Drop the upstream now, wherever the stream is. From the task that reads `events`."""
        if self._stream is not None:
            await self._stream.close()


class AttemptRecorder:
    """An attempt from its call to its end. Every end goes through exactly one of `done`, `failed`
    and `left`."""

    __slots__ = (
        "_attempts",
        "_breaker",
        "_clock",
        "_cost_of",
        "_latency",
        "_number",
        "_started_s",
        "_wall_s",
        "input_tokens",
        "model",
    )

    def __init__(
        self,
        model: str,
        number: int,
        attempts: list[Attempt],
        *,
        breaker: CircuitBreaker,
        latency: LatencyTracker,
        cost_of: CostOf,
        input_tokens: int,
        clock: Callable[[], float],
        wall_s: float,
    ) -> None:
        self.model = model
        self.input_tokens = input_tokens
        self._number = number
        self._attempts = attempts
        self._breaker = breaker
        self._latency = latency
        self._cost_of = cost_of
        self._clock = clock  # the breaker's own
        self._wall_s = wall_s
        self._started_s = clock()
        breaker.on_call(model)

    def reply(self, status: int) -> Reply:
        return Reply(self.model, status, self._attempts)

    def elapsed_s(self) -> float:
        return self._clock() - self._started_s

    def succeed(
        self, reply: Reply, opened: UpstreamReply, usage: Usage | None, first_chunk_s: float | None
    ) -> None:
        """The model answered to the end."""
        latency_s = self.elapsed_s()
        reply.usage = usage
        reply.finish_reason = opened.finish_reason
        reply.first_chunk_s = first_chunk_s
        self._attempts.append(
            Attempt(
                model=self.model,
                number=self._number,
                outcome="ok",
                started_s=self._wall_s,
                latency_s=latency_s,
                first_chunk_s=first_chunk_s,
                status=opened.status,
                usage=usage,
                cost_usd=self._cost_of(self.model, usage),
                finish_reason=opened.finish_reason,
            )
        )
        reply.cost_usd = sum_cost_usd(self._attempts)
        self._breaker.on_success(self.model, self._started_s)
        self._latency.observe(
            self.model, first_chunk_s, latency_s, usage.output_tokens if usage else None
        )

    def fail(
        self,
        error: UpstreamError,
        *,
        first_chunk_s: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        """The upstream failed; its breaker hears of it."""
        error.model = error.model or self.model
        self._append(error.kind, error.message, first_chunk_s, usage, error.status)
        self._breaker.on_failure(self.model, error, self._started_s)

    def abandon(
        self,
        usage: Usage | None = None,
        first_chunk_s: float | None = None,
        *,
        outcome: str = "cancelled",
        message: str = CLIENT_DISCONNECTED,
    ) -> None:
        """It ended without a word on the model's latency. usage None: about the prompt, no output,
        because what an upstream was sent it may charge for."""
        if usage is None and self.input_tokens:
            usage = Usage(input_tokens=self.input_tokens, estimated=True)
        self._append(outcome, message, first_chunk_s, usage, None)
        self._breaker.on_abandoned(self.model)

    def settle(self, reply: Reply, usage: Usage | None) -> None:
        """A stream ended early: what it came to."""
        reply.usage = usage
        reply.cost_usd = sum_cost_usd(self._attempts)

    def _append(
        self,
        outcome: str,
        message: str,
        first_chunk_s: float | None,
        usage: Usage | None,
        status: int | None,
    ) -> None:
        self._attempts.append(
            Attempt(
                model=self.model,
                number=self._number,
                outcome=outcome,
                started_s=self._wall_s,
                latency_s=self.elapsed_s(),
                first_chunk_s=first_chunk_s,
                status=status,
                error=message,
                usage=usage,
                cost_usd=self._cost_of(self.model, usage) if usage else 0.0,
            )
        )


def sum_cost_usd(attempts: Sequence[Attempt]) -> float | None:
    """Sum over attempts; None where one of them has an unknown price."""
    if len(attempts) == 1:
        return attempts[0].cost_usd
    costs = [a.cost_usd for a in attempts]
    return None if None in costs else sum(c for c in costs if c is not None)

"""One attempt at one model: its clock readings, and the one `Attempt` record that it ends in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from suffice.errors import UpstreamError
from suffice.execution.caller import UpstreamReply
from suffice.execution.circuit_breaker import CircuitBreaker
from suffice.execution.latency import LatencyTracker
from suffice.execution.reply import Reply
from suffice.types import Attempt, Usage

CostOf = Callable[[str, Usage | None], float | None]
CLIENT_DISCONNECTED = "client disconnected"


class AttemptContext(NamedTuple):
    """What the attempts of one request share."""

    attempts: list[Attempt]
    """The request's records; each attempt's is appended when it ends."""
    breaker: CircuitBreaker
    latency: LatencyTracker
    cost_of: CostOf
    """(model, usage) -> USD, or None if the price is unknown."""
    input_tokens: int
    """Of the query, estimated."""
    clock: Callable[[], float]
    """Monotonic seconds; the breaker's clock, too."""
    wall: Callable[[], float]
    """Unix seconds."""


class AttemptRecorder:
    """Records an attempt from its call to its end.

    Every attempt ends in exactly one of `succeed`, `fail` and `abandon`.

    Args:
        context: what the attempts of the request share.
        model: the model that is called.
        number: of the attempt within the request, from 1.
    """

    __slots__ = ("_context", "_number", "_started_s", "_wall_s", "model")

    def __init__(self, context: AttemptContext, model: str, number: int) -> None:
        self.model = model
        self._context = context
        self._number = number
        self._wall_s = context.wall()
        self._started_s = context.clock()
        context.breaker.on_call(model)

    @property
    def attempts(self) -> list[Attempt]:
        """The request's records so far."""
        return self._context.attempts

    @property
    def input_tokens(self) -> int:
        """Of the query, estimated."""
        return self._context.input_tokens

    def elapsed_s(self) -> float:
        """Seconds since the call."""
        return self._context.clock() - self._started_s

    def succeed(
        self,
        reply: Reply,
        upstream: UpstreamReply,
        usage: Usage | None,
        first_chunk_s: float | None,
    ) -> None:
        """The model answered to the end."""
        context = self._context
        latency_s = context.clock() - self._started_s
        reply.usage = usage
        reply.finish_reason = upstream.finish_reason
        reply.first_chunk_s = first_chunk_s
        context.attempts.append(
            Attempt(
                model=self.model,
                number=self._number,
                outcome="ok",
                started_s=self._wall_s,
                latency_s=latency_s,
                first_chunk_s=first_chunk_s,
                status=upstream.status,
                usage=usage,
                cost_usd=context.cost_of(self.model, usage),
                finish_reason=upstream.finish_reason,
            )
        )
        reply.cost_usd = sum_cost_usd(context.attempts)
        context.breaker.on_success(self.model, self._started_s)
        context.latency.observe(
            self.model, first_chunk_s, latency_s, usage.output_tokens if usage else None
        )

    def fail(
        self,
        error: UpstreamError,
        *,
        first_chunk_s: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        """The upstream failed; its circuit breaker is updated."""
        error.model = error.model or self.model
        self._append(error.kind, error.message, first_chunk_s, usage, error.status)
        self._context.breaker.on_failure(self.model, error, self._started_s)

    def abandon(
        self,
        usage: Usage | None = None,
        first_chunk_s: float | None = None,
        *,
        outcome: str = "cancelled",
        message: str = CLIENT_DISCONNECTED,
    ) -> None:
        """The attempt ended without saying anything about the model's health.

        Args:
            usage: None counts the estimated prompt, because an upstream may charge for it.
            first_chunk_s: seconds to the first content, if there was any.
            outcome: of the record.
            message: of the record.
        """
        input_tokens = self._context.input_tokens
        if usage is None and input_tokens:
            usage = Usage(input_tokens=input_tokens, estimated=True)
        self._append(outcome, message, first_chunk_s, usage, None)
        self._context.breaker.on_abandoned(self.model)

    def _append(
        self,
        outcome: str,
        message: str,
        first_chunk_s: float | None,
        usage: Usage | None,
        status: int | None,
    ) -> None:
        self._context.attempts.append(
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
                cost_usd=self._context.cost_of(self.model, usage) if usage else 0.0,
            )
        )


def sum_cost_usd(attempts: Sequence[Attempt]) -> float | None:
    """USD of all attempts; None if the price of one is unknown."""
    if len(attempts) == 1:
        return attempts[0].cost_usd
    total_usd = 0.0
    for attempt in attempts:
        if attempt.cost_usd is None:
            return None
        total_usd += attempt.cost_usd
    return total_usd

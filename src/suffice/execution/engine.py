"""Runs a plan: attempts, timeouts, failover. The only package with a clock.

A whole reply costs no task and no timer here: its deadline is the caller's. A stream has one timer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from suffice.errors import AllAttemptsFailedError, UpstreamError
from suffice.execution.attempt import AttemptContext, AttemptRecorder, CostOf
from suffice.execution.caller import Caller
from suffice.execution.circuit_breaker import CircuitBreaker
from suffice.execution.latency import LatencyTracker
from suffice.execution.reply import Reply
from suffice.execution.retry import Call, FailoverFlow, Wait
from suffice.execution.stream import StreamingAttempt
from suffice.types import Attempt, ExcludedModel, PlanStep, RetryPolicy, Timeouts


class Engine:
    """Runs plans for one router.

    Args:
        breaker: knows which models are cooling down.
        latency: observes how fast models are.
        clock: monotonic seconds; the breaker's clock, too.
        wall: unix seconds.
        sleep: awaitable pause of so many seconds.
    """

    def __init__(
        self,
        breaker: CircuitBreaker,
        latency: LatencyTracker,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.breaker = breaker
        self.latency = latency
        self._clock = clock
        self._wall = wall
        self._sleep = sleep

    async def run(
        self,
        plan: tuple[PlanStep, ...],
        caller: Caller,
        *,
        stream: bool,
        timeouts: Timeouts,
        retries: RetryPolicy,
        cost_of: CostOf,
        seed: int = 0,
        input_tokens: int = 0,
        guard: Callable[[PlanStep], str | None] | None = None,
        attempts: list[Attempt] | None = None,
    ) -> Reply:
        """Walk the plan until a model answers.

        Args:
            plan: models in the order they are tried.
            caller: calls one of them.
            stream: whether the reply is streamed.
            timeouts: of each attempt, and of all together.
            retries: how often, and how long to wait between.
            cost_of: (model, usage) -> USD, or None if unknown.
            seed: of the jitter.
            input_tokens: of the query, estimated.
            guard: the reason why a step is skipped, or None; asked before each attempt but the
                first.
            attempts: a list that fills as attempts end, for the case of cancellation.

        Returns:
            A reply that was read whole, or a stream that has reached its first content.

        Raises:
            AllAttemptsFailedError: no model answered.
            CancelledError: the caller's task was cancelled; the upstream has been dropped.
        """
        if attempts is None:
            attempts = []
        context = AttemptContext(
            attempts, self.breaker, self.latency, cost_of, input_tokens, self._clock, self._wall
        )
        request = _Request(context, caller, timeouts, stream=stream)
        try:
            return await request.attempt(plan[0], 1)
        except UpstreamError as error:
            flow = FailoverFlow(
                plan,
                retries,
                total_s=timeouts.total_s,
                seed=seed,
                has_larger_window=caller.has_larger_window,
                is_ready=self.breaker.is_ready,
            )
            flow.next()  # the attempt that was made
            flow.record_failure(error, request.elapsed_s())
        return await self._fail_over(flow, request, guard)

    async def _fail_over(
        self,
        flow: FailoverFlow,
        request: _Request,
        guard: Callable[[PlanStep], str | None] | None,
    ) -> Reply:
        skipped: list[ExcludedModel] = []
        while True:
            action = flow.next()
            if isinstance(action, Wait):
                await self._sleep(action.seconds)
                flow.record_wait(request.elapsed_s())
            elif isinstance(action, Call):
                reason = guard(action.step) if guard is not None else None
                if reason is not None:
                    skipped.append(ExcludedModel(action.step.model, reason))
                    flow.skip()
                    continue
                try:
                    reply = await request.attempt(action.step, action.number)
                except UpstreamError as error:
                    flow.record_failure(error, request.elapsed_s())
                else:
                    reply.skipped = tuple(skipped)
                    return reply
            else:
                raise _all_failed(action.error, request.attempts, skipped)


class _Request:
    """Makes the attempts of one request."""

    __slots__ = ("_caller", "_context", "_started_s", "_stream", "_timeouts")

    def __init__(
        self, context: AttemptContext, caller: Caller, timeouts: Timeouts, *, stream: bool
    ) -> None:
        self._context = context
        self._caller = caller
        self._timeouts = timeouts
        self._stream = stream
        self._started_s = context.clock()

    @property
    def attempts(self) -> list[Attempt]:
        """The records so far."""
        return self._context.attempts

    def elapsed_s(self) -> float:
        """Seconds since the request began."""
        return self._context.clock() - self._started_s

    async def attempt(self, step: PlanStep, number: int) -> Reply:
        """Call one model. Raises UpstreamError or CancelledError, after recording it."""
        recorder = AttemptRecorder(self._context, step.model, number)
        timeouts = self._remaining(number)
        if self._stream:
            return await StreamingAttempt(recorder, timeouts).open(self._caller)
        try:
            upstream = await self._caller.open(step.model, timeouts)
        except UpstreamError as error:
            recorder.fail(error)
            raise
        except asyncio.CancelledError:
            recorder.abandon()
            raise
        except BaseException as error:
            # An error in our code says nothing about the model.
            recorder.abandon(outcome="malformed", message=f"{type(error).__name__}: {error}")
            raise
        reply = Reply(step.model, upstream.status, self._context.attempts, upstream.body)
        recorder.succeed(reply, upstream, upstream.usage, None)
        return reply

    def _remaining(self, number: int) -> Timeouts:
        """The timeouts with what remains of the total, and the bound of a whole reply."""
        timeouts = self._timeouts
        total_s = timeouts.total_s
        if number > 1:
            total_s = max(0.001, total_s - self.elapsed_s())
        if not self._stream and timeouts.first_reply_s is not None:
            total_s = min(total_s, timeouts.first_reply_s)
        if total_s >= timeouts.total_s * 0.999:
            return timeouts
        return msgspec.structs.replace(timeouts, total_s=total_s)


def _all_failed(
    last: UpstreamError, attempts: list[Attempt], skipped: list[ExcludedModel]
) -> AllAttemptsFailedError:
    models = list(dict.fromkeys(attempt.model for attempt in attempts))
    message = last.message
    if len(attempts) > 1:
        calls = f"{len(attempts)} attempts at {len(models)} model{'s' if len(models) > 1 else ''}"
        message = f"{calls} failed ({', '.join(models)}); the most relevant: {last.message}"
    if skipped:
        reasons = "; ".join(f"{model.model}: {model.reason}" for model in skipped)
        message = f"{message} Not called: {reasons}."
    return AllAttemptsFailedError(message, last=last, attempts=tuple(attempts))

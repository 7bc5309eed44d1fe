"""Runs a plan: the only place with a clock. Attempts, timeouts, failover, one commit point.

Whole replies cost no extra task and no timer here: their deadline lies with the caller's transport.
Streams have one lazily re-armed timer each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from suffice.errors import AllAttemptsFailedError, UpstreamError
from suffice.execution.attempt import AttemptRecorder, CostOf, Reply
from suffice.execution.caller import Caller
from suffice.execution.circuit_breaker import CircuitBreaker
from suffice.execution.latency import LatencyTracker
from suffice.execution.retry import Call, FailoverFlow, Wait
from suffice.execution.stream import StreamingAttempt
from suffice.types import Attempt, ExcludedModel, PlanStep, RetryPolicy, Timeouts


class Engine:
    """Runs plans for one router.

    clock: monotonic seconds, the breaker's too; wall: unix seconds; sleep: awaitable pause.
    Arguments, so that tests need not wait.
    """

    def __init__(
        self,
        breaker: CircuitBreaker,
        latency: LatencyTracker,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], Any] = asyncio.sleep,
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
        has_larger_window: Callable[[str, str], bool] | None = None,
        guard: Callable[[PlanStep], str | None] | None = None,
        attempts: list[Attempt] | None = None,
        pass_content_filter: bool = False,
    ) -> Reply:
        """Walk the plan until a model answers.

        cost_of(model, usage): USD or None. has_larger_window(model, than): see Flow. guard(step): None, or
        why a step is skipped; asked before every attempt but the first. attempts: a list that fills
        as attempts end, for whoever is cancelled before there is a Reply.
        Raises PlanExhausted with every attempt in it; CancelledError when the caller's task is
        cancelled, after the upstream was dropped.
        """
        began_s = self._clock()
        tried = [] if attempts is None else attempts
        skipped: list[ExcludedModel] = []
        flow = FailoverFlow(
            plan,
            retries,
            total_s=timeouts.total_s,
            seed=seed,
            has_larger_window=has_larger_window,
            is_ready=self.breaker.is_ready,
            pass_content_filter=pass_content_filter,
        )
        while True:
            action = flow.next()
            if isinstance(action, Call):
                step = action.step
                if guard is not None and action.number > 1:
                    why = guard(step)
                    if why is not None:
                        skipped.append(ExcludedModel(step.model, why))
                        flow.skip()
                        continue
                run = AttemptRecorder(
                    step.model,
                    action.number,
                    tried,
                    breaker=self.breaker,
                    latency=self.latency,
                    cost_of=cost_of,
                    input_tokens=input_tokens,
                    clock=self._clock,
                    wall_s=self._wall(),
                )
                try:
                    if stream:
                        limits = _limits(timeouts, began_s, self._clock())
                        reply = await StreamingAttempt(run, limits).open(caller)
                    else:
                        limits = _limits(timeouts, began_s, self._clock(), timeouts.first_reply_s)
                        reply = await _whole(run, caller, limits)
                except UpstreamError as error:
                    flow.record_failure(error, self._clock() - began_s)
                    continue
                if skipped:
                    reply.skipped = tuple(skipped)
                return reply
            if isinstance(action, Wait):
                await self._sleep(action.seconds)
                flow.record_wait(self._clock() - began_s)
                continue
            raise _exhausted(action.error, tried, skipped)


def _limits(
    timeouts: Timeouts, began_s: float, now_s: float, whole_s: float | None = None
) -> Timeouts:
    """`timeouts` with what is left of the total. whole_s: a bound for each whole reply."""
    left_s = max(0.001, timeouts.total_s - (now_s - began_s))
    if whole_s is not None:
        left_s = min(left_s, whole_s)
    if left_s >= timeouts.total_s * 0.999:
        return timeouts  # the first attempt: nothing to speak of is spent
    return msgspec.structs.replace(timeouts, total_s=left_s)


async def _whole(run: AttemptRecorder, caller: Caller, timeouts: Timeouts) -> Reply:
    """A reply that is not streamed."""
    try:
        opened = await caller.open(run.model, timeouts)
    except UpstreamError as error:
        run.fail(error)
        raise
    except asyncio.CancelledError:
        run.abandon()
        raise
    except BaseException as error:
        # A fault of our own says nothing about the model, but a probe must not hang on it.
        run.abandon(outcome="malformed", message=f"{type(error).__name__}: {error}")
        raise
    reply = run.reply(opened.status)
    reply.body = opened.body
    run.succeed(reply, opened, opened.usage, None)
    return reply


def _exhausted(
    last: UpstreamError, attempts: list[Attempt], skipped: list[ExcludedModel]
) -> AllAttemptsFailedError:
    models = list(dict.fromkeys(a.model for a in attempts))
    if len(attempts) == 1:
        message = last.message
    else:
        calls = f"{len(attempts)} attempts at {len(models)} model{'s' if len(models) > 1 else ''}"
        message = f"{calls} failed ({', '.join(models)}); the most telling: {last.message}"
    if skipped:
        out = "; ".join(f"{s.model}: {s.reason}" for s in skipped)
        message = f"{message} Not called: {out}."
    return AllAttemptsFailedError(message, last=last, attempts=tuple(attempts))

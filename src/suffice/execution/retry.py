"""Which model to call next: retry, failover and backoff as logic without I/O and without a clock.

A driver asks `next()` and reports the outcome with `record_failure(...)`, `skip()` or
`record_wait(...)`:

    Call(step, number)   call it
    Wait(seconds)        sleep, then ask again
    Exhausted(error)      the plan is spent; `error` is the most telling failure
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec

from suffice.errors import UpstreamError
from suffice.types import PlanStep, RetryPolicy


class Call(msgspec.Struct, frozen=True):
    step: PlanStep
    number: int  # 1-based within the request


class Wait(msgspec.Struct, frozen=True):
    seconds: float


class Exhausted(msgspec.Struct, frozen=True):
    error: UpstreamError


Action = Call | Wait | Exhausted

# The same model may do better a moment later.
RETRYABLE = frozenset({"connect", "timeout_connect", "rate_limit", "overloaded", "server", "cut"})
# No model would do better: the request itself is at fault, or nobody waits any more.
NON_RETRYABLE = frozenset({"bad_request", "cancelled"})
# What the client can act on is the better thing to tell it.
_ACTIONABLE = (
    "bad_request",
    "context_length",
    "content_filter",
    "rate_limit",
    "overloaded",
    "timeout_total",
    "timeout_first_chunk",
    "timeout_idle",
)
_QUOTA_EXHAUSTED_CODES = ("insufficient_quota", "billing_hard_limit_reached")


class FailoverFlow:
    """One request's way through a plan. Deterministic given its arguments and their answers.

    Another model of the plan is preferred to waiting for the same one: each step is tried once, in
    order, before any is tried again; only the last one standing is waited for. Every attempt counts
    against `retries.max_attempts`, every second against `total_s`.

    has_larger_window(model, than): whether `model` has a larger window than `than`, asked after
        context_length.
    is_ready(model): whether a model is not cooling down. One that is goes behind those that are ready,
        on retries too; it is never dropped. The first choice is taken as it is.
    pass_content_filter: another model may answer what one model's filter refused.

    Raises ValueError for an empty plan.
    """

    def __init__(
        self,
        plan: Sequence[PlanStep],
        retries: RetryPolicy,
        *,
        total_s: float = 600.0,
        seed: int = 0,
        has_larger_window: Callable[[str, str], bool] | None = None,
        is_ready: Callable[[str], bool] | None = None,
        pass_content_filter: bool = False,
    ) -> None:
        if not plan:
            raise ValueError("plan: expected at least one step")
        self._queue = list(plan)
        self._retries = retries
        self._total_s = total_s
        self._seed = seed
        self._has_larger_window = has_larger_window
        self._is_ready = is_ready
        self._pass_content_filter = pass_content_filter
        self._number = 0
        self._tries: dict[str, int] = {}
        self._retry_queue: list[tuple[float, PlanStep]] = []  # (elapsed time from which on, step)
        self._errors: list[UpstreamError] = []
        self._elapsed_s = 0.0
        self._due_s = 0.0  # what the last Wait waits for
        self._final_error: UpstreamError | None = None
        self._current: PlanStep | None = None

    @property
    def attempts(self) -> int:
        return self._number

    def next(self) -> Action:
        if not self._number:
            return self._call(self._queue.pop(0))
        if self._final_error is not None:
            return Exhausted(self._final_error)
        if self._number >= self._retries.max_attempts or self._elapsed_s >= self._total_s:
            return Exhausted(self._most_actionable_error())
        if self._queue:
            ready = self._is_ready
            steps = range(len(self._queue))
            first = (
                0 if ready is None else next((i for i in steps if ready(self._queue[i].model)), 0)
            )
            return self._call(self._queue.pop(first))
        if not self._retry_queue:
            return Exhausted(self._most_actionable_error())
        due_s, step = min(self._retry_queue, key=self._retry_order)
        wait_s = due_s - self._elapsed_s
        if wait_s > 0:
            if due_s >= self._total_s:
                return Exhausted(self._most_actionable_error())
            self._due_s = due_s
            return Wait(wait_s)
        self._retry_queue.remove((due_s, step))
        return self._call(step)

    def record_wait(self, elapsed_s: float) -> None:
        """The last Wait is over: `elapsed_s` seconds since the request began. A coarse timer that
        fired a little early is not asked to wait once more."""
        self._elapsed_s = max(self._elapsed_s, elapsed_s, self._due_s)

    def skip(self) -> None:
        """The last Call is not made and its step is dropped; it counts as no attempt."""
        step = self._current
        assert step is not None, "skip() without a Call"
        self._current = None
        self._number -= 1
        self._tries[step.model] -= 1

    def record_failure(self, error: UpstreamError, elapsed_s: float) -> None:
        """The last Call failed. elapsed_s: seconds since the request began."""
        step = self._current
        assert step is not None, "failed() without a Call"
        self._current = None
        self._elapsed_s = max(self._elapsed_s, elapsed_s)
        self._errors.append(error)
        if error.kind in NON_RETRYABLE or (
            error.kind == "content_filter" and not self._pass_content_filter
        ):
            self._final_error = error
            return
        if error.kind == "context_length":
            # Only a larger window helps; a smaller one would fail the same way.
            larger = self._has_larger_window
            if larger is not None:
                self._queue = [s for s in self._queue if larger(s.model, step.model)]
                self._retry_queue = [
                    (due_s, s) for due_s, s in self._retry_queue if larger(s.model, step.model)
                ]
            return
        if error.kind not in RETRYABLE or error.code in _QUOTA_EXHAUSTED_CODES:
            return
        tries = self._tries[step.model]
        # A stream that breaks off before its first content is given one more chance, no more.
        if tries > (
            min(1, self._retries.per_model) if error.kind == "cut" else self._retries.per_model
        ):
            return
        wait_s = self._backoff_s(tries, step.model)
        if error.retry_after_s is not None:
            if error.retry_after_s > self._retries.max_wait_s:
                return
            wait_s = max(wait_s, error.retry_after_s)
        self._retry_queue.append((self._elapsed_s + wait_s, step))

    def _retry_order(self, item: tuple[float, PlanStep]) -> tuple[bool, float]:
        return self._is_ready is not None and not self._is_ready(item[1].model), item[0]

    def _call(self, step: PlanStep) -> Call:
        self._number += 1
        self._tries[step.model] = self._tries.get(step.model, 0) + 1
        self._current = step
        return Call(step, self._number)

    def _backoff_s(self, tries: int, model: str) -> float:
        """Exponential, the upper half jittered: base * 2^(tries-1) * U(0.5, 1)."""
        draw = random.Random(f"{self._seed}/{model}/{tries}").uniform(0.5, 1.0)
        return float(
            min(self._retries.max_wait_s, self._retries.backoff_base_s * 2 ** (tries - 1)) * draw
        )

    def _most_actionable_error(self) -> UpstreamError:
        """The failure to show: of the most actionable kind, there the one that is soonest over."""
        for kind in _ACTIONABLE:
            found = [e for e in reversed(self._errors) if e.kind == kind]
            if found:
                return min(found, key=_retry_after_s)
        return self._errors[-1]


def _retry_after_s(error: UpstreamError) -> float:
    return error.retry_after_s if error.retry_after_s is not None else float("inf")

"""Which model to call next: retry, failover and backoff as logic without I/O and without a clock.

A driver asks `next()` and reports the outcome with `record_failure()`, `skip()` or `record_wait()`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec

from suffice.errors import UpstreamError
from suffice.types import PlanStep, RetryPolicy


class Call(msgspec.Struct, frozen=True):
    """Call a model. `number` counts the request's attempts from 1."""

    step: PlanStep
    number: int


class Wait(msgspec.Struct, frozen=True):
    """Sleep, then ask again."""

    seconds: float


class Exhausted(msgspec.Struct, frozen=True):
    """The plan is exhausted. `error` is the failure that a client can act on best."""

    error: UpstreamError


Action = Call | Wait | Exhausted

# The same model may succeed a moment later.
RETRYABLE = frozenset({"connect", "timeout_connect", "rate_limit", "overloaded", "server", "cut"})
# No other model would succeed: the request is at fault, or its client has gone.
NON_RETRYABLE = frozenset({"bad_request", "cancelled", "content_filter"})
# What a client can act on is shown first.
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
    """One request's way through a plan. Deterministic, given its arguments and the outcomes.

    Another model of the plan is preferred to waiting for the same one: each step is tried once, in
    order, before any is tried again; only the last available model is waited for. Every attempt
    counts against `retries.max_attempts`, every second against `total_s`.

    Args:
        plan: the steps; at least one.
        retries: limits and backoff.
        total_s: seconds for the whole request.
        seed: of the backoff's jitter.
        has_larger_window: (model, than) -> whether `model` has a larger context window than `than`;
            asked after a failure of kind context_length.
        is_ready: whether a model is not cooling down. One that is goes behind those that are not,
            on retries, too; it is never dropped. The first step is taken as it is.

    Raises:
        ValueError: the plan is empty.
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
    ) -> None:
        if not plan:
            raise ValueError("plan: expected at least one step")
        self._queue = list(plan)
        self._retries = retries
        self._total_s = total_s
        self._seed = seed
        self._has_larger_window = has_larger_window
        self._is_ready = is_ready
        self._number = 0
        self._tries: dict[str, int] = {}
        self._retry_queue: list[tuple[float, PlanStep]] = []  # (due: elapsed seconds, step)
        self._errors: list[UpstreamError] = []
        self._elapsed_s = 0.0
        self._wait_until_s = 0.0  # of the last Wait
        self._final_error: UpstreamError | None = None
        self._current: PlanStep | None = None

    @property
    def attempts(self) -> int:
        """How many calls have been made."""
        return self._number

    def next(self) -> Action:
        """What to do now."""
        if not self._number:
            return self._call(self._queue.pop(0))
        if self._final_error is not None:
            return Exhausted(self._final_error)
        if self._number >= self._retries.max_attempts or self._elapsed_s >= self._total_s:
            return Exhausted(self._most_actionable_error())
        if self._queue:
            return self._call(self._queue.pop(self._first_ready()))
        if not self._retry_queue:
            return Exhausted(self._most_actionable_error())
        due_s, step = min(self._retry_queue, key=self._retry_order)
        wait_s = due_s - self._elapsed_s
        if wait_s > 0:
            if due_s >= self._total_s:
                return Exhausted(self._most_actionable_error())
            self._wait_until_s = due_s
            return Wait(wait_s)
        self._retry_queue.remove((due_s, step))
        return self._call(step)

    def record_wait(self, elapsed_s: float) -> None:
        """The last Wait is over.

        Args:
            elapsed_s: seconds since the request began. A coarse timer that fired a little early
                does not cause another Wait.
        """
        self._elapsed_s = max(self._elapsed_s, elapsed_s, self._wait_until_s)

    def skip(self) -> None:
        """The last Call is not made, and its step is dropped; it does not count as an attempt."""
        step = self._take_current()
        self._number -= 1
        self._tries[step.model] -= 1

    def record_failure(self, error: UpstreamError, elapsed_s: float) -> None:
        """The last Call failed, `elapsed_s` seconds after the request began."""
        step = self._take_current()
        self._elapsed_s = max(self._elapsed_s, elapsed_s)
        self._errors.append(error)
        if error.kind in NON_RETRYABLE:
            self._final_error = error
        elif error.kind == "context_length":
            self._keep_larger_windows(step.model)
        elif error.kind in RETRYABLE and error.code not in _QUOTA_EXHAUSTED_CODES:
            self._schedule_retry(step, error)

    def _keep_larger_windows(self, than: str) -> None:
        """Drop the steps that would fail as `than` did."""
        is_larger = self._has_larger_window
        if is_larger is not None:
            self._queue = [step for step in self._queue if is_larger(step.model, than)]
            self._retry_queue = [
                (due_s, step) for due_s, step in self._retry_queue if is_larger(step.model, than)
            ]

    def _schedule_retry(self, step: PlanStep, error: UpstreamError) -> None:
        tries = self._tries[step.model]
        # A stream that breaks before its first content gets one more chance.
        limit = min(1, self._retries.per_model) if error.kind == "cut" else self._retries.per_model
        wait_s = self._backoff_s(tries, step.model)
        if error.retry_after_s is not None:
            if error.retry_after_s > self._retries.max_wait_s:
                return
            wait_s = max(wait_s, error.retry_after_s)
        if tries <= limit:
            self._retry_queue.append((self._elapsed_s + wait_s, step))

    def _first_ready(self) -> int:
        is_ready = self._is_ready
        if is_ready is None:
            return 0
        return next((i for i, step in enumerate(self._queue) if is_ready(step.model)), 0)

    def _retry_order(self, item: tuple[float, PlanStep]) -> tuple[bool, float]:
        return self._is_ready is not None and not self._is_ready(item[1].model), item[0]

    def _call(self, step: PlanStep) -> Call:
        self._number += 1
        self._tries[step.model] = self._tries.get(step.model, 0) + 1
        self._current = step
        return Call(step, self._number)

    def _take_current(self) -> PlanStep:
        step, self._current = self._current, None
        assert step is not None, "no Call is under way"
        return step

    def _backoff_s(self, tries: int, model: str) -> float:
        """Exponential, the upper half jittered: base * 2^(tries-1) * U(0.5, 1)."""
        jitter = random.Random(f"{self._seed}/{model}/{tries}").uniform(0.5, 1.0)
        backoff_s = self._retries.backoff_base_s * 2 ** (tries - 1)
        return float(min(self._retries.max_wait_s, backoff_s) * jitter)

    def _most_actionable_error(self) -> UpstreamError:
        """The failure to show: of the most actionable kind, the one that is over soonest."""
        for kind in _ACTIONABLE:
            errors = [error for error in reversed(self._errors) if error.kind == kind]
            if errors:
                return min(errors, key=_retry_after_s)
        return self._errors[-1]


def _retry_after_s(error: UpstreamError) -> float:
    return error.retry_after_s if error.retry_after_s is not None else float("inf")

"""Circuit breakers, one for each model: a model that keeps failing is left alone for a while.

Never the last one: where every candidate is open, all are offered, the soonest to recover first.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from suffice.errors import UpstreamError
from suffice.pool import Pool
from suffice.types import ExcludedModel, Model

# Failures that speak of the model's latency. A bad request, a filtered answer, a client that left or
# one malformed body among good ones do not.
_COUNTS = frozenset(
    {
        "connect",
        "timeout_connect",
        "timeout_first_chunk",
        "timeout_idle",
        "timeout_total",
        "overloaded",
        "server",
        "malformed",
        "cut",
        "auth",
        "not_found",
    }
)


class CircuitBreakerSettings(msgspec.Struct, frozen=True):
    """Opens after `failures` in a row, or at `ratio` failed of the last `window` calls (with at
    least `window` calls seen). Cools for `cooldown_s`, doubling up to `max_cooldown_s` while probes fail. A
    probe without an outcome after `probe_timeout_s` is given up and another may go. A Retry-After is
    believed up to `max_retry_after_s`."""

    failures: int = 3
    window: int = 20
    ratio: float = 0.5
    cooldown_s: float = 5.0
    max_cooldown_s: float = 60.0
    probe_timeout_s: float = 60.0
    max_retry_after_s: float = 3600.0


class _State:
    __slots__ = (
        "cooldown_s",
        "consecutive_failures",
        "open_until_s",
        "opened_s",
        "outcomes",
        "probe_until_s",
        "why",
    )

    def __init__(self) -> None:
        self.consecutive_failures = 0
        self.outcomes: list[bool] = []  # True = failed, newest last, at most `window`
        self.opened_s = float("-inf")  # when it last opened
        self.open_until_s = 0.0
        self.cooldown_s = 0.0
        self.probe_until_s = 0.0  # a probe is under way until then; 0 = none
        self.why = ""


class CircuitBreaker:
    """State of all models of one router. clock: seconds, monotonic."""

    def __init__(self, settings: CircuitBreakerSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._states: dict[str, _State] = {}
        self._tripped: set[str] = set()  # models that are open or probing; empty = fast path

    def available(self, pool: Pool) -> tuple[Pool, tuple[ExcludedModel, ...]]:
        """The models that may be called, and those left out with the reason.

        Never an empty pool for a non-empty one: without any other model the one that is back first
        is tried.
        """
        if not self._tripped or self._tripped.isdisjoint(pool.names):
            return pool, ()
        now_s = self._clock()
        available: list[Model] = []
        cooling: list[tuple[float, Model]] = []
        for m in pool.models:
            state = self._states[m.name] if m.name in self._tripped else None
            back_s = 0.0 if state is None else max(state.open_until_s, state.probe_until_s)
            if now_s >= back_s:
                available.append(m)
            else:
                cooling.append((back_s, m))
        if not available:
            return pool.subset(m for _, m in sorted(cooling, key=lambda row: row[0])), ()
        return pool.subset(available), tuple(self._excluded(m.name, now_s) for _, m in cooling)

    def _excluded(self, model: str, now_s: float) -> ExcludedModel:
        state = self._states[model]
        left_s = state.open_until_s - now_s
        if left_s > 0:
            return ExcludedModel(model, f"cooling down for {left_s:.1f} s: {state.why}", False)
        return ExcludedModel(model, f"one probe at a time after cooling down: {state.why}", False)

    def is_ready(self, model: str) -> bool:
        """Neither cooling down nor waiting for a probe's outcome."""
        if model not in self._tripped:
            return True
        state = self._states[model]
        return self._clock() >= max(state.open_until_s, state.probe_until_s)

    def on_call(self, model: str) -> None:
        """A call begins. The first one after a cool-down is the probe; the others wait for it. A
        call while it still cools (no other model was left) is none."""
        if model in self._tripped:
            state, now_s = self._states[model], self._clock()
            if now_s >= max(state.open_until_s, state.probe_until_s):
                state.probe_until_s = now_s + self._settings.probe_timeout_s

    def on_success(self, model: str, started_s: float | None = None) -> None:
        """A call that began at `started_s` (by the breaker's clock; None: just now) succeeded. One
        from before the model was left alone says nothing about how it is since."""
        state = self._states.get(model)
        if state is None or (started_s is not None and started_s < state.opened_s):
            return
        state.consecutive_failures = 0
        state.outcomes.append(False)
        del state.outcomes[: -self._settings.window]
        if model in self._tripped:
            self._tripped.discard(model)
            state.probe_until_s = 0.0
            state.open_until_s = 0.0
            state.cooldown_s = 0.0
            state.outcomes.clear()

    def on_abandoned(self, model: str) -> None:
        """A call ended without a verdict (the client left): a probe must not hang on it."""
        if model in self._tripped:
            self._states[model].probe_until_s = 0.0

    def on_failure(self, model: str, error: UpstreamError, started_s: float | None = None) -> None:
        """A call that began at `started_s` failed. Of one from before the model was left alone only
        its Retry-After is news: a hundred calls under way at once are one failure, not a hundred."""
        s = self._settings
        # Also where it is not a number: min() keeps its first argument then.
        asked_s = min(s.max_retry_after_s, error.retry_after_s or 0.0)
        if error.kind == "rate_limit":
            # Not unhealthy, only busy: left alone for exactly as long as it asked.
            if asked_s > 0:
                self._open(model, asked_s, "rate limited")
            else:
                self.on_abandoned(model)
            return
        if error.kind not in _COUNTS:
            self.on_abandoned(model)
            return
        state = self._states.setdefault(model, _State())
        if started_s is not None and started_s < state.opened_s:
            return
        state.consecutive_failures += 1
        state.outcomes.append(True)
        del state.outcomes[: -s.window]
        rate = sum(state.outcomes) / len(state.outcomes)
        unhealthy = state.consecutive_failures >= s.failures or (
            len(state.outcomes) >= s.window and rate >= s.ratio
        )
        if not unhealthy and not state.probe_until_s:
            return
        cooldown_s = 0.0
        if state.probe_until_s or self._clock() >= state.open_until_s:
            # Those of a last candidate that is called while it cools do not lengthen it.
            cooldown_s = state.cooldown_s = min(
                s.max_cooldown_s, (state.cooldown_s * 2) or s.cooldown_s
            )
        self._open(
            model,
            max(cooldown_s, asked_s),
            f"{state.consecutive_failures} failures in a row, last: {error.kind}",
        )

    def _open(self, model: str, seconds: float, why: str) -> None:
        state = self._states.setdefault(model, _State())
        state.opened_s = self._clock()
        state.open_until_s = max(state.open_until_s, state.opened_s + seconds)
        state.probe_until_s = 0.0
        state.why = why
        self._tripped.add(model)

    def open_models(self) -> dict[str, str]:
        """Models that are left alone now, and why."""
        now_s = self._clock()
        return {
            m: self._states[m].why for m in self._tripped if self._states[m].open_until_s > now_s
        }

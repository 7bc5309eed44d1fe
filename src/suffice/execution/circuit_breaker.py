"""Circuit breakers, one per model: a model that keeps failing is not called for a while.

The last available model is always called: if the circuit of every candidate is open, all of them
are offered, the one that recovers first in front.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from suffice.errors import UpstreamError
from suffice.pool import Pool
from suffice.types import ExcludedModel, Model

# Failures that say something about the model's health. A bad request, a filtered answer and a client
# that disconnected do not.
_COUNTED_KINDS = frozenset(
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
    """When a circuit opens, and for how long."""

    failures: int = 3
    """Opens after this many failures in a row."""
    window: int = 20
    """How many of the last calls the ratio is taken over; it needs as many."""
    ratio: float = 0.5
    """Opens at this share of failures in the window."""
    cooldown_s: float = 5.0
    """How long it stays open; doubled each time that a probe fails."""
    max_cooldown_s: float = 60.0
    """The longest cooldown."""
    probe_timeout_s: float = 60.0
    """Another probe is allowed if one has no outcome after this time."""
    max_retry_after_s: float = 3600.0
    """The longest Retry-After that is respected."""


class _State:
    """One model's circuit."""

    __slots__ = (
        "consecutive_failures",
        "cooldown_s",
        "open_until_s",
        "opened_s",
        "outcomes",
        "probe_until_s",
        "reason",
    )

    def __init__(self) -> None:
        self.consecutive_failures = 0
        self.outcomes: list[bool] = []  # True = failed; newest last, at most `window`
        self.opened_s = float("-inf")  # when it last opened
        self.open_until_s = 0.0
        self.cooldown_s = 0.0
        self.probe_until_s = 0.0  # a probe is under way until then; 0 = none
        self.reason = ""

    @property
    def ready_s(self) -> float:
        """From when on the model may be called."""
        return max(self.open_until_s, self.probe_until_s)


class CircuitBreaker:
    """The circuits of all models of one router.

    Args:
        settings: when circuits open.
        clock: monotonic seconds.
    """

    def __init__(self, settings: CircuitBreakerSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._states: dict[str, _State] = {}
        self._tripped: set[str] = set()  # models that are open or probing; empty = fast path

    def available(self, pool: Pool) -> tuple[Pool, tuple[ExcludedModel, ...]]:
        """Leave out the models that are cooling down.

        Returns:
            The models that may be called, and those left out with the reason. The pool is empty
            only if `pool` is.
        """
        if not self._tripped or self._tripped.isdisjoint(pool.names):
            return pool, ()
        now_s = self._clock()
        available: list[Model] = []
        cooling: list[tuple[float, Model]] = []
        for model in pool.models:
            ready_s = self._states[model.name].ready_s if model.name in self._tripped else 0.0
            if now_s >= ready_s:
                available.append(model)
            else:
                cooling.append((ready_s, model))
        if not available:
            return pool.subset(m for _, m in sorted(cooling, key=lambda row: row[0])), ()
        excluded = tuple(self._excluded(model.name, now_s) for _, model in cooling)
        return pool.subset(available), excluded

    def _excluded(self, model: str, now_s: float) -> ExcludedModel:
        state = self._states[model]
        remaining_s = state.open_until_s - now_s
        if remaining_s > 0:
            reason = f"cooling down for {remaining_s:.1f} s: {state.reason}"
        else:
            reason = f"one probe at a time after cooling down: {state.reason}"
        return ExcludedModel(model, reason, False)

    def is_ready(self, model: str) -> bool:
        """Whether the model is neither cooling down nor waiting for a probe's outcome."""
        return model not in self._tripped or self._clock() >= self._states[model].ready_s

    def on_call(self, model: str) -> None:
        """A call begins.

        The first one after a cooldown is the probe; others wait for it. A call during the cooldown
        (no other model was available) is not a probe.
        """
        if model in self._tripped:
            state, now_s = self._states[model], self._clock()
            if now_s >= state.ready_s:
                state.probe_until_s = now_s + self._settings.probe_timeout_s

    def on_success(self, model: str, started_s: float | None = None) -> None:
        """A call succeeded.

        Args:
            model: the model.
            started_s: when the call began, by the breaker's clock; None = just now. A call from
                before the circuit opened says nothing about the model's present state.
        """
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
        """A call ended without a verdict, e.g. the client disconnected: another probe may go."""
        if model in self._tripped:
            self._states[model].probe_until_s = 0.0

    def on_failure(self, model: str, error: UpstreamError, started_s: float | None = None) -> None:
        """A call failed.

        Args:
            model: the model.
            error: how it failed.
            started_s: when the call began. Failures of calls started before the circuit opened only
                extend the cooldown by their Retry-After: a hundred concurrent calls that fail are
                one failure.
        """
        settings = self._settings
        # min() keeps its first argument if the second is not a number.
        retry_after_s = min(settings.max_retry_after_s, error.retry_after_s or 0.0)
        if error.kind == "rate_limit" and retry_after_s > 0:
            self._open(model, retry_after_s, "rate limited")  # busy, not unhealthy
            return
        if error.kind not in _COUNTED_KINDS:
            self.on_abandoned(model)
            return
        state = self._states.setdefault(model, _State())
        if started_s is not None and started_s < state.opened_s:
            return
        state.consecutive_failures += 1
        state.outcomes.append(True)
        del state.outcomes[: -settings.window]
        if not self._is_unhealthy(state) and not state.probe_until_s:
            return
        cooldown_s = 0.0
        if state.probe_until_s or self._clock() >= state.open_until_s:
            # Calls of a last candidate during its cooldown do not lengthen it.
            cooldown_s = state.cooldown_s = min(
                settings.max_cooldown_s, (state.cooldown_s * 2) or settings.cooldown_s
            )
        reason = f"{state.consecutive_failures} failures in a row, last: {error.kind}"
        self._open(model, max(cooldown_s, retry_after_s), reason)

    def _is_unhealthy(self, state: _State) -> bool:
        settings = self._settings
        failure_rate = sum(state.outcomes) / len(state.outcomes)
        return state.consecutive_failures >= settings.failures or (
            len(state.outcomes) >= settings.window and failure_rate >= settings.ratio
        )

    def _open(self, model: str, seconds: float, reason: str) -> None:
        state = self._states.setdefault(model, _State())
        state.opened_s = self._clock()
        state.open_until_s = max(state.open_until_s, state.opened_s + seconds)
        state.probe_until_s = 0.0
        state.reason = reason
        self._tripped.add(model)

    def open_models(self) -> dict[str, str]:
        """The models that are cooling down now, each with the reason."""
        now_s = self._clock()
        states = ((model, self._states[model]) for model in self._tripped)
        return {model: state.reason for model, state in states if state.open_until_s > now_s}

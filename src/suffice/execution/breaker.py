"""Circuit breakers, one for each model: a model that keeps failing is left alone for a while.

Never the last one: where every candidate is open, all are offered, the soonest to recover first.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..errors import UpstreamError
from ..types import Excluded, Model

# Failures that speak of the model's health. A bad request, a filtered answer, a client that left or
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


class BreakerSettings(msgspec.Struct, frozen=True):
    """Opens after `failures` in a row, or at `ratio` failed of the last `window` calls (with at
    least `window` calls seen). Cools for `cool_s`, doubling up to `max_cool_s` while probes fail."""

    failures: int = 3
    window: int = 20
    ratio: float = 0.5
    cool_s: float = 5.0
    max_cool_s: float = 60.0


class _State:
    __slots__ = ("cool_s", "in_a_row", "open_until_s", "outcomes", "probing", "why")

    def __init__(self, window: int) -> None:
        self.in_a_row = 0
        self.outcomes: list[bool] = []  # True = failed, newest last, at most `window`
        self.open_until_s = 0.0
        self.cool_s = 0.0
        self.probing = False
        self.why = ""


class Breaker:
    """State of all models of one router. clock: seconds, monotonic."""

    def __init__(self, settings: BreakerSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._states: dict[str, _State] = {}
        self._tripped: set[str] = set()  # models that are open or probing; empty = fast path

    def available(
        self, models: tuple[Model, ...]
    ) -> tuple[tuple[Model, ...], tuple[Excluded, ...]]:
        """(models that may be called, those left out and why); never an empty first part for a
        non-empty `models`."""
        if not self._tripped or self._tripped.isdisjoint(m.name for m in models):
            return models, ()
        now_s = self._clock()
        kept: list[Model] = []
        out: list[tuple[float, Model, str]] = []
        for m in models:
            state = self._states.get(m.name) if m.name in self._tripped else None
            if state is None or (now_s >= state.open_until_s and not state.probing):
                kept.append(m)
            else:
                out.append((state.open_until_s, m, state.why))
        if not kept:
            return tuple(m for _, m, _ in sorted(out, key=lambda row: row[0])), ()
        return tuple(kept), tuple(
            Excluded(m.name, f"cooling down for {max(0.0, until - now_s):.1f} s: {why}", False)
            for until, m, why in out
        )

    def calling(self, model: str) -> None:
        """A call begins. The first one after a cool-down is the probe; the others wait for it."""
        if model in self._tripped:
            self._states[model].probing = True

    def succeeded(self, model: str) -> None:
        state = self._states.get(model)
        if state is None:
            return
        state.in_a_row = 0
        state.outcomes.append(False)
        del state.outcomes[: -self._settings.window]
        if model in self._tripped:
            self._tripped.discard(model)
            state.probing = False
            state.cool_s = 0.0
            state.outcomes.clear()

    def left(self, model: str) -> None:
        """A call ended without a verdict (the client left): a probe must not hang on it."""
        if model in self._tripped:
            self._states[model].probing = False

    def failed(self, model: str, error: UpstreamError) -> None:
        if error.kind == "rate_limit":
            # Not ill, only busy: left alone for exactly as long as it asked.
            if error.retry_after_s:
                self._open(model, error.retry_after_s, "rate limited")
            else:
                self.left(model)
            return
        if error.kind not in _COUNTS:
            self.left(model)
            return
        s = self._settings
        state = self._states.setdefault(model, _State(s.window))
        state.in_a_row += 1
        state.outcomes.append(True)
        del state.outcomes[: -s.window]
        rate = sum(state.outcomes) / len(state.outcomes)
        ill = state.in_a_row >= s.failures or (len(state.outcomes) >= s.window and rate >= s.ratio)
        if ill or state.probing:
            state.cool_s = min(s.max_cool_s, (state.cool_s * 2) or s.cool_s)
            cool_s = max(state.cool_s, error.retry_after_s or 0.0)
            self._open(model, cool_s, f"{state.in_a_row} failures in a row, last: {error.kind}")

    def _open(self, model: str, seconds: float, why: str) -> None:
        state = self._states.setdefault(model, _State(self._settings.window))
        state.open_until_s = max(state.open_until_s, self._clock() + seconds)
        state.probing = False
        state.why = why
        self._tripped.add(model)

    def open_models(self) -> dict[str, str]:
        """Models that are left alone now, and why."""
        now_s = self._clock()
        return {
            m: self._states[m].why for m in self._tripped if self._states[m].open_until_s > now_s
        }

"""The money of a day: what is spent, what calls in flight have reserved, and a ceiling over both.

Before a call its worst cost is reserved, after it what it cost is settled, and no reservation may
pass the ceiling. Money is held in whole nano-dollars, rounded up, so that no order of additions can
pass the ceiling by rounding.
"""

from __future__ import annotations

from math import ceil, isfinite
from typing import NamedTuple

NANO = 1_000_000_000

_BIAS_MEMORY = 0.98  # what a settled request's error is worth after each further one
_BIAS_REQUESTS = 20.0  # what "costs are as predicted" counts for


class Totals(NamedTuple):
    """Today's money in USD: spent and settled, reserved by calls in flight, and the ceiling."""

    spent_usd: float
    reserved_usd: float
    ceiling_usd: float


class Account:
    """usd_per_day: the ceiling; None: there is none. max_usd_per_query: no call may cost more."""

    def __init__(self, usd_per_day: float | None, max_usd_per_query: float | None) -> None:
        self.ceiling = None if usd_per_day is None else int(usd_per_day * NANO)
        self.most_each = max_usd_per_query
        self.day = -1
        self.spent = 0
        self.own = 0  # reserved by our calls in flight
        self.others = 0  # by those of other workers
        self.flying = 0  # what our calls in flight will probably cost
        self.overrun = 1.0  # the most that a call cost over its worst
        self.bias: dict[str, list[float]] = {}  # predicted and settled USD, fading
        self._open: dict[str, _Call] = {}

    @property
    def reserved(self) -> int:
        return self.own + self.others

    @property
    def free(self) -> int:
        """Neither spent nor reserved; 0 where there is no ceiling."""
        return (self.ceiling or 0) - self.spent - self.reserved

    @property
    def out(self) -> int:
        """Spent today, and what calls in flight will probably cost (not what they reserve)."""
        return self.spent + self.flying

    def turn(self, day: int) -> None:
        """A new day; what is still in flight is the old one's."""
        self.day = day
        self.spent = self.own = self.others = self.flying = 0

    def covers(self, worst_usd: float) -> bool:
        """Whether a call of this worst cost, corrected by `overrun`, may be made now. What costs
        nothing always may, also where a budget that was lowered is overspent."""
        if self.most_each is not None and not worst_usd <= self.most_each:
            return False
        if self.ceiling is None:
            return True
        if not (isfinite(worst_usd) and worst_usd >= 0.0):
            return False
        return worst_usd == 0.0 or nano(worst_usd) <= self.free

    def reserve(self, call: str, model: str, cost_usd: float, worst_usd: float) -> int | None:
        """See `Pacer.reserve`."""
        if call in self._open:
            raise ValueError(f"call: {call!r} is reserved already")
        known = isfinite(worst_usd) and worst_usd >= 0.0
        limited = self.most_each is not None or self.ceiling is not None
        if limited and not (known and self.covers(worst_usd * self.overrun)):
            return None
        worst = nano(worst_usd * self.overrun) if known else 0
        predicted = float(cost_usd) if isfinite(cost_usd) and cost_usd > 0.0 else 0.0
        expected = min(worst, nano(predicted * self.bias_of(model)))
        self._open[call] = _Call(model, self.day, worst, expected, predicted, float(worst_usd))
        self.own += worst
        self.flying += expected
        return worst

    def settle(self, call: str, cost_usd: float | None) -> None:
        """See `Pacer.settle`."""
        done = self._open.pop(call)
        today = done.day == self.day
        if today:
            self.own -= done.worst
            self.flying -= done.expected
        if cost_usd is None or not isfinite(cost_usd):
            self.spent += done.worst if today else 0
            return
        if today:
            self.spent += nano(max(0.0, cost_usd))
        if done.worst_usd > 0.0 and cost_usd > done.worst_usd:
            # Who says "worst" was wrong; from now on more is set aside.
            self.overrun = float(min(max(self.overrun, cost_usd / done.worst_usd), 100.0))
        if done.predicted > 0.0 and cost_usd > 0.0:
            told = self.bias.setdefault(done.model, [0.0, 0.0])
            told[0] = told[0] * _BIAS_MEMORY + done.predicted
            told[1] = told[1] * _BIAS_MEMORY + float(cost_usd)

    def sync(self, spent_usd: float, reserved_usd: float) -> None:
        """See `Pacer.sync`."""
        self.spent, self.others = nano(spent_usd), nano(reserved_usd)

    def totals(self) -> Totals:
        most = float("inf") if self.ceiling is None else self.ceiling / NANO
        return Totals(self.spent / NANO, self.reserved / NANO, most)

    def bias_of(self, model: str) -> float:
        """Settled over predicted cost of a model, held near 1 while little is settled."""
        told = self.bias.get(model)
        if told is None or told[0] <= 0.0:
            return 1.0
        requests = 1.0 / (1.0 - _BIAS_MEMORY)
        prior = told[0] * _BIAS_REQUESTS / requests
        return min(5.0, max(0.2, (told[1] + prior) / (told[0] + prior)))


def nano(usd: float) -> int:
    return ceil(usd * NANO)


class _Call(NamedTuple):
    model: str
    day: int
    worst: int  # nano-dollars set aside
    expected: int  # nano-dollars it will probably cost
    predicted: float  # USD, before our own correction
    worst_usd: float  # as its caller said

"""The money of a day: what is spent, what calls in flight have reserved, and a ceiling over both.

Before a call its maximum cost is reserved; after it what it cost is settled. No reservation may pass the
ceiling. Money is held in whole nano-dollars, rounded up, so that no order of additions passes the
ceiling by rounding.
"""

from __future__ import annotations

from math import ceil, isfinite
from typing import NamedTuple

NANO = 1_000_000_000

_BIAS_DECAY = 0.98  # of a settled request's error, per further request
_BIAS_PRIOR_REQUESTS = 20.0  # the weight of "costs are as predicted"


class Totals(NamedTuple):
    """Today's money in USD."""

    spent_usd: float
    """Settled."""
    reserved_usd: float
    """Reserved by calls in flight."""
    ceiling_usd: float


class Account:
    """One day's money under a ceiling of `usd_per_day`. All amounts are nano-dollars unless named."""

    def __init__(self, usd_per_day: float) -> None:
        self.ceiling = int(usd_per_day * NANO)
        self.day = -1
        self.spent = 0
        self.reserved_here = 0  # by calls of this process
        self.reserved_elsewhere = 0  # by calls of other workers
        self.expected_in_flight = 0  # what our calls in flight will probably cost
        self.cost_overrun = 1.0  # the largest ratio of a call's cost to its stated maximum
        self._open: dict[str, _OpenCall] = {}
        self._bias: dict[
            str, tuple[float, float]
        ] = {}  # model -> predicted and settled USD, decayed

    @property
    def reserved(self) -> int:
        """Reserved by calls in flight of all workers."""
        return self.reserved_here + self.reserved_elsewhere

    @property
    def free(self) -> int:
        """Neither spent nor reserved."""
        return self.ceiling - self.spent - self.reserved

    @property
    def committed(self) -> int:
        """Spent today, plus what calls in flight will probably cost (not what they reserve)."""
        return self.spent + self.expected_in_flight

    def start_day(self, day: int) -> None:
        """Start a new day. Calls in flight belong to the day before."""
        self.day = day
        self.spent = self.reserved_here = self.reserved_elsewhere = self.expected_in_flight = 0

    def covers(self, max_cost_usd: float) -> bool:
        """Whether a call of this maximum cost, corrected by `cost_overrun`, may be made now."""
        if not (isfinite(max_cost_usd) and max_cost_usd >= 0.0):
            return False
        # What costs nothing may be called even if a lowered budget is overspent.
        return max_cost_usd == 0.0 or nano_usd(max_cost_usd) <= self.free

    def reserve(self, call: str, model: str, cost_usd: float, max_cost_usd: float) -> int | None:
        """Reserve for a call. See `Pacer.reserve`."""
        if call in self._open:
            raise ValueError(f"call: {call!r} is reserved already")
        if not self.covers(max_cost_usd * self.cost_overrun):
            return None
        reserved = nano_usd(max_cost_usd * self.cost_overrun)
        predicted = float(cost_usd) if isfinite(cost_usd) and cost_usd > 0.0 else 0.0
        expected = min(reserved, nano_usd(predicted * self.bias_of(model)))
        self._open[call] = _OpenCall(
            model, self.day, reserved, expected, predicted, float(max_cost_usd)
        )
        self.reserved_here += reserved
        self.expected_in_flight += expected
        return reserved

    def settle(self, call: str, cost_usd: float | None) -> None:
        """Settle a call. See `Pacer.settle`."""
        settled = self._open.pop(call)
        today = settled.day == self.day
        if today:
            self.reserved_here -= settled.reserved
            self.expected_in_flight -= settled.expected
        if cost_usd is None or not isfinite(cost_usd):
            self.spent += settled.reserved if today else 0
            return
        if today:
            self.spent += nano_usd(max(0.0, cost_usd))
        if settled.max_cost_usd > 0.0 and cost_usd > settled.max_cost_usd:
            # The caller's maximum was too low. From now on more is reserved.
            overrun = cost_usd / settled.max_cost_usd
            self.cost_overrun = float(min(max(self.cost_overrun, overrun), 100.0))
        if settled.predicted_usd > 0.0 and cost_usd > 0.0:
            predicted, actual = self._bias.get(settled.model, (0.0, 0.0))
            self._bias[settled.model] = (
                predicted * _BIAS_DECAY + settled.predicted_usd,
                actual * _BIAS_DECAY + float(cost_usd),
            )

    def sync(self, spent_usd: float, reserved_usd: float) -> None:
        """Take over today's totals. See `Pacer.sync`."""
        self.spent, self.reserved_elsewhere = nano_usd(spent_usd), nano_usd(reserved_usd)

    def totals(self) -> Totals:
        """Today's money in USD."""
        return Totals(self.spent / NANO, self.reserved / NANO, self.ceiling / NANO)

    def bias_of(self, model: str) -> float:
        """The ratio of settled to predicted cost of a model, shrunk to 1 while little is settled."""
        predicted, actual = self._bias.get(model, (0.0, 0.0))
        if predicted <= 0.0:
            return 1.0
        requests = 1.0 / (1.0 - _BIAS_DECAY)
        prior = predicted * _BIAS_PRIOR_REQUESTS / requests
        return min(5.0, max(0.2, (actual + prior) / (predicted + prior)))


def nano_usd(usd: float) -> int:
    """USD in nano-dollars, rounded up."""
    return ceil(usd * NANO)


class _OpenCall(NamedTuple):
    model: str
    day: int
    reserved: int  # nano-dollars
    expected: int  # nano-dollars it will probably cost
    predicted_usd: float  # before the correction by `bias_of`
    max_cost_usd: float  # as the caller stated it

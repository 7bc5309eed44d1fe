"""Paces a daily budget: the multiplier of quality - lambda * cost that spends what is left.

Every few requests lambda is solved for on the latest predicted (quality, cost) vectors, so that the
predicted spend equals the remaining money per request still expected today (`lagrange`). Each request
draws between the two lambdas next to the solution, so that the spend is met exactly in expectation. An
`Account` enforces the ceiling. Time and seeds are arguments.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from math import inf, isfinite, isnan, nan
from typing import NamedTuple

import numpy as np

from suffice.budgets.account import NANO, Account, Totals
from suffice.budgets.lagrange import FloatArray, Multiplier, solve_remaining
from suffice.budgets.traffic_forecast import TrafficForecast

MAX_USD_PER_DAY = 9e6  # so that sums fit 64 bits

_WINDOW = 256  # vectors that lambda is solved on
_SOLVE_EVERY = 16  # requests between two solutions
_MAX_COST_DECAY = 0.9  # of the moving average of a model's maximum cost, per request

# Share of the ceiling to spend. The rest keeps the day's last requests from being refused. Of the money
# left at any time at least this share may be spent, so that the last requests are not starved.
_AIM, _REMAINING_SHARE = 0.99, 0.5
_OVERSPEND = 0.01  # of the day's aim, beyond what the last solution promised: then solve again

# Share of the day's requests that are given to cheaper models at its end, because only they can spend the
# last of the money: more of them would cost more quality than the rest of the money is worth.
_LATE_SHARE = 0.05

# The cheapest model is kept affordable for the expected requests plus so many standard deviations: a
# refusal costs far more quality than a more expensive model gains. Towards midnight less is kept, since it
# could not be spent any more.
_RISK_STDS, _LATE_RISK_STDS = 2.0, 1.0

# Towards midnight fewer requests are planned for than expected, by up to this share: a shortage can be
# made up for by cheaper models, money left over is lost. In an end of the day shorter than `_QUIET_END`
# most probably no burst comes.
_FEWER, _QUIET_END = 0.4, 0.15


class PacingDecision(NamedTuple):
    """Which candidate the budget is best spent on."""

    action: int | None
    """Index of the candidate; `None` if none may be called."""
    propensities: tuple[float, ...]
    """(k,), summing to 1, or all 0."""
    quality_per_usd: float
    """The multiplier that was used; infinite if only the cheapest is taken."""
    usd_per_request: float
    """Money for each request still expected today."""
    reason: str
    """Why none may be called."""


class Pacer:
    """Paces a daily budget (days in UTC). Not safe for threads: use one event loop, or a lock.

    Args:
        usd_per_day: The ceiling.
        aim: The share of the ceiling to spend.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, usd_per_day: float, *, aim: float = _AIM) -> None:
        if not 0.0 < usd_per_day <= MAX_USD_PER_DAY:
            raise ValueError(
                f"usd_per_day: expected above 0, at most {MAX_USD_PER_DAY:g}, got {usd_per_day!r}"
            )
        if not 0.5 <= aim <= 1.0:
            raise ValueError(f"aim: expected 0.5 to 1, got {aim!r}")
        self.usd_per_day = usd_per_day
        self.aim = aim
        self._forecast = TrafficForecast()
        self._account = Account(usd_per_day)
        self._window = _PredictionWindow()
        self._since_solved = 0  # requests
        self._committed_at_solve = 0  # nano-dollars
        self._interval = _SOLVE_EVERY
        self._multiplier = Multiplier(0.0, 0.0, 1.0, inf)

    @property
    def day_number(self) -> int:
        """Today in days since 1970; -1 before the first request."""
        return self._forecast.number

    @property
    def requests_today(self) -> float:
        """Requests counted today."""
        return self._forecast.requests

    # ── deciding ─────────────────────────────────────────────────────────────────────────────────

    def decide(
        self,
        now_s: float,
        models: Sequence[str],
        quality: Sequence[float],
        cost_usd: Sequence[float],
        max_cost_usd: Sequence[float],
        *,
        seed: int,
        commit: bool = True,
    ) -> PacingDecision:
        """Choose a candidate for one request, which is counted as today's. Call `reserve` next.

        Args:
            now_s: Unix seconds.
            models: The candidates' names.
            quality: (k,) predicted quality.
            cost_usd: (k,) predicted cost; NaN = unknown, never called.
            max_cost_usd: (k,) upper bounds of the cost; NaN = unknown, never called.
            seed: Seeds the draw between the two multipliers.
            commit: If false, no state changes.

        Returns:
            The choice with its propensities.
        """
        account = self._account
        q = [float(v) for v in quality]
        c = [float(v) * account.bias_of(m) for m, v in zip(models, cost_usd, strict=True)]
        max_cost = [float(v) * account.cost_overrun for v in max_cost_usd]
        if commit:
            self._start_day(now_s)
            self._forecast.count(now_s)
            self._window.append(models, q, c, max_cost)
            self._since_solved += 1
            if (
                self._since_solved >= self._interval
                or self._window.seen <= _SOLVE_EVERY
                or self._overspends()
            ):
                self._solve(now_s)
        eligible = [
            i
            for i in range(len(c))
            if isfinite(c[i]) and max_cost[i] >= 0.0 and account.covers(max_cost[i])
        ]
        return self._draw(q, c, eligible, seed)

    def _draw(
        self, q: list[float], c: list[float], eligible: list[int], seed: int
    ) -> PacingDecision:
        low, high, mix, usd_per_request = self._multiplier
        k = len(c)
        if not eligible:
            return PacingDecision(None, (0.0,) * k, inf, usd_per_request, self._refusal())
        takes_low = random.Random(seed).random() < mix
        at_low, at_high = _best(q, c, low, eligible), _best(q, c, high, eligible)
        propensities = [0.0] * k
        propensities[at_low] += mix
        propensities[at_high] += 1.0 - mix
        action, multiplier = (at_low, low) if takes_low else (at_high, high)
        return PacingDecision(action, tuple(propensities), multiplier, usd_per_request, "")

    def _refusal(self) -> str:
        if self._account.free <= 0:
            return "today's budget is spent or reserved by calls in flight"
        return "no model's maximum cost fits what is left of today's budget"

    def _overspends(self) -> bool:
        """Whether 1 % of the day's aim more was committed than the last solution promised."""
        # The reference is the solution, not the share of the day that has passed: the traffic is only
        # forecast, so each revised forecast would look like overspending.
        promised = self._since_solved * self._multiplier.usd_per_request * NANO
        spent = self._account.committed - self._committed_at_solve
        return spent > promised + _OVERSPEND * self._aim_nano_usd()

    def _aim_nano_usd(self) -> float:
        return self._today_nano_usd() * self.aim

    def _today_nano_usd(self) -> float:
        # Of a day that was joined in the middle only the remaining fraction is spent.
        return self._account.ceiling * self._forecast.observed_fraction

    def _solve(self, now_s: float) -> None:
        self._since_solved = 0
        committed = self._committed_at_solve = self._account.committed
        planned, high = self._traffic(now_s)
        usd = max(
            self._aim_nano_usd() - committed,
            _REMAINING_SHARE * (self._today_nano_usd() - committed),
            0.0,
        )
        usd /= NANO
        spare_usd = max(0.0, (self._account.ceiling - committed) / NANO - usd)
        q, c = self._window.rows()
        cheapest = np.where(np.isfinite(q) & np.isfinite(c), c, inf).min(axis=1, initial=inf)
        cheapest = cheapest[cheapest < inf]
        least_usd = float(cheapest.mean()) if len(cheapest) else 0.0
        # If `high` requests come, at least the cheapest model must still be affordable.
        kept_usd = min(
            max(0.0, (high - planned) * least_usd - spare_usd),
            max(0.0, usd - planned * least_usd),
        )
        self._multiplier = solve_remaining(
            q,
            c,
            usd - kept_usd,
            planned,
            self._window.max_cost_usd,
            spare_usd + kept_usd,
            _LATE_SHARE * (self._forecast.requests + high),
        )
        # Towards midnight fewer requests are left than usually pass between two solutions.
        self._interval = max(1, min(_SOLVE_EVERY, int(planned / _SOLVE_EVERY)))

    def _traffic(self, now_s: float) -> tuple[float, float]:
        """Requests to plan today's money for, and to keep the cheapest model affordable for."""
        remaining, share = self._forecast.remaining(now_s), self._forecast.remaining_share(now_s)
        bursts = remaining.expected - remaining.baseline
        likely = remaining.baseline + bursts * share / (share + _QUIET_END)
        late = (1.0 - share) ** 4
        planned = likely - min(remaining.std, _FEWER * likely) * late
        risk = _RISK_STDS + (_LATE_RISK_STDS - _RISK_STDS) * late
        return max(1.0, planned), remaining.expected + risk * remaining.std

    def count_external(self, n: int, now_s: float) -> None:
        """Count `n` requests of today that were not decided here.

        They were another worker's, or the client chose the model. The last solution's money was meant
        for them as well.
        """
        self._start_day(now_s)
        for _ in range(n):
            self._forecast.count(now_s)
        self._since_solved += n

    def replay_traffic(self, bins: Iterable[tuple[float, float, int]], now_s: float) -> None:
        """Rebuild the forecast from recorded traffic.

        Args:
            bins: In order of time: the start of a bin and a time inside it, in unix seconds, and the
                number of its requests.
            now_s: Unix seconds.
        """
        forecast = self._forecast
        for start_s, inside_s, n in bins:
            forecast.start_day(start_s)
            for _ in range(n):
                forecast.count(inside_s)
        forecast.start_day(now_s)

    # ── money ────────────────────────────────────────────────────────────────────────────────────

    def reserve(
        self, call: str, model: str, cost_usd: float, max_cost_usd: float, now_s: float
    ) -> int | None:
        """Reserve the maximum cost of a call before it is made.

        Args:
            call: A unique name. A second attempt of one request is another call.
            model: The model's name.
            cost_usd: The predicted cost.
            max_cost_usd: The upper bound of the cost.
            now_s: Unix seconds.

        Returns:
            The reserved nano-dollars, which may be 0; `None` if the call must not be made.

        Raises:
            ValueError: The call is open already.
        """
        self._start_day(now_s)
        return self._account.reserve(call, model, cost_usd, max_cost_usd)

    def settle(self, call: str, cost_usd: float | None) -> None:
        """Settle a reserved call. A call of an earlier day counts for that day.

        Args:
            call: The name given to `reserve`.
            cost_usd: What it cost, 0 if nothing was billed; `None` = unknown, so all of its reservation
                is spent.

        Raises:
            KeyError: The call is not open.
        """
        self._account.settle(call, cost_usd)

    def totals(self) -> Totals:
        """Today's money in USD."""
        return self._account.totals()

    def sync(self, spent_usd: float, reserved_usd: float = 0.0) -> None:
        """Take over today's totals of all workers.

        Args:
            spent_usd: Everything settled today.
            reserved_usd: What calls of *other* workers have reserved.
        """
        self._account.sync(spent_usd, reserved_usd)

    def _start_day(self, now_s: float) -> None:
        if self._forecast.start_day(now_s):
            self._account.start_day(self._forecast.number)
            self._committed_at_solve = 0
            self._since_solved = self._interval  # so that the next request solves again


class _PredictionWindow:
    """The latest (quality, cost) vectors, one column per model."""

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}
        self._quality = np.full((_WINDOW, 0), np.nan)
        self._cost = np.full((_WINDOW, 0), np.nan)
        self.seen = 0
        self.max_cost_usd: list[float] = []  # moving average of what must be free for a call

    def append(
        self, models: Sequence[str], q: list[float], c: list[float], max_cost: list[float]
    ) -> None:
        """Add the predictions of one request; the oldest are dropped."""
        new = [m for m in models if m not in self._columns]
        if new:
            for m in new:
                self._columns[m] = len(self._columns)
                self.max_cost_usd.append(nan)
            columns_to_add = np.full((_WINDOW, len(new)), np.nan)
            self._quality = np.concatenate([self._quality, columns_to_add], axis=1)
            self._cost = np.concatenate([self._cost, columns_to_add], axis=1)
        row = self.seen % _WINDOW
        columns = [self._columns[m] for m in models]
        self._quality[row] = np.nan
        self._cost[row] = np.nan
        self._quality[row, columns] = q
        self._cost[row, columns] = c
        for i, usd in zip(columns, max_cost, strict=True):
            if isfinite(usd):
                before = usd if isnan(self.max_cost_usd[i]) else self.max_cost_usd[i]
                self.max_cost_usd[i] = usd + _MAX_COST_DECAY * (before - usd)
        self.seen += 1

    def rows(self) -> tuple[FloatArray, FloatArray]:
        """(n, models) quality and cost; NaN where a model was not a candidate."""
        n = min(self.seen, _WINDOW)
        return self._quality[:n], self._cost[:n]


def _best(q: list[float], c: list[float], multiplier: float, eligible: list[int]) -> int:
    """The eligible candidate of the highest quality - multiplier * cost; ties go to the cheaper."""

    def worth(i: int) -> tuple[float, float]:
        return (-c[i] if multiplier == inf else q[i] - multiplier * c[i], -c[i])

    return max(eligible, key=worth)

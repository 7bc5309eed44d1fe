"""One route's budget for a day: the pacer, the clock, and what all workers have spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor

from suffice.budgets.account import NANO, Totals
from suffice.budgets.cost_bounds import dollars
from suffice.budgets.pacer import Pacer, PacingDecision
from suffice.budgets.shared_ledger import Row
from suffice.budgets.traffic_forecast import BINS, DAY_S, seconds_to_midnight
from suffice.errors import BudgetExceededError
from suffice.store.protocols import DecisionLog

_SOON_S = 5.0  # until calls in flight may have given back what they reserved


class DailyBudget:
    """usd_per_day: of this process where `row` is its own, of all workers where they share it.

    Raises ValueError that names the argument. Safe for threads.
    """

    def __init__(
        self, route: str, usd_per_day: float, row: Row, clock: Callable[[], float]
    ) -> None:
        self.route = route
        self.usd_per_day = usd_per_day
        self.clock = clock
        self.pacer = Pacer(usd_per_day)
        self._row = row
        self._ceiling = floor(usd_per_day * NANO)
        self._heard = 0  # of the row's requests those that the pacer knows of
        self._held: dict[str, tuple[int, int]] = {}  # call -> day, nano-dollars
        self._ready = False

    # ── after a restart ──────────────────────────────────────────────────────────────────────────

    def restore(self, store: DecisionLog) -> None:
        """Take from the store what today has cost and how the traffic ran. Once; raises StoreError.

        Requests whose cost is not known count as the mean of the others.
        """
        if self._ready:
            return
        now_s = self.clock()
        self._recall(store, now_s)
        today = int(now_s // DAY_S)
        with self._row as row:
            begun = row.day != 0
        if not begun:
            told = store.spend(self.route, today * DAY_S)
            known = told.requests - told.unknown
            usd = told.usd * (told.requests / known if known else 1.0)
            with self._row as row:
                if row.day == 0:
                    row.begin(today, ceil(usd * NANO), told.requests)
        with self._row as row:
            self._heard = row.requests
        self._ready = True

    def _recall(self, store: DecisionLog, now_s: float) -> None:
        """The pacer's picture of a day, from the requests of yesterday and of today so far."""
        first_s = floor(now_s / DAY_S) * DAY_S - DAY_S
        width_s = DAY_S / BINS
        counts: list[tuple[float, int]] = []
        at_s = first_s
        while at_s <= now_s:
            counts.append((at_s, store.spend(self.route, at_s, at_s + width_s).requests))
            at_s += width_s
        if not store.spend(self.route, first_s - DAY_S, first_s).requests:
            # The route began later: a day that it was not there for is none to go by.
            while counts and not counts[0][1]:
                del counts[0]
        day = self.pacer.day
        for at_s, n in counts:
            day.turn(at_s)
            for _ in range(n):
                day.count(min(at_s + width_s / 2, now_s))
        day.turn(now_s)

    # ── deciding ─────────────────────────────────────────────────────────────────────────────────

    def pace(
        self,
        models: Sequence[str],
        quality: Sequence[float],
        cost_usd: Sequence[float],
        worst_usd: Sequence[float],
        *,
        seed: int,
        counts: bool,
    ) -> PacingDecision:
        """The pacer's word on one request; see `Pacer.decide`. counts False: nothing is changed."""
        now_s = self.clock()
        with self._row as row:
            self._sync(row, now_s, counts)
            if counts:
                row.requests += 1
                self._heard += 1
            return self.pacer.decide(
                now_s, models, quality, cost_usd, worst_usd, seed=seed, count=counts
            )

    def note(self) -> None:
        """One request more that the pacer was not asked about."""
        with self._row as row:
            self._sync(row, self.clock())
            row.requests += 1  # heard of at the next look, like another worker's

    def _sync(self, row: Row, now_s: float, counts: bool = True) -> None:
        """The pacer hears of what the other workers did since it was last asked."""
        pacer, today = self.pacer, int(now_s // DAY_S)
        if counts and row.day < today:
            row.begin(today)
        if counts and pacer.day.number == row.day:
            pacer.note(row.requests - self._heard, now_s)
            self._heard = row.requests
        elif counts:
            self._heard = 0
        spent = row.spent if row.day == today else 0
        pacer.sync(spent / NANO, (row.reserved - row.own) / NANO)

    def left_usd(self) -> float:
        """Neither spent nor reserved today."""
        with self._row as row:
            return max(0, self._free(row)) / NANO

    def fits(self, worst_usd: float) -> bool:
        """Whether a call of this worst cost could be made now."""
        with self._row as row:
            worst = ceil(worst_usd * NANO)
            return worst <= 0 or worst <= self._free(row)

    def _free(self, row: Row) -> int:
        if row.day < int(self.clock() // DAY_S):
            return self._ceiling
        return self._ceiling - row.spent - row.reserved

    # ── money ────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, call: str, model: str, cost_usd: float, worst_usd: float) -> bool:
        """Set a call's worst cost aside before it is made. False: it must not be made."""
        now_s = self.clock()
        with self._row as row:
            self._sync(row, now_s)
            held = self.pacer.reserve(call, model, cost_usd, worst_usd, now_s)
            if held is None:
                return False
            if held > 0 and held > self._free(row):
                self.pacer.settle(call, 0.0)
                return False
            row.own += held
            self._held[call] = (row.day, held)
            return True

    def settle(self, call: str, cost_usd: float | None) -> None:
        """What a reserved call cost; None = not known, all of its reservation. Raises KeyError for a
        call that is not open."""
        with self._row as row:
            day, held = self._held.pop(call)
            self.pacer.settle(call, cost_usd)
            if row.closed or day != row.day:
                return  # counted as spent when we left; or the old day's
            # In this order: killed in between, a worker has counted too much, never too little.
            row.spent += held if cost_usd is None else ceil(max(0.0, cost_usd) * NANO)
            row.own = max(0, row.own - held)

    def totals(self) -> Totals:
        """Today's money of all workers."""
        with self._row as row:
            spent, reserved = row.spent, row.reserved
            if row.day < int(self.clock() // DAY_S):
                spent = reserved = 0
        return Totals(spent / NANO, reserved / NANO, self.usd_per_day)

    def exceeded(self, least_usd: float) -> BudgetExceededError:
        """The refusal of a request whose cheapest call would cost up to `least_usd`."""
        told = self.totals()
        of = f"of {dollars(self.usd_per_day)} a day of route {self.route!r}"
        if told.reserved_usd > 0.0 and told.spent_usd + least_usd <= self.usd_per_day:
            return BudgetExceededError(
                f"What is left of the budget {of} is reserved by calls in flight.",
                retry_after_s=_SOON_S,
                final=False,
            )
        left = max(0.0, self.usd_per_day - told.spent_usd)
        return BudgetExceededError(
            f"The budget {of} is spent: {dollars(left)} left, and the cheapest model may cost "
            f"{dollars(least_usd)}. It begins anew at midnight UTC.",
            retry_after_s=seconds_to_midnight(self.clock()),
            final=True,
        )

"""The daily budget of one route: the pacer, the clock, and what all workers have spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor, isfinite

from suffice.budgets.account import NANO, Totals
from suffice.budgets.cost_bounds import format_usd
from suffice.budgets.pacer import Pacer, PacingDecision
from suffice.budgets.shared_ledger import LedgerRow
from suffice.budgets.traffic_forecast import BINS, DAY_S, seconds_to_midnight
from suffice.errors import BudgetExceededError
from suffice.store.protocols import DecisionLog

_RETRY_AFTER_S = 5.0  # after which calls in flight may have released what they reserved


class DailyBudget:
    """The daily budget of one route. Safe for threads.

    Args:
        route: The route's name.
        usd_per_day: The budget of all workers that share `row`.
        row: The route's numbers in the ledger.
        clock: Returns unix seconds.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, route: str, usd_per_day: float, row: LedgerRow, clock: Callable[[], float]
    ) -> None:
        self.route = route
        self.usd_per_day = usd_per_day
        self._clock = clock
        self._pacer = Pacer(usd_per_day)
        self._row = row
        self._ceiling = floor(usd_per_day * NANO)
        self._seen_requests = 0  # of the row's requests, those that the pacer knows of
        self._reserved: dict[str, tuple[int, int]] = {}  # call -> day, nano-dollars
        self._restored = False

    @property
    def requests_today(self) -> float:
        """Requests of today that the pacer knows of."""
        return self._pacer.requests_today

    # ── after a restart ──────────────────────────────────────────────────────────────────────────

    def restore(self, store: DecisionLog) -> None:
        """Load today's spend and the recent traffic, once per process.

        A request whose cost is unknown counts as the mean of the others.

        Raises:
            StoreError: The store cannot be read.
        """
        if self._restored:
            return
        now_s = self._clock()
        self._rebuild_forecast(store, now_s)
        today = int(now_s // DAY_S)
        with self._row as row:
            started = row.day != 0
        if not started:
            spend = store.spend(self.route, today * DAY_S)
            priced = spend.requests - spend.unknown
            usd = spend.usd * (spend.requests / priced if priced else 1.0)
            with self._row as row:
                if row.day == 0:
                    row.start_day(today, ceil(usd * NANO), spend.requests)
        with self._row as row:
            self._seen_requests = row.requests
        self._restored = True

    def _rebuild_forecast(self, store: DecisionLog, now_s: float) -> None:
        """Feed the pacer's forecast with the requests of yesterday and of today so far."""
        first_s = floor(now_s / DAY_S) * DAY_S - DAY_S
        width_s = DAY_S / BINS
        counts: list[tuple[float, int]] = []
        bin_s = first_s
        while bin_s <= now_s:
            requests = store.spend(self.route, bin_s, bin_s + width_s).requests
            counts.append((bin_s, requests))
            bin_s += width_s
        if not store.spend(self.route, first_s - DAY_S, first_s).requests:
            # The route may have begun during yesterday: an incomplete day is not a profile.
            while counts and not counts[0][1]:
                del counts[0]
        self._pacer.replay_traffic(
            [(bin_s, min(bin_s + width_s / 2, now_s), n) for bin_s, n in counts], now_s
        )

    # ── deciding ─────────────────────────────────────────────────────────────────────────────────

    def decide(
        self,
        models: Sequence[str],
        quality: Sequence[float],
        cost_usd: Sequence[float],
        max_cost_usd: Sequence[float],
        *,
        seed: int,
        commit: bool,
    ) -> PacingDecision:
        """Choose a candidate for one request. See `Pacer.decide`.

        Args:
            models: The candidates' names.
            quality: (k,) predicted quality.
            cost_usd: (k,) predicted cost.
            max_cost_usd: (k,) upper bounds of the cost.
            seed: Seeds the draw between two candidates.
            commit: Whether the request counts as one of today's. If not, no state changes.

        Returns:
            The pacer's decision.
        """
        now_s = self._clock()
        with self._row as row:
            self._sync(row, now_s, commit)
            if commit:
                row.requests += 1
                self._seen_requests += 1
            return self._pacer.decide(
                now_s, models, quality, cost_usd, max_cost_usd, seed=seed, commit=commit
            )

    def count_external(self) -> None:
        """Count a request that the pacer does not decide."""
        with self._row as row:
            self._sync(row, self._clock())
            row.requests += 1  # the pacer learns of it at the next sync, as of another worker's

    def _sync(self, row: LedgerRow, now_s: float, commit: bool = True) -> None:
        """Pass on to the pacer what the other workers did since the last sync."""
        pacer, today = self._pacer, int(now_s // DAY_S)
        if commit and row.day < today:
            row.start_day(today)
        if commit and pacer.day_number == row.day:
            pacer.count_external(row.requests - self._seen_requests, now_s)
            self._seen_requests = row.requests
        elif commit:
            self._seen_requests = 0
        spent = row.spent if row.day == today else 0
        pacer.sync(spent / NANO, (row.reserved - row.reserved_here) / NANO)

    def remaining_usd(self) -> float:
        """What is neither spent nor reserved today."""
        with self._row as row:
            return max(0, self._free_nano_usd(row)) / NANO

    def fits(self, max_cost_usd: float) -> bool:
        """Whether a call that may cost this much could be made now; not if that is unknown (NaN)."""
        if not isfinite(max_cost_usd):
            return False
        with self._row as row:
            nano = ceil(max_cost_usd * NANO)
            return nano <= 0 or nano <= self._free_nano_usd(row)

    def _free_nano_usd(self, row: LedgerRow) -> int:
        if row.day < int(self._clock() // DAY_S):
            return self._ceiling
        return self._ceiling - row.spent - row.reserved

    # ── money ────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, call: str, model: str, cost_usd: float, max_cost_usd: float) -> bool:
        """Reserve the maximum cost of a call before it is made.

        Args:
            call: A unique name of the call.
            model: The model's name.
            cost_usd: The predicted cost.
            max_cost_usd: The upper bound of the cost.

        Returns:
            Whether the call may be made.
        """
        now_s = self._clock()
        with self._row as row:
            self._sync(row, now_s)
            reserved = self._pacer.reserve(call, model, cost_usd, max_cost_usd, now_s)
            if reserved is None:
                return False
            if reserved > 0 and reserved > self._free_nano_usd(row):
                self._pacer.settle(call, 0.0)
                return False
            row.reserved_here += reserved
            self._reserved[call] = (row.day, reserved)
            return True

    def settle(self, call: str, cost_usd: float | None) -> None:
        """Settle a reserved call.

        Args:
            call: The name given to `reserve`.
            cost_usd: What it cost; `None` = unknown, so all of its reservation is spent.

        Raises:
            KeyError: The call is not open.
        """
        with self._row as row:
            day, reserved = self._reserved.pop(call)
            self._pacer.settle(call, cost_usd)
            if row.closed or day != row.day:
                return  # counted as spent when the slot was released, or part of an earlier day
            # In this order a worker that is killed in between counts too much, never too little.
            row.spent += reserved if cost_usd is None else ceil(max(0.0, cost_usd) * NANO)
            row.reserved_here = max(0, row.reserved_here - reserved)

    def totals(self) -> Totals:
        """Today's money of all workers."""
        with self._row as row:
            spent, reserved = row.spent, row.reserved
            if row.day < int(self._clock() // DAY_S):
                spent = reserved = 0
        return Totals(spent / NANO, reserved / NANO, self.usd_per_day)

    def exceeded(self, least_usd: float) -> BudgetExceededError:
        """The error for a request whose cheapest call may cost `least_usd`."""
        totals = self.totals()
        budget = f"{format_usd(self.usd_per_day)} per day of route {self.route!r}"
        if totals.reserved_usd > 0.0 and totals.spent_usd + least_usd <= self.usd_per_day:
            return BudgetExceededError(
                f"What is left of the budget of {budget} is reserved by calls in flight.",
                retry_after_s=_RETRY_AFTER_S,
                final=False,
            )
        remaining = max(0.0, self.usd_per_day - totals.spent_usd)
        return BudgetExceededError(
            f"The budget of {budget} is spent: {format_usd(remaining)} left, and the cheapest model "
            f"may cost {format_usd(least_usd)}. It is renewed at midnight UTC.",
            retry_after_s=seconds_to_midnight(self._clock()),
            final=True,
        )

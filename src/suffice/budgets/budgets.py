"""The money limits of all routes, and the reservation that each request gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from suffice.budgets.cost_bounds import RequestSize
from suffice.budgets.daily_budget import DailyBudget
from suffice.budgets.pacer import MAX_USD_PER_DAY
from suffice.budgets.reservation import AnyReservation, Reservation
from suffice.budgets.shared_ledger import Ledger
from suffice.budgets.unlimited import UNLIMITED
from suffice.errors import ConfigError
from suffice.store.protocols import DecisionLog
from suffice.types import Features, Model, Objective, Query


class Budgets:
    """The money limits of all routes.

    Args:
        objectives: The objective of each route.
        model_of: Looks a model up by its name.
        clock: Returns unix seconds.
        ledger: The value of `LEDGER_ENV`; `None` = only this process spends.
        source: Where the objectives come from, for errors.

    Raises:
        ConfigError: A budget is out of range, or the ledger cannot be used.
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        model_of: Callable[[str], Model],
        clock: Callable[[], float],
        *,
        ledger: str | None = None,
        source: str | None = None,
    ) -> None:
        self._model_of = model_of
        self._budgets: dict[str, DailyBudget] = {}
        self._per_query = {
            name: o.value or 0.0 for name, o in objectives.items() if o.kind == "max_usd_per_query"
        }
        daily = {n: o.value or 0.0 for n, o in objectives.items() if o.kind == "usd_per_day"}
        self._ledger: Ledger | None = None
        if not daily:
            return
        parts = 1
        if ledger is not None and ledger.isdigit():
            parts = max(1, int(ledger))
            ledger = None
        self._ledger = Ledger(ledger)
        for name, usd in daily.items():
            if not 0.0 < usd <= MAX_USD_PER_DAY:
                raise ConfigError(
                    f"Expected above 0, at most {MAX_USD_PER_DAY:g}, got {usd:g}.",
                    field=f"routes.{name}.objective.usd_per_day",
                    source=source,
                    remedy="Take a route out of the config to spend nothing on it.",
                )
            self._budgets[name] = DailyBudget(name, usd / parts, self._ledger.row(name), clock)

    def of(self, route: str) -> DailyBudget | None:
        """The daily budget of a route; `None` if it has none."""
        return self._budgets.get(route)

    def reserve(
        self, route: str, objective: Objective, query: Query, features: Features
    ) -> AnyReservation:
        """Make the reservation of one request. It holds no money yet.

        Args:
            route: The route's name.
            objective: The route's objective, or the client's, which cannot lift the route's limits.
            query: What will be sent.
            features: The features of `query`.

        Returns:
            `UNLIMITED` if nothing limits the request.
        """
        budget = self._budgets.get(route)
        per_query = self._per_query.get(route)
        if objective.kind == "max_usd_per_query":
            requested = objective.value or 0.0
            per_query = requested if per_query is None else min(per_query, requested)
        if budget is None and per_query is None:
            return UNLIMITED
        size = RequestSize.of(query, features)
        return Reservation(route, size, self._model_of, budget, per_query, features)

    def restore(self, store: DecisionLog) -> None:
        """Load what today has cost so far, before the first call. Raises StoreError."""
        for budget in self._budgets.values():
            budget.restore(store)

    def totals(self) -> dict[str, dict[str, Any]]:
        """Today's money by route."""
        return {name: b.totals()._asdict() for name, b in self._budgets.items()}

    def close(self) -> None:
        """Release the shared ledger. Idempotent."""
        if self._ledger is not None:
            self._ledger.close()

"""The money limits of all routes, and the purse that each request gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from suffice.budgets.cost_bounds import RequestSize
from suffice.budgets.daily_budget import DailyBudget
from suffice.budgets.pacer import MOST_USD
from suffice.budgets.reservation import Reservation
from suffice.budgets.shared_ledger import Ledger
from suffice.errors import ConfigError
from suffice.store.protocols import DecisionLog
from suffice.types import Features, Model, Objective, Query


class Budgets:
    """objectives: of each route. model_of: a model by name. ledger: the value of `LEDGER_ENV`, None
    = this process alone. clock: unix seconds.

    Raises ConfigError for a budget that cannot be one, or a ledger that cannot be used.
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
            if not 0.0 < usd <= MOST_USD:
                raise ConfigError(
                    f"Expected above 0, at most {MOST_USD:g}, got {usd:g}.",
                    field=f"routes.{name}.objective.usd_per_day",
                    source=source,
                    remedy="Take a route out of the config to spend nothing on it.",
                )
            self._budgets[name] = DailyBudget(name, usd / parts, self._ledger.row(name), clock)

    def of(self, route: str) -> DailyBudget | None:
        """The budget of a route that has one."""
        return self._budgets.get(route)

    def purse(
        self, route: str, objective: Objective, query: Query, x: Features
    ) -> Reservation | None:
        """What this query may spend; None where nothing limits it. objective: the route's, or the
        one that the client asked for; it cannot lift the route's own limits."""
        budget = self._budgets.get(route)
        per_query = self._per_query.get(route)
        if objective.kind == "max_usd_per_query":
            asked = objective.value or 0.0
            per_query = asked if per_query is None else min(per_query, asked)
        if budget is None and per_query is None:
            return None
        return Reservation(route, RequestSize.of(query, x), self._model_of, budget, per_query, x)

    def restore(self, store: DecisionLog) -> None:
        """Before the first call: what today has cost so far. Raises StoreError."""
        for budget in self._budgets.values():
            budget.restore(store)

    def told(self) -> dict[str, dict[str, Any]]:
        """Today's money by route."""
        return {name: b.totals()._asdict() for name, b in self._budgets.items()}

    def close(self) -> None:
        """Give the shared ledger back. Idempotent."""
        if self._ledger is not None:
            self._ledger.close()

"""Money limits of a route: what a day may cost and what one query may cost.

    policy's predictions -> Purse.choose   the pacer's model, or the policy's where it may be paid
    whole plan           -> Purse.check    what may not be called is left out, with the reason
    before each attempt  -> Purse.take     its worst cost is reserved; it is not made where that fails
    after it             -> Purse.close    what it cost is settled, once, whatever happened

`policies.pacer` decides, without a clock and without a file; this joins it to the clock, to the
store (which knows after a restart what today has cost) and to the other workers of the gateway (a
`Ledger` that they share). Built by the router.
"""

from __future__ import annotations

from suffice.budgets.budgets import Budgets
from suffice.budgets.cost_bounds import CostBound, RequestSize, bound
from suffice.budgets.daily_budget import DailyBudget
from suffice.budgets.reservation import Reservation
from suffice.budgets.shared_ledger import LEDGER_ENV, Ledger, shared_ledger

__all__ = [
    "LEDGER_ENV",
    "CostBound",
    "DailyBudget",
    "Budgets",
    "Ledger",
    "Reservation",
    "RequestSize",
    "bound",
    "shared_ledger",
]

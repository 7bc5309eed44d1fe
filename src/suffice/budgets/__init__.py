"""Money limits of a route: what a day may cost and what one query may cost.

    Reservation.rerank          puts the model first that the daily budget is best spent on
    Reservation.filter_plan     removes the models that the limits forbid
    Reservation.reserve         before each attempt: reserves its maximum cost, or forbids it
    Reservation.settle_all      after it: settles what it cost, exactly once

`pacer` decides without a clock and without I/O. `DailyBudget` adds the clock, the store (which knows
today's spend after a restart) and the `Ledger` that all workers of the gateway share.
"""

from __future__ import annotations

from suffice.budgets.budgets import Budgets
from suffice.budgets.cost_bounds import CostBound, RequestSize, cost_bound
from suffice.budgets.daily_budget import DailyBudget
from suffice.budgets.reservation import AnyReservation, Reservation
from suffice.budgets.shared_ledger import LEDGER_ENV, Ledger, shared_ledger
from suffice.budgets.unlimited import UNLIMITED, NoReservation, StepCheck

__all__ = [
    "LEDGER_ENV",
    "UNLIMITED",
    "AnyReservation",
    "Budgets",
    "CostBound",
    "DailyBudget",
    "Ledger",
    "NoReservation",
    "RequestSize",
    "Reservation",
    "StepCheck",
    "cost_bound",
    "shared_ledger",
]

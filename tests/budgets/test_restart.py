"""A restarted process knows what today has cost and how the traffic ran."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.support.budgets import (
    DAY_S,
    MONDAY,
    Clock,
    asking,
    routed,
    spent,
)

from suffice import Router
from suffice.errors import (
    BudgetExceededError,
)
from suffice.types import Attempt, RequestRecord, Usage


def recorded(
    r: Router, at_s: float, usd: float | None, route: str = "auto", request: str = "r"
) -> None:
    d = msgspec.structs.replace(r.decide(asking()), route=route)
    r.store.append(
        RequestRecord(
            decision=d,
            attempts=(Attempt(d.model, 1, "ok", at_s, 0.1, usage=Usage(1, 1), cost_usd=usd),),
            created_s=at_s,
            request_id=request,
            status=200,
            model=d.model,
            cost_usd=usd,
        )
    )


def test_a_restart_restores_todays_spend_and_the_traffic_forecast(tmp_path: Path) -> None:
    noon = MONDAY + DAY_S / 2
    with routed(tmp_path, {"usd_per_day": 1.0}, clock=Clock(noon)) as r:
        for n in range(96):
            recorded(r, MONDAY - DAY_S + n * 900.0 + 1.0, 0.01)  # yesterday
        for n in range(48):
            recorded(r, MONDAY + n * 900.0 + 1.0, 0.01 if n else None)
        recorded(r, noon - 60.0, 100.0, route="another")
    with routed(tmp_path, {"usd_per_day": 1.0}, clock=Clock(noon)) as r:
        r.budgets.restore(r.store)
        assert spent(r)[0] == pytest.approx(0.48), "one of them at the mean of the others"
        budget = r.budgets.of("auto")
        assert budget is not None
        assert budget.requests_today == pytest.approx(48, abs=1)
        pacing = budget.decide(["p/weak"], [0.5], [0.001], [0.001], seed=0, commit=True)
        # 99 % of the budget less what is spent, over the 48 requests of an afternoon like yesterday's.
        assert pacing.usd_per_request == pytest.approx((0.99 - 0.48) / 48, rel=0.15)
    with routed(tmp_path, {"usd_per_day": 0.2}, clock=Clock(noon)) as r:
        with pytest.raises(BudgetExceededError, match="midnight"):
            asyncio.run(r.answer(asking()))
        assert asyncio.run(r.answer(asking(model="p/weak"))).status == 200, "a bypass has no budget"


def test_a_restart_continues_the_day(tmp_path: Path) -> None:
    """Not as a day that began at the restart, whose share of the budget is the afternoon's."""
    noon = MONDAY + DAY_S / 2
    with routed(tmp_path, {"usd_per_day": 1.0}, clock=Clock(noon)) as r:
        for n in range(96 + 48):
            recorded(r, MONDAY - DAY_S + n * 900.0 + 1.0, 0.01)
    with routed(tmp_path, {"usd_per_day": 1.0}, clock=Clock(noon)) as r:
        d = asyncio.run(r.answer(asking("What is a river?"))).decision
        assert d.model == "p/strong"
        assert "$0.52 of today's" in d.reason


def test_free_models_serve_after_the_budget_was_lowered(tmp_path: Path) -> None:
    with routed(tmp_path, {"usd_per_day": 1.0}) as r:
        recorded(r, MONDAY + 10.0, 0.9)
    with routed(tmp_path, {"usd_per_day": 0.5}, models=["p/weak", "p/free"]) as r:
        assert asyncio.run(r.answer(asking())).model == "p/free"

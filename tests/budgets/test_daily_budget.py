"""A daily budget: what it leaves of a plan, when it refuses, and until when."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from tests.support.budgets import (
    DAY_S,
    MONDAY,
    Clock,
    Reply,
    asking,
    opened,
    routed,
    settings,
    spent,
)

from suffice import Router
from suffice.config import parse_settings
from suffice.errors import (
    BadRequestError,
    BudgetExceededError,
    ConfigError,
    NoEligibleModelError,
)


def test_a_budget_out_of_range_is_refused_at_start(tmp_path: Path) -> None:
    for usd in (0.0, 1e8):
        with pytest.raises(ConfigError, match=r"routes\.auto\.objective\.usd_per_day"):
            Router(parse_settings(settings(tmp_path, {"usd_per_day": usd})), env={})


def test_a_client_cannot_set_a_daily_budget(tmp_path: Path) -> None:
    with (
        routed(tmp_path, "best") as r,
        pytest.raises(BadRequestError, match="usd_per_day") as caught,
    ):
        r.decide(asking(suffice={"objective": {"usd_per_day": 5}}))
    assert caught.value.param == "suffice.objective"


def test_a_decision_states_the_remaining_budget_and_its_propensities(
    tmp_path: Path,
) -> None:
    with routed(tmp_path, {"usd_per_day": 20.0}) as r:
        d = r.decide(asking())
        assert "$20.00 of today's $20.00 left" in d.reason
        assert sum(p.propensity for p in d.predictions) == pytest.approx(1.0)
        assert d.propensity == next(p.propensity for p in d.predictions if p.model == d.model)
        assert "no pacing" not in d.reason


def test_a_dry_run_changes_no_budget_and_opens_no_store(tmp_path: Path) -> None:
    with routed(tmp_path, {"usd_per_day": 20.0}) as r:
        budget = r.budgets.of("auto")
        assert budget is not None
        for _ in range(5):
            r.decide(asking())
        assert budget.requests_today == 0
        assert not (tmp_path / "s.db").exists(), "nor touches a disk"
        asyncio.run(r.answer(asking()))
        assert budget.requests_today == 1


def test_a_model_of_unknown_price_is_never_called_under_a_budget(tmp_path: Path) -> None:
    with routed(tmp_path, {"usd_per_day": 20.0}, models=["p/odd", "p/weak"]) as r:
        done = asyncio.run(r.answer(asking()))
        assert done.model == "p/weak"
        assert [s.model for s in done.decision.plan] == ["p/weak"]
        assert "price is unknown" in done.decision.excluded[0].reason
    with (
        routed(tmp_path, {"usd_per_day": 20.0}, models=["p/odd"]) as r,
        pytest.raises(NoEligibleModelError, match="price is unknown"),
    ):
        asyncio.run(r.answer(asking()))


def test_the_clients_objective_is_followed_while_the_budget_lasts(tmp_path: Path) -> None:
    best = {"objective": "best"}
    with routed(tmp_path, {"usd_per_day": 0.05}, lambda m, b: Reply(50, b["max_tokens"])) as r:
        seen = [
            asyncio.run(r.answer(asking(max_tokens=1000, suffice=best))).model for _ in range(6)
        ]
        assert seen[:4] == ["p/strong"] * 4
        assert "p/strong" not in seen[5:]
        assert spent(r)[0] <= 0.05
        r.route("to hear of the last")
        asyncio.run(r.answer(asking(max_tokens=1000)))
        budget = r.budgets.of("auto")
        assert budget is not None
        assert budget.requests_today == 7, "they count in the forecast as well"


def test_a_spent_budget_refuses_until_midnight_but_free_models_still_serve(tmp_path: Path) -> None:
    clock = Clock(MONDAY + 82_800.0)
    long_answer = lambda m, b: Reply(50, b["max_tokens"])  # noqa: E731
    with routed(tmp_path, {"usd_per_day": 0.01}, long_answer, clock=clock) as r:
        done = 0
        with pytest.raises(BudgetExceededError) as caught:
            for _ in range(50):
                asyncio.run(r.answer(asking(max_tokens=1000)))
                done += 1
        assert done >= 3
        assert caught.value.retry_after_s == pytest.approx(3600.0)
        assert caught.value.final
        assert caught.value.code == "budget_exceeded"
        assert spent(r) == (pytest.approx(0.01, rel=0.2), 0.0)
        with pytest.raises(BudgetExceededError):
            r.decide(asking(max_tokens=1000))
        clock.now_s = MONDAY + DAY_S
        assert asyncio.run(r.answer(asking(max_tokens=1000))).status == 200
    for place in ({"fallbacks": ["p/free"]}, {"models": ["p/weak", "p/free"]}):
        free = tmp_path / next(iter(place))
        free.mkdir()
        with routed(
            free, {"usd_per_day": 0.003}, long_answer, clock=Clock(MONDAY + 1.0), **place
        ) as r:
            answers = [asyncio.run(r.answer(asking(max_tokens=1000))) for _ in range(12)]
            assert answers[-1].model == "p/free"
            assert answers[-1].decision.predictions
            assert spent(r)[0] <= 0.003


def test_a_refusal_for_reserved_money_asks_for_a_retry_soon(tmp_path: Path) -> None:
    async def main(r: Router, gate: asyncio.Future[Any]) -> None:
        first = asyncio.ensure_future(r.answer(asking(max_tokens=1000)))
        await asyncio.sleep(0)
        assert spent(r)[1] > 0.0
        with pytest.raises(BudgetExceededError, match="in flight") as caught:
            await r.answer(asking(max_tokens=9000))
        assert not caught.value.final
        assert caught.value.retry_after_s == 5.0
        gate.set_result(Reply(50, 40))
        await first
        assert (await r.answer(asking(max_tokens=9000))).status == 200

    async def whole() -> None:
        gate: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with contextlib.ExitStack() as stack:
            r = stack.enter_context(
                opened(tmp_path, {"usd_per_day": 0.0097}, lambda m, b: gate, models=["p/weak"])
            )
            await main(r, gate)

    asyncio.run(whole())

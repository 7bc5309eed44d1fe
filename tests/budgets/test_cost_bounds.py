"""Upper bounds of a call: no usage within its limits costs more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.budgets import (
    Clock,
    Reply,
    Upstream,
    asking,
    routed,
    settings,
    with_other_worker,
)

from suffice import Router
from suffice.budgets import RequestSize, cost_bound
from suffice.config import parse_settings
from suffice.types import Model, Price

PRICES = st.floats(0.0, 100.0)


@given(
    PRICES,
    PRICES,
    st.none() | st.floats(0.0, 200.0),
    st.none() | st.integers(1, 10**6),
    st.none() | st.integers(1, 10**6),
    st.none() | st.integers(1, 10**6),
    st.integers(1, 4),
    st.floats(1e-4, 1e3),
    st.floats(0.0, 1e3),
    st.text(max_size=200),
)
def test_no_usage_within_its_limits_costs_more_than_the_bound(
    read: float,
    write: float,
    cache: float | None,
    requested: int | None,
    longest: int | None,
    window: int | None,
    n: int,
    day: float,
    left: float,
    text: str,
) -> None:
    price = Price(read, write, None, cache)
    model = Model("p/m", "p", "m", price, context_tokens=window, max_output_tokens=longest)
    limit = {} if requested is None else {"max_tokens": requested}
    from suffice import features

    query = asking(text, n=n, **limit)
    size = RequestSize.of(query, features.extract(query.messages))
    bound = cost_bound(model, size, usd_per_day=day, remaining_usd=left)
    limits = (requested, longest, window, bound.output_limit)
    most = min(t for t in limits if t is not None)
    tokens = len(text.encode("utf-8", "surrogatepass")) + 20
    usd = tokens * max(read, cache or 0.0) + n * most * write
    assert usd / 1e6 <= bound.max_cost_usd * (1 + 1e-9)
    assert requested is None or bound.output_limit is None, "the client's own limit is not touched"


def test_a_call_without_an_output_limit_gets_one_under_a_daily_budget(tmp_path: Path) -> None:
    with routed(tmp_path, {"usd_per_day": 20.0}) as r:
        asyncio.run(r.answer(asking()))
        asyncio.run(r.answer(asking(max_tokens=77)))
        first, second = r.transport.sent
    assert first["max_tokens"] == 16_384
    assert second["max_tokens"] == 77
    with routed(tmp_path, "best") as r:
        asyncio.run(r.answer(asking()))
        assert "max_tokens" not in r.transport.sent[0]


def test_near_the_end_of_the_budget_answers_are_shortened_before_they_are_refused(
    tmp_path: Path,
) -> None:
    with with_other_worker(tmp_path, {"usd_per_day": 1.0}) as (r, row):
        asyncio.run(r.answer(asking()))
        for left, tokens in ((500_000_000, 16_384), (10_000_000, 2400), (1_200_000, 1024)):
            with row:
                row.spent = 1_000_000_000 - left
            assert asyncio.run(r.answer(asking())).model == "p/weak"
            assert r.transport.sent[-1]["max_tokens"] == pytest.approx(tokens, rel=0.05)


def test_the_output_limit_has_the_name_that_openai_accepts(tmp_path: Path) -> None:
    config = settings(tmp_path, {"usd_per_day": 20.0})
    config["routes"]["auto"]["models"] = ["openai/gpt-5-nano"]
    r = Router(
        parse_settings(config),
        env={"OPENAI_API_KEY": "k"},
        clock=Clock(),
        transport=Upstream(lambda m, b: Reply(50, 40)),
    )
    asyncio.run(r.answer(asking()))
    assert r.transport.sent[0]["max_completion_tokens"] == 16_384
    assert "max_tokens" not in r.transport.sent[0]
    asyncio.run(r.aclose())

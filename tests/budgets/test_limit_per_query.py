"""A limit per query: which models may be called, and with which output limit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.support.budgets import (
    Reply,
    asking,
    failing,
    routed,
)

from suffice.errors import (
    NoEligibleModelError,
)


def test_a_model_whose_maximum_cost_exceeds_the_limit_is_never_called(tmp_path: Path) -> None:
    with routed(tmp_path, {"max_usd_per_query": 0.005}) as r:
        d = r.decide(asking(max_tokens=1000))
        assert d.model == "p/mid"
        assert "p/strong" not in [s.model for s in d.plan]
        assert "above $0.005" in next(e.reason for e in d.excluded if e.model == "p/strong")
        assert r.decide(asking(max_tokens=300)).model == "p/strong"
        with pytest.raises(NoEligibleModelError, match="money limits") as caught:
            r.decide(asking(max_tokens=50_000))
        assert caught.value.status == 400


def test_without_a_client_limit_the_call_gets_the_output_limit_that_is_affordable(
    tmp_path: Path,
) -> None:
    with routed(tmp_path, {"max_usd_per_query": 0.008}) as r:
        asyncio.run(r.answer(asking("Prove that there are infinitely many primes.")))
        sent = r.transport.sent[0]
    assert sent["model"] == "mid", "a long answer of the strong one would cost more"
    assert 1900 < sent["max_tokens"] <= 2000
    assert 4.0 * sent["max_tokens"] / 1e6 < 0.008


def test_a_client_can_lower_the_limit_of_a_route_but_not_raise_it(tmp_path: Path) -> None:
    with routed(tmp_path, {"max_usd_per_query": 0.005}) as r:
        best = asking(max_tokens=1000, suffice={"objective": "best"})
        assert r.decide(best).model == "p/mid"
        less = asking(max_tokens=1000, suffice={"objective": {"max_usd_per_query": 0.002}})
        assert r.decide(less).model == "p/weak"
        more = asking(max_tokens=1000, suffice={"objective": {"max_usd_per_query": 1.0}})
        assert r.decide(more).model == "p/mid"
    with routed(tmp_path, "best") as r:
        assert r.decide(asking(max_tokens=1000)).model == "p/strong"
        assert r.decide(less).model == "p/weak"


def test_failover_and_fallback_keep_the_limit(tmp_path: Path) -> None:
    def answer(model: str, _: Any) -> Any:
        return failing("server") if model in ("weak", "mid") else Reply(50, 40)

    with routed(
        tmp_path, {"max_usd_per_query": 0.005}, answer, fallbacks=["p/strong", "p/odd", "p/free"]
    ) as r:
        done = asyncio.run(r.answer(asking(max_tokens=1000)))
        assert done.model == "p/free"
        assert {e.model for e in done.decision.excluded} == {"p/strong", "p/odd"}

"""What a selection says of itself: the client's order, fallbacks, pinned models, readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from suffice import Router
from suffice.config import parse_settings
from suffice.dialects.openai_request import parse_chat
from suffice.errors import AllAttemptsFailedError, NoEligibleModelError, UpstreamError
from suffice.policies.priors import cost_usd, output_tokens
from suffice.types import Decision, Query, Timeouts

PRICES = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 4.0, "context_tokens": 8000}


class DownTransport:
    """Every upstream answers 500."""

    def prepare(self, urls: Any) -> None: ...

    async def send(
        self, url: str, headers: Any, body: bytes, *, stream: bool, timeouts: Timeouts
    ) -> Any:
        raise UpstreamError("down", kind="server", status=500)

    async def aclose(self) -> None: ...


def settings(**route: Any) -> dict[str, Any]:
    local = {"dialect": "openai", "base_url": "http://127.0.0.1:9/v1"}
    return {
        "store": {"url": "sqlite://"},
        "providers": {"a": local, "b": local},
        "models": {
            "a/small": {**PRICES, "quality": 0.6},
            "a/large": {**PRICES, "quality": 0.8, "output_usd_per_mtok": 8.0},
            "b/best": {**PRICES, "quality": 0.95, "output_usd_per_mtok": 20.0},
            "b/spare": {**PRICES, "context_tokens": 100_000},
        },
        "routes": {
            "auto": {"models": ["a/small", "a/large", "b/best"], "learning": "off", **route}
        },
    }


@pytest.fixture
def make() -> Iterator[Any]:
    made: list[Router] = []

    def build(**route: Any) -> Router:
        resolved = parse_settings(settings(**route))
        made.append(Router(resolved, env={}, seed=1, transport=DownTransport()))
        return made[-1]

    yield build
    for router in made:
        asyncio.run(router.aclose())


def query(text: str = "What is a river?", **fields: Any) -> Query:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
    return parse_chat(msgspec.json.encode(body), {})


def propensities(decision: Decision) -> dict[str, float]:
    return {p.model: p.propensity for p in decision.predictions}


# ── the client's order of providers ──────────────────────────────────────────────────────────────


def test_an_order_of_providers_is_the_reason_and_makes_the_choice_certain(make: Any) -> None:
    router = make(objective="cheapest")
    free = router.decide(query())
    assert free.model == "a/small"
    ordered = router.decide(query(provider={"order": ["b"]}))
    assert [s.model for s in ordered.plan] == ["b/best", "a/small", "a/large"]
    assert [s.role for s in ordered.plan] == ["choice", "failover", "failover"]
    assert ordered.model == "b/best"
    assert ordered.reason.startswith("b/best: first in the client's order of providers")
    assert "a/small" in ordered.reason
    assert propensities(ordered) == {"a/small": 0.0, "a/large": 0.0, "b/best": 1.0}
    assert ordered.propensity == 1.0


def test_an_order_that_agrees_with_the_policy_changes_nothing(make: Any) -> None:
    router = make(objective="cheapest")
    free, ordered = router.decide(query()), router.decide(query(provider={"order": ["a"]}))
    assert ordered.model == free.model
    assert ordered.reason == free.reason
    assert propensities(ordered) == propensities(free)
    assert [s.model for s in ordered.plan] == ["a/small", "a/large", "b/best"]


def test_within_a_provider_a_random_choice_keeps_its_probabilities(make: Any) -> None:
    router = make(policy="random")
    for _ in range(50):
        decision = router.decide(query(provider={"order": ["a"]}))
        assert decision.model in ("a/small", "a/large")
        assert decision.propensity == propensities(decision)[decision.model]
        if decision.reason.startswith(f"{decision.model}: first in"):
            assert decision.propensity == pytest.approx(0.5)
            assert propensities(decision)["b/best"] == 0.0


def test_without_fallbacks_only_the_choice_is_tried(make: Any) -> None:
    router = make(objective="cheapest", fallbacks=["b/spare"])
    decision = router.decide(query(provider={"allow_fallbacks": False}))
    assert [s.model for s in decision.plan] == ["a/small"]


# ── fallbacks ────────────────────────────────────────────────────────────────────────────────────


def test_fallbacks_follow_the_plan_and_must_be_eligible_too(make: Any) -> None:
    router = make(objective="cheapest", fallbacks=["b/spare", "a/small"])
    decision = router.decide(query())
    assert [(s.model, s.role) for s in decision.plan][-1] == ("b/spare", "fallback")
    assert [s.model for s in decision.plan].count("a/small") == 1
    assert "b/spare" not in propensities(decision)
    ignored = router.decide(query(provider={"ignore": ["b"]}))
    assert [s.model for s in ignored.plan] == ["a/small", "a/large"]
    with pytest.raises(NoEligibleModelError, match="window"):
        router.decide(query("x " * 40_000))


def test_a_ceiling_and_a_policy_predict_the_same_cost_of_a_model(make: Any) -> None:
    predicted = next(p.cost_usd for p in make().decide(query()).predictions if p.model == "b/best")
    assert predicted is not None
    for ceiling, tried in ((predicted * 1.001, True), (predicted * 0.999, False)):
        router = make(
            models=["a/small"], fallbacks=["b/best"], fallback_max_usd_per_query=ceiling,
            retries={"per_model": 0, "base_s": 0.0},
        )  # fmt: skip
        with pytest.raises(AllAttemptsFailedError) as failed:
            asyncio.run(router.answer(query()))
        assert ("b/best" in [a.model for a in failed.value.attempts]) is tried
        assert ("above the ceiling" in str(failed.value)) is not tried


def test_the_estimate_of_a_fallback_respects_the_clients_limit(make: Any) -> None:
    router = make(
        models=["a/small"], fallbacks=["b/best"], retries={"per_model": 0, "base_s": 0.0},
        fallback_max_usd_per_query=0.0005,
    )  # fmt: skip
    model = next(m for m in router.models() if m.name == "b/best")
    assert (cost_usd(model, 20, output_tokens(0.5, None)) or 0.0) > 0.0005
    with pytest.raises(AllAttemptsFailedError) as failed:
        asyncio.run(router.answer(query(max_tokens=10)))
    assert [a.model for a in failed.value.attempts] == ["a/small", "b/best"]


# ── pinned models and readiness ──────────────────────────────────────────────────────────────────


def test_a_pinned_model_is_recorded_as_a_bypass(make: Any) -> None:
    decision = make().route("hello", route="b/best", objective="cheapest")
    assert (decision.model, decision.basis, decision.policy) == ("b/best", "bypass", "bypass")
    assert decision.objective.kind == "best"
    assert [s.model for s in decision.plan] == ["b/best"]


def test_a_router_whose_models_all_cool_down_is_unready(make: Any) -> None:
    router = make(models=["a/small", "b/best"], retries={"per_model": 2, "base_s": 0.0})
    assert router.ready()["status"] == "ok"
    for _ in range(3):
        with pytest.raises(AllAttemptsFailedError):
            asyncio.run(router.answer(query()))
    state = router.ready()
    assert set(state["cooling_down"]) == {"a/small", "b/best"}
    assert state["status"] == "unready"

"""Prices are added up once; hard limits come before any policy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.catalog import Catalog, apply_overrides, builtin_models, lookup, price_usd
from suffice.errors import ModelNotFoundError
from suffice.types import Model, Price, RoutingOptions, Usage

RATE = st.none() | st.floats(0, 100)
COUNT = st.integers(0, 10**6)


@given(RATE, RATE, RATE, RATE, COUNT, COUNT, COUNT, COUNT)
def test_cost_is_unknown_or_bounded_by_the_dearest_rate(
    i: float | None, o: float | None, cached: float | None, write: float | None,
    tokens: int, out: int, hit: int, written: int,
) -> None:  # fmt: skip
    model = Model("p/m", "p", "m", price=Price(i, o, cached, write))
    usage = Usage(tokens, out, min(hit, tokens), min(written, tokens))
    cost = price_usd(model, usage)
    if (tokens and i is None) or (out and o is None):
        assert cost is None
        return
    assert cost is not None
    rates = [r for r in (i, cached, write) if r is not None]
    top = (tokens * max(rates, default=0) + out * (o or 0)) / 1e6
    assert 0 <= cost <= top * (1 + 1e-9) + 1e-12


def test_cached_tokens_are_billed_once_at_their_own_rate() -> None:
    model = Model("p/m", "p", "m", price=Price(2.0, 8.0, 0.5))
    usage = Usage(
        input_tokens=1000, output_tokens=100, cached_input_tokens=600, reasoning_tokens=50
    )
    assert price_usd(model, usage) == pytest.approx((400 * 2 + 600 * 0.5 + 100 * 8) / 1e6)


def test_an_unknown_price_is_never_zero() -> None:
    assert price_usd(Model("p/m", "p", "m"), Usage(10, 10)) is None
    assert price_usd(Model("p/m", "p", "m"), None) is None


def test_the_shipped_catalog() -> None:
    models = builtin_models()
    assert len(models) >= 55
    assert len({m.provider for m in models}) >= 12
    assert len({m.name for m in models}) == len(models)
    for m in models:
        assert m.name == f"{m.provider}/{m.upstream}"
        assert m.price.source.startswith("genai-prices")
        assert m.price.dated
        assert m.price.input_usd_per_mtok is None or m.price.input_usd_per_mtok >= 0


def test_models_not_shipped_are_looked_up() -> None:
    found = lookup("openai", "gpt-4-turbo")
    assert found is not None
    assert found.price.input_usd_per_mtok == 10
    assert lookup("openai", "no-such-model-at-all") is None


def test_overrides_are_marked_and_drop_a_stale_discount() -> None:
    base = Model("p/m", "p", "m", price=Price(2.0, 8.0, 0.5, source="genai-prices", dated="x"))
    own = apply_overrides(base, {"input_usd_per_mtok": 1.0, "quality": 0.5, "context_tokens": None})
    assert own.price == Price(1.0, 8.0, None, source="config")
    assert own.quality_source == "config"


POOL = (
    Model("p/small", "p", "small", Price(1, 1), 1000, capabilities=frozenset({"tools"})),
    Model("q/big", "q", "big", Price(5, 5), 100_000, capabilities=frozenset({"tools", "vision"})),
    Model("r/odd", "r", "odd"),
)


def names(**limits: object) -> list[str]:
    options = {"required_capabilities": frozenset(), "input_tokens": 10, **limits}
    models = Catalog(POOL)
    pool, excluded = models.eligible(models.pool(POOL), **options)  # type: ignore[arg-type]
    assert {*pool.names} | {e.model for e in excluded} == {m.name for m in POOL}
    assert models.eligible(models.pool(POOL), **options)[0] is pool, "caches use it as their key"  # type: ignore[arg-type]
    assert all(e.reason for e in excluded)
    return [*pool.names]


def test_hard_limits() -> None:
    assert names() == ["p/small", "q/big", "r/odd"]
    assert names(input_tokens=2000) == ["q/big", "r/odd"]
    assert names(input_tokens=900, max_output_tokens=200) == ["q/big", "r/odd"]
    assert names(required_capabilities=frozenset({"vision"})) == ["q/big", "r/odd"]
    strict = RoutingOptions(require_parameters=True)
    assert names(required_capabilities=frozenset({"vision"}), options=strict) == ["q/big"]
    assert names(options=RoutingOptions(only=("p",))) == ["p/small"]
    assert names(options=RoutingOptions(ignore=("p",))) == ["q/big", "r/odd"]
    assert names(options=RoutingOptions(max_input_usd_per_mtok=2)) == ["p/small"]
    assert names(options=RoutingOptions(order=("r", "q"))) == ["r/odd", "q/big", "p/small"]


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        Catalog(POOL).get("q/bigg")
    assert caught.value.nearest[0] == "q/big"
    assert Catalog(POOL).get("odd").name == "r/odd"

"""What every policy must do, and what the default policy must do for each objective."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.trained_artifacts import KINDS, artifact

from suffice import features, policies
from suffice.policies.default import assign_quantiles
from suffice.policies.priors import GRID, quality_curves
from suffice.types import Candidate, Model, Objective, Policy, Price, Session

OBJECTIVES = [
    "cheapest", "best", "fastest", "balanced",
    {"keep_quality": 0.95}, {"max_quality_loss": 0.02, "confidence": 0.9}, {"max_usd_per_query": 0.001},
    {"usd_per_day": 5.0}, {"max_latency_s": 3.0}, {"worth_usd": 0.01},
    {"weights": {"cost": 1.0, "speed": 0.2, "quality": 2.0}},
]  # fmt: skip


def candidate(
    name: str, price: float | None = 1.0, quality: float | None = 0.8, first_s: float | None = 0.5
) -> Candidate:
    out = None if price is None else price * 4
    model = Model(name, "p", name, price=Price(price, out), quality=quality)
    return Candidate(model, first_s, 100.0 if first_s is not None else None)


POOLS = {
    "pair": (candidate("weak", 0.15, 0.6), candidate("strong", 2.5, 0.95)),
    "one": (candidate("only"),),
    "unknown price": (candidate("a", None, 0.7), candidate("b", 1.0, 0.9)),
    "nothing known": (candidate("a", None, None, None), candidate("b", None, None, None)),
    "free": (candidate("a", 0.0, 0.5), candidate("b", 0.0, 0.9), candidate("c", 3.0, 0.95)),
}
TEXTS = ["hi", "What's the weather today?", "Prove that e is irrational. " * 5, ""]


TRAINED = tuple(f"trained:{kind}" for kind in KINDS)


def make(name: str) -> Policy:
    kind = name.removeprefix("trained:")
    if kind != name:
        return policies.TrainedPolicy(artifact(kind, ("p/weak", "a", "b")))
    return policies.make(name, features.SIGNAL_NAMES)


@pytest.fixture(params=(*policies.POLICY_NAMES, *TRAINED))
def policy(request: pytest.FixtureRequest) -> Policy:
    return make(request.param)


@pytest.mark.parametrize("pool", POOLS.values(), ids=list(POOLS))
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_a_decision_is_complete(
    policy: Policy, pool: tuple[Candidate, ...], objective: object
) -> None:
    names = [c.model.name for c in pool]
    for text in TEXTS:
        x = features.extract_text(text)
        d = policy.decide(x, pool, policies.parse_objective(objective), id="d", seed=3)
        assert sorted(s.model for s in d.plan) == sorted(names)
        assert d.model == d.plan[0].model
        assert d.plan[0].role == "choice"
        assert [p.model for p in d.predictions] == names
        assert sum(p.propensity for p in d.predictions) == pytest.approx(1.0)
        chosen = next(p for p in d.predictions if p.model == d.model)
        assert d.propensity == chosen.propensity > 0
        assert d.reason.startswith(d.model)
        assert d.policy_version == policy.version
        assert d.basis == ("trained" if policy.name == "trained" else "prior")
        for p, c in zip(d.predictions, pool, strict=True):
            unknown = c.model.price.input_usd_per_mtok is None
            # What a table paid for a model is known even if the catalog does not know its price.
            assert (p.cost_usd is None) == unknown or (policy.name == "trained" and unknown)
        msgspec.json.encode(d)


@pytest.mark.parametrize("name", [*policies.POLICY_NAMES, *TRAINED])
def test_equal_inputs_give_equal_decisions(name: str) -> None:
    policy, other = make(name), make(name)
    x = features.extract_text("Write a haiku")
    o = Objective(kind="balanced")
    for seed in range(20):
        first = policy.decide(x, POOLS["free"], o, seed=seed)
        assert other.decide(x, POOLS["free"], o, seed=seed) == first
    assert other.version == policy.version


def test_a_decision_without_candidates_is_an_error(policy: Policy) -> None:
    with pytest.raises(ValueError, match="candidates"):
        policy.decide(features.extract_text("x"), (), Objective(kind="best"))


def test_the_random_policy_is_uniform() -> None:
    policy = policies.make("random", features.SIGNAL_NAMES)
    x = features.extract_text("x")
    chosen = [
        policy.decide(x, POOLS["free"], Objective(kind="best"), seed=s).model for s in range(3000)
    ]
    for name in "abc":
        assert 900 < chosen.count(name) < 1100


def decide(text: str, objective: object, pool: str = "pair", session: Session | None = None) -> str:
    policy = policies.make("default", features.SIGNAL_NAMES)
    o = policies.parse_objective(objective)
    return policy.decide(features.extract_text(text), POOLS[pool], o, session).model


def test_easy_queries_go_to_the_cheap_model_and_hard_ones_to_the_strong() -> None:
    keep = {"keep_quality": 0.95}
    for text in (
        "What's the weather today?",
        "hi",
        "capital of France?",
        "Translate 'dog' to German",
    ):
        assert decide(text, keep) == "weak"
    for text in (
        "Prove that there are infinitely many primes.",
        "证明存在无穷多个素数，并解释每一步的理由。",
        "Debug this race condition: two threads push to a lock-free queue and one element is lost. "
        * 3,
    ):
        assert decide(text, keep) == "strong"


def test_more_quality_to_keep_never_lowers_the_strong_models_share() -> None:
    texts = ["word " * n for n in range(1, 200, 3)]
    shares = [
        sum(decide(t, {"keep_quality": k}) == "strong" for t in texts)
        for k in (0.65, 0.8, 0.9, 0.95, 1.0)
    ]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


def test_a_named_policy_uses_the_routes_values_of_its_own_kind() -> None:
    policy = policies.make("weights", features.SIGNAL_NAMES)
    x = features.extract_text("Prove that e is irrational. " * 5)
    cheap = policies.parse_objective({"weights": {"cost": 1.0}})
    strong = policies.parse_objective({"weights": {"quality": 1.0}})
    assert policy.decide(x, POOLS["pair"], cheap).model == "weak"
    assert policy.decide(x, POOLS["pair"], strong).model == "strong"
    other = policies.parse_objective("cheapest")
    assert policy.decide(x, POOLS["pair"], other).objective.kind == "weights"


def test_an_unknown_price_is_never_the_cheapest() -> None:
    assert decide("hi", "cheapest", "unknown price") == "b"


def test_a_ceiling_that_no_model_meets_takes_the_lowest_price_with_the_reason() -> None:
    policy = policies.make("default", features.SIGNAL_NAMES)
    o = policies.parse_objective({"max_usd_per_query": 1e-9})
    d = policy.decide(features.extract_text("hello"), POOLS["pair"], o)
    assert d.model == "weak"
    assert "no model meets: the lowest price is taken" in d.reason


def test_a_conversation_keeps_its_cached_prefix() -> None:
    price = Price(3.0, 15.0, cached_input_usd_per_mtok=0.3)
    pool = (
        candidate("weak", 0.8, 0.6),
        Candidate(Model("strong", "p", "strong", price=price, quality=0.95), 0.5, 100.0),
    )
    policy = policies.make("default", features.SIGNAL_NAMES)
    x = msgspec.structs.replace(features.extract_text("thanks"), input_tokens=50_000)
    keep = policies.parse_objective({"keep_quality": 0.95})
    assert policy.decide(x, pool, keep).model == "weak"
    session = Session("s", "strong", cached_tokens=50_000)
    d = policy.decide(x, pool, keep, session)
    assert d.model == "strong"
    assert "cached prefix" in d.reason
    assert policy.decide(x, pool, keep, Session("s", "strong", 0)).model == "weak"


def test_a_tool_loop_keeps_its_model_unless_the_model_failed() -> None:
    policy = policies.make("default", features.SIGNAL_NAMES)
    x = msgspec.structs.replace(features.extract_text("Prove it. " * 50), in_tool_loop=True)
    keep = policies.parse_objective({"keep_quality": 0.95})
    assert policy.decide(x, POOLS["pair"], keep, Session("s", "weak")).model == "weak"
    failed = Session("s", "weak", failed=frozenset({"weak"}))
    assert policy.decide(x, POOLS["pair"], keep, failed).model == "strong"


@given(
    st.lists(
        st.tuples(st.floats(0.05, 0.99), st.floats(1e-5, 1e-2).map(lambda c: float(f"{c:.6g}"))),
        min_size=2,
        max_size=4,
        unique=True,
    ),
    st.floats(0.5, 1.0),
)
@settings(max_examples=60)
def test_keep_quality_meets_its_target(pool: list[tuple[float, float]], keep: float) -> None:
    curves = quality_curves(tuple(q for q, _ in pool))
    costs = tuple(c for _, c in pool)
    best = max(range(len(pool)), key=lambda i: pool[i][0])
    _, chosen = assign_quantiles(curves, costs, keep, best)
    quality = np.mean([curves[m][g] for g, m in enumerate(chosen)])
    assert quality >= keep * np.mean(curves[best]) - 1e-9
    # No single quantile can be made cheaper within the slack that is left.
    slack = (quality - keep * np.mean(curves[best])) * (GRID + 1)
    for g, m in enumerate(chosen):
        for other in range(len(pool)):
            if costs[other] < costs[m]:
                assert curves[m][g] - curves[other][g] >= slack - 1e-9


def test_the_assignment_is_near_the_cheapest_by_brute_force() -> None:
    curves = ((0.9, 0.7, 0.4, 0.2), (0.95, 0.9, 0.8, 0.6), (0.99, 0.97, 0.95, 0.9))
    costs = (1.0, 3.0, 10.0)
    for keep in (0.6, 0.8, 0.9, 0.95):
        target = keep * np.mean(curves[2])
        best = min(
            sum(costs[m] for m in pick)
            for pick in itertools.product(range(3), repeat=4)
            if np.mean([curves[m][g] for g, m in enumerate(pick)]) >= target - 1e-12
        )
        _, chosen = assign_quantiles(curves, costs, keep, 2)
        cost = sum(costs[m] for m in chosen)
        # Four quantiles are coarse; the Lagrangian is exact up to one of them.
        assert best <= cost <= best + 9.0


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6))
def test_quality_curves_average_to_their_priors_and_gaps_grow(priors: list[float]) -> None:
    curves = np.array(quality_curves(tuple(priors)))
    assert curves.mean(axis=1) == pytest.approx(priors, abs=1e-9)
    assert (curves >= -1e-12).all()
    assert (curves <= 1 + 1e-12).all()
    assert (np.diff(curves, axis=1) <= 1e-12).all()
    strong, weak = curves[int(np.argmax(priors))], curves[int(np.argmin(priors))]
    assert (np.diff(strong - weak) >= -1e-12).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("cheapst", "cheapest"), ("keep_qualty=1", "keep_quality"), ({"keep_quality": 1.2}, "0 to 1"),
        ({"keep_quality": "x"}, "number"), ({"weights": {"price": 1}}, "cost, speed, quality"), (3, "table"),
        ({}, "exactly one"), ({"keep_quality": 0.9, "confidence": 0.9}, "confidence"), ('{"a":', "JSON"),
        ({"weights": {"cost": 0}}, "above 0"), ("keep_quality=x", "number"),
    ],
)  # fmt: skip
def test_an_invalid_objective_is_an_error_with_the_reason(value: object, message: str) -> None:
    with pytest.raises(ValueError, match="objective") as caught:
        policies.parse_objective(value)
    assert message in str(caught.value)


def test_all_forms_of_an_objective_are_equal() -> None:
    forms = [{"keep_quality": 0.9}, "keep_quality=0.9", '{"keep_quality": 0.9}']
    assert len({policies.parse_objective(f) for f in forms}) == 1


def test_an_unknown_policy_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'cheapest'"):
        policies.make("cheapes", features.SIGNAL_NAMES)

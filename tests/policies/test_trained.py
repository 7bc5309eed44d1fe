"""The trained policy decides by what was learned, and its decisions show it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from tests.support.trained_artifacts import KINDS, artifact

from suffice import features, policies
from suffice.artifacts import certificate as certificates
from suffice.names import match_model
from suffice.policies import priors
from suffice.policies.traffic import PredictionWindow, min_cost_for_quality
from suffice.policies.trained import TrainedPolicy
from suffice.types import Candidate, Model, Objective, Price, Session

WEAK = Candidate(Model("p/weak", "p", "weak", price=Price(0.1, 0.4), quality=0.6), 0.2, 100.0)
STRONG = Candidate(Model("p/strong", "p", "strong", price=Price(2.0, 8.0), quality=0.95), 0.6, 50.0)
NEW = Candidate(Model("q/new", "q", "new", price=Price(0.5, 2.0), quality=0.8), 0.3, 80.0)
KEEP = Objective(kind="keep_quality", value=0.95)
TEXTS = [
    "hi",
    "What's the weather today?",
    "Prove that e is irrational. " * 5,
    "",
    "Explain " * 200,
]


def policy(kind: str = "linear", tokens: bool = True) -> TrainedPolicy:
    return TrainedPolicy(artifact(kind, tokens=tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_folded_heads_predict_what_the_estimator_predicts(kind: str) -> None:
    p = policy(kind)
    for text in TEXTS:
        x = features.extract_text(text)
        expected = p.artifact.estimator.predict(x.signals[None], features.embed(x)[None])[0][0]
        expected = np.clip(expected, 0.0, 1.0)
        d = p.decide(x, (WEAK, STRONG), KEEP)
        quality = [q.quality for q in d.predictions]
        assert quality == pytest.approx(expected, abs=2e-3)
        recorded = msgspec.structs.replace(x, token_ids=None, embedding=features.embed(x))
        again = p.decide(recorded, (WEAK, STRONG), KEEP)
        assert [q.quality for q in again.predictions] == pytest.approx(quality, abs=2e-3)


def test_a_predicted_quality_is_a_share_though_a_linear_head_is_not() -> None:
    made = artifact("linear")
    steep = msgspec.structs.replace(
        made,
        estimator=msgspec.structs.replace(
            made.estimator, intercept=np.array([-0.2, 1.4, 5.0, 5.0])
        ),
    )
    p = TrainedPolicy(steep)
    for text in TEXTS:
        d = p.decide(features.extract_text(text), (WEAK, STRONG), KEEP)
        assert all(q.quality is not None and 0.0 <= q.quality <= 1.0 for q in d.predictions)
        assert d.model == "p/strong"
        assert "quality 1.00" in d.reason


def test_a_decision_names_its_basis_and_its_artifact() -> None:
    p = policy()
    d = p.decide(features.extract_text("hi"), (WEAK, STRONG), KEEP)
    assert d.basis == "trained"
    assert "(trained)" in d.reason
    assert d.policy_version.startswith(p.artifact.version)


def test_cost_follows_the_current_price() -> None:
    x = features.extract_text("Explain how a B-tree splits its pages.")
    expensive = Candidate(msgspec.structs.replace(WEAK.model, price=Price(0.2, 0.8)), 0.2, 100.0)
    p = policy()
    before = p.decide(x, (WEAK, STRONG), KEEP).predictions[0].cost_usd
    after = p.decide(x, (expensive, STRONG), KEEP).predictions[0].cost_usd
    assert before is not None
    assert after == pytest.approx(2 * before)


def test_a_longer_answer_limit_bounds_the_cost() -> None:
    x = features.extract_text("Explain how a B-tree splits its pages.")
    free = policy().decide(x, (WEAK, STRONG), KEEP).predictions[1].cost_usd
    short = policy().decide(x, (WEAK, STRONG), KEEP, max_output_tokens=10).predictions[1].cost_usd
    assert free is not None
    assert short is not None
    assert short < free / 5


def test_an_unknown_price_stays_unknown_if_only_tokens_were_learned() -> None:
    unpriced = Candidate(msgspec.structs.replace(STRONG.model, price=Price()), 0.6, 50.0)
    d = policy().decide(features.extract_text("hi"), (WEAK, unpriced), Objective(kind="cheapest"))
    assert d.predictions[1].cost_usd is None
    assert d.model == "p/weak"


def test_an_untrained_model_is_predicted_from_its_prior_and_changes_no_other() -> None:
    p = policy()
    x = features.extract_text("Explain how a B-tree splits its pages.")
    two = p.decide(x, (WEAK, STRONG), KEEP)
    three = p.decide(x, (WEAK, NEW, STRONG), KEEP)
    by_name = {q.model: q.quality for q in three.predictions}
    assert [by_name[q.model] for q in two.predictions] == [q.quality for q in two.predictions]
    new = by_name["q/new"]
    assert new is not None
    assert 0.6 < new < 0.95


def test_keep_quality_meets_its_target_on_its_own_traffic() -> None:
    p = policy()
    rng = np.random.default_rng(1)
    pool = (WEAK, STRONG)
    chosen, best, cheap = [], [], 0
    for i in range(300):
        x = features.extract_text(
            " ".join(f"word{rng.integers(9)}" for _ in range(rng.integers(1, 60)))
        )
        point = (rng.normal(size=256) / 16).astype(np.float32)
        signals = np.abs(rng.normal(2.0, 1.0, size=len(features.SIGNAL_NAMES))).astype(np.float32)
        x = msgspec.structs.replace(x, signals=signals, token_ids=None, embedding=point)
        d = p.decide(x, pool, KEEP, seed=i)
        by_name = {q.model: q.quality or 0.0 for q in d.predictions}
        chosen.append(by_name[d.model])
        best.append(by_name["p/strong"])
        cheap += d.model == "p/weak"
    assert np.mean(chosen) / np.mean(best) == pytest.approx(0.95, abs=0.02)
    assert 20 < cheap < 280


def test_a_constant_estimator_mixes_models_at_random_to_meet_the_target() -> None:
    p = policy("constant")
    x = features.extract_text("hi")
    d = p.decide(x, (WEAK, STRONG), KEEP, seed=0)
    shares = {q.model: q.propensity for q in d.predictions}
    assert shares["p/weak"] * 0.6 + shares["p/strong"] * 0.9 == pytest.approx(0.95 * 0.9)
    picks = [p.decide(x, (WEAK, STRONG), KEEP, seed=s).model for s in range(1000)]
    assert picks.count("p/weak") / 1000 == pytest.approx(shares["p/weak"], abs=0.05)
    assert d.propensity == shares[d.model]


def test_a_conversation_is_not_randomized() -> None:
    p = policy("constant")
    x = features.extract_text("and then?")
    for seed in range(30):
        d = p.decide(x, (WEAK, STRONG), KEEP, Session("s", "p/weak", 5000), seed=seed)
        assert d.propensity == 1.0


def test_an_uncalibrated_loss_objective_serves_the_reference_with_the_reason() -> None:
    o = policies.parse_objective({"max_quality_loss": 0.02, "confidence": 0.9})
    d = policy().decide(features.extract_text("hi"), (WEAK, STRONG), o)
    assert d.model == "p/strong"
    assert "not calibrated" in d.reason


def certified(**changed: object) -> certificates.Certificate:
    plain: dict[str, object] = {
        "policy": "router.npz", "policy_version": artifact("linear").version, "score": "gap",
        "reference": "p/strong", "cheap": ("p/weak",), "cost_usd": (1e-4,), "exchange_rate": 0.0,
        "threshold": 0.2, "max_loss": 0.02, "confidence": 0.9, "method": "clopper-pearson",
        "kind": "binary", "unit": "queries", "n": 500, "losses": 3.0, "upper_bound": 0.018,
        "cheap_share": 0.4, "prices": {"p/strong": (2.0, 8.0), "p/weak": (0.1, 0.4)},
        "made": "2026-01-02", "table": "labels",
    }  # fmt: skip
    return certificates.with_digest(certificates.Certificate(**{**plain, **changed}))  # type: ignore[arg-type]


LOSS = policies.parse_objective({"max_quality_loss": 0.02, "confidence": 0.9})


def test_a_certificate_serves_the_cheap_model_up_to_its_threshold() -> None:
    p = policy()
    certified_policy = p.with_certificate(certified())
    assert certified_policy.version != p.version
    chosen = set()
    for text in TEXTS:
        d = certified_policy.decide(features.extract_text(text), (WEAK, STRONG), LOSS)
        weak, strong = (q.quality or 0.0 for q in d.predictions)
        assert d.model == ("p/weak" if strong - weak <= 0.2 else "p/strong")
        assert d.basis == "certified"
        assert "certified on 500 queries of labels" in d.reason
        chosen.add(d.model)
    assert len(chosen) == 2
    again = certified_policy.with_traffic(filled_window(certified_policy))
    d = again.decide(features.extract_text("hi"), (WEAK, STRONG), LOSS)
    assert d.basis == "certified"


def filled_window(p: TrainedPolicy) -> PredictionWindow:
    window = p.traffic_window()
    for text in TEXTS:
        window.add(p.decide(features.extract_text(text), (WEAK, STRONG), KEEP))
    return window


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"max_loss": 0.05, "upper_bound": 0.04}, "0.02 is asked for"),
        ({"confidence": 0.8}, "confidence 0.8"),
        ({"policy_version": "linear-other"}, "was made for linear-other"),
        ({"prices": {"p/strong": (2.0, 8.0), "p/weak": (9.0, 0.4)}}, "p/weak cost"),
        ({"cheap": ("p/gone",), "prices": {}}, "p/gone"),
    ],
    ids=str,
)
def test_an_invalid_certificate_serves_the_reference(
    changed: dict[str, object], reason: str
) -> None:
    p = policy()
    d = p.with_certificate(certified(**changed)).decide(
        features.extract_text("hi"), (WEAK, STRONG), LOSS
    )
    assert d.model == "p/strong"
    assert d.basis == "trained"
    assert reason in d.reason


def test_the_default_policy_can_be_certified_by_its_score() -> None:
    p = policies.make("default", features.SIGNAL_NAMES)
    assert isinstance(p, policies.DefaultPolicy)
    version = priors.prior_version("default", features.SCHEMA)
    certificate = certified(score="rank", policy="default", policy_version=version, threshold=3.0)
    certified_policy = p.with_certificate(certificate)
    for text in TEXTS:
        x = features.extract_text(text)
        d = certified_policy.decide(x, (WEAK, STRONG), LOSS)
        assert d.model == ("p/weak" if p.score(x) <= 3.0 else "p/strong")
        assert d.basis == "certified"
    assert certified_policy.with_quantiles([0.0, 9.0]).certificate == certificate


def test_the_routes_own_traffic_replaces_the_sample() -> None:
    p = policy()
    window = p.traffic_window()
    x = features.extract_text("hi")
    due = [window.add(p.decide(x, (WEAK, STRONG), KEEP)) for _ in range(256)]
    assert due[-1]
    assert not any(due[:-1])
    fresh = p.with_traffic(window)
    assert fresh.version != p.version
    assert fresh.decide(x, (WEAK, STRONG), KEEP).basis == "trained"


def test_models_match_by_name_or_by_the_part_after_the_slash_in_any_case() -> None:
    assert match_model("openai/gpt-5", ["openai/gpt-5", "x/gpt-5"]) == 0
    assert match_model("azure/gpt-5", ["openai/gpt-5", "claude"]) == 0
    assert match_model("azure/gpt-5", ["openai/gpt-5", "x/gpt-5"]) is None
    assert match_model("p/claude", ["gpt-5", "claude"]) == 1
    assert match_model("together/Qwen3-8B", ["local/qwen3-8b"]) == 0


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 4), st.floats(0.0, 1.0))
def test_the_mixture_is_the_optimum_of_the_linear_program(
    seed: int, m: int, k: int, keep: float
) -> None:
    rng = np.random.default_rng(seed)
    quality, cost = rng.random((m, k)), rng.random((m, k)) + 0.01
    if seed % 3 == 0:
        quality, cost = np.tile(quality[0], (m, 1)), np.tile(cost[0], (m, 1))
    reference = int(np.argmax(quality.mean(axis=0)))
    mixture = min_cost_for_quality(quality, cost, keep, reference)
    spent = kept = 0.0
    for q, c in zip(quality.tolist(), cost.tolist(), strict=True):
        low, high, _ = mixture.choose(q, c)
        spent += (mixture.share * c[low] + (1 - mixture.share) * c[high]) / m
        kept += (mixture.share * q[low] + (1 - mixture.share) * q[high]) / m
    target = keep * quality[:, reference].mean()
    optimum = linprog(
        cost.ravel() / m,
        A_ub=-quality.ravel()[None] / m,
        b_ub=[-target],
        A_eq=np.kron(np.eye(m), np.ones(k)),
        b_eq=np.ones(m),
    )
    assert kept >= target - 1e-6
    assert spent == pytest.approx(optimum.fun, abs=1e-6)

"""From table and policy to certificate: nothing but the stopping point comes from the labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.tables import table

from suffice import features
from suffice.artifacts import artifact as artifacts
from suffice.artifacts import certificate as certificates
from suffice.artifacts.certificate import Certificate
from suffice.errors import TableError, UsageError
from suffice.lab.calibrate.calibrate import (
    Calibration,
    calibrate,
)
from suffice.lab.calibrate.exchange_rate import choose_exchange_rate, quality_gaps
from suffice.lab.data.table import Table
from suffice.lab.predictors.base import extract_table
from suffice.lab.train.train import train
from suffice.policies import priors
from suffice.policies.trained import TrainedPolicy
from suffice.types import Candidate, Model, Objective, Price

THREE = ("lab/small", "lab/middle", "lab/large")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("trained") / "router.npz"
    artifacts.save(train(table(300), policy="trained", date="2026-01-02")[0], path)
    return str(path)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("trained") / "three.npz"
    artifacts.save(train(table(350, THREE), policy="trained", date="2026-01-02")[0], path)
    return str(path)


def run(t: Table, policy: str, **more: object) -> Calibration:
    asked: dict[str, object] = {"max_loss": 0.15, "confidence": 0.9, "date": "2026-02-03", **more}
    return calibrate(t, policy, **asked)  # type: ignore[arg-type]


def of(c: Calibration) -> Certificate:
    assert c.certificate is not None, c.result.reason
    return c.certificate


def test_a_trained_policy_sends_the_easy_half_to_the_cheap_model(artifact: str) -> None:
    cal = table(500, seed=1)
    told = run(cal, artifact, list_prices={"lab/strong": (1.0, 2.0)})
    c = of(told)
    assert (c.reference, c.cheap) == ("lab/strong", ("lab/weak",))
    assert c.policy_version == artifacts.load(artifact).version
    assert (c.score, c.kind, c.method, c.unit) == ("gap", "binary", "clopper-pearson", "queries")
    assert c.prices == {"lab/strong": (1.0, 2.0), "lab/weak": None}
    assert c.made == "2026-02-03" and c.table == "made" and c.n == 500
    assert 0.3 < c.cheap_share < 0.8 and c.upper_bound <= 0.15
    assert told.costs is not None and told.costs[1] < 0.8 * told.costs[0]
    # The certificate alone, asked as serving asks it, gives the figures that it states.
    x = extract_table(cal)
    quality = artifacts.load(artifact).estimator.predict(x.signals, x.vectors)[0][:, [1, 0]]
    goes = np.array([c.accepts(c.choose_alternative(q)[1]) for q in quality.tolist()])
    lost = np.maximum(0, cal.score[:, 1] - cal.score[:, 0])[goes]
    assert goes.mean() == pytest.approx(c.cheap_share)
    assert lost.sum() == c.losses


def test_serving_computes_the_score_that_was_calibrated(three: str) -> None:
    made = artifacts.load(three)
    cal = table(60, THREE, seed=2)
    c = of(run(table(500, THREE, seed=1), three))
    pool = tuple(
        Candidate(Model(m, "lab", m[4:], Price(1.0, 1.0 + i))) for i, m in enumerate(THREE)
    )
    policy = TrainedPolicy(made)
    columns = c.find_columns(THREE)
    assert columns is not None
    x = extract_table(cal)
    lab = made.estimator.predict(x.signals, x.vectors)[0]
    for i, messages in enumerate(cal.messages):
        decided = policy.decide(features.extract(messages), pool, Objective(kind="best"))
        served = [p.quality or 0.0 for p in decided.predictions]
        place, gap = c.choose_alternative([served[j] for j in columns])
        place_lab, gap_lab = c.choose_alternative([float(lab[i, j]) for j in columns])
        assert place == place_lab and gap == pytest.approx(gap_lab, abs=1e-3)


def test_labels_change_only_the_threshold(three: str) -> None:
    """Other labels on the same queries: same models, same rate, and one of the same thresholds."""
    cal = table(500, THREE, seed=1)
    worse = cal.score.copy()
    worse[:, :2] *= np.random.default_rng(0).random((500, 2)) < 0.9
    one, two = of(run(cal, three)), of(run(replace(cal, score=worse), three))
    same = ("reference", "cheap", "cost_usd", "exchange_rate", "policy_version")
    assert [getattr(one, f) for f in same] == [getattr(two, f) for f in same]
    assert two.threshold < one.threshold, "and they do stop earlier where more is lost"


def test_queries_that_were_trained_on_certify_nothing(artifact: str) -> None:
    with pytest.raises(UsageError, match="trained on every query"):
        run(table(300), artifact)
    old, new = table(300), table(500, seed=1)
    both = replace(
        new,
        query_ids=old.query_ids + new.query_ids,
        messages=old.messages + new.messages,
        score=np.concatenate([old.score, new.score]),
        cost_usd=np.concatenate([old.cost_usd, new.cost_usd]),  # type: ignore[arg-type]
        benchmark=None,
    )
    mixed = run(both, artifact)
    assert any("300 of 800 queries were dropped" in n for n in mixed.notes)
    assert of(mixed).threshold == of(run(new, artifact)).threshold


def test_the_default_policy_is_calibrated_without_training() -> None:
    told = run(table(500, seed=1), "default")
    c = of(told)
    assert c.score == "rank" and c.exchange_rate == 0.0
    assert c.policy_version == priors.prior_version("default", features.SCHEMA)
    many = run(table(500, THREE, seed=1), "default", max_loss=0.3)
    assert of(many).cheap == ("lab/small",)
    assert any("only the cheapest is certified" in n for n in many.notes)
    length = run(table(500, seed=1), "length")
    assert any("baseline of the lab" in n for n in length.notes)


def test_without_costs_the_reference_must_be_named() -> None:
    bare = table(500, costs=False, seed=1)
    with pytest.raises(UsageError, match="Give --reference, one of lab/weak, lab/strong"):
        run(bare, "default")
    told = run(bare, "default", reference="strong")
    assert of(told).reference == "lab/strong" and told.costs is None


def test_groups_and_graded_scores_use_the_betting_bound(artifact: str) -> None:
    cal = table(600, seed=1)
    grouped = run(replace(cal, group=tuple(f"s{i // 3}" for i in range(600))), artifact)
    c = of(grouped)
    assert (c.unit, c.n, c.method) == ("groups", 200, "betting")
    assert any("600 queries in 200 groups" in n for n in grouped.notes)
    graded = of(run(replace(cal, score=cal.score * 0.5 + 0.25), artifact))
    assert (graded.kind, graded.method, graded.n) == ("graded", "betting", 600)


def test_unlabelled_queries_are_left_out(artifact: str) -> None:
    cal = table(500, seed=1)
    score = cal.score.copy()
    score[:100, 0] = np.nan
    told = run(replace(cal, score=score), artifact)
    assert of(told).n == 400
    assert any("100 of 500 queries lack a score" in n for n in told.notes)
    score[:, 0] = np.nan
    with pytest.raises(TableError):
        run(replace(cal, score=score), artifact)


def test_too_strict_a_bound_gives_no_certificate(artifact: str) -> None:
    told = run(table(100, seed=1), artifact, max_loss=0.001)
    assert told.certificate is None and told.result.labels_needed == 2302
    assert "too few" in told.result.reason


@pytest.mark.parametrize(
    ("policy", "more", "said"),
    [
        ("trained", {}, "suffice train"),
        ("knn", {}, "calibration labels fit nothing"),
        ("lenght", {}, "Did you mean 'length'"),
        ("default", {"max_loss": 0.0}, "--max-loss"),
        ("default", {"max_loss": 5.0}, "--max-loss"),
        ("default", {"confidence": 1.0}, "--confidence"),
        ("default", {"confidence": 0.1}, "--confidence"),
        ("default", {"reference": "lab/other"}, "--reference"),
        ("default", {"reference": "lab/weak"}, "No model costs less"),
        ("default", {"models": ["lab/weak", "nope"]}, "no model 'nope'"),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(
    policy: str, more: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        run(table(50), policy, **more)


def test_an_artifact_of_other_models_is_refused(artifact: str) -> None:
    with pytest.raises(UsageError, match="fewer than two in common"):
        run(table(100, ("x/a", "x/b"), seed=1), artifact)


def test_the_exchange_rate_saves_most() -> None:
    # Where the middle model is no better than the small one, a dollar must count.
    same = np.tile([0.9, 0.85, 0.851], (100, 1))
    cost = np.array([1.0, 0.01, 0.5])
    assert (quality_gaps(same, cost, choose_exchange_rate(same, cost, 0.2))[0] == 0).all()
    # Where the small one loses all that is allowed on a tenth of the queries, it must not.
    better = np.tile([0.95, 0.0, 0.94], (100, 1))
    assert (quality_gaps(better, cost, choose_exchange_rate(better, cost, 0.1))[0] == 1).all()
    assert choose_exchange_rate(same[:, :2], cost[:2], 0.2) == 0.0


def test_the_default_path_of_a_certificate_is_next_to_the_artifact(artifact: str) -> None:
    assert certificates.default_path(artifact) == Path(f"{artifact}.certificate.json")

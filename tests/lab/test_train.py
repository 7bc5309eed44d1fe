"""Training: what can be learned is learned, what cannot is said, and what is saved serves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.support.tables import table

from suffice import features, policies
from suffice.artifacts import artifact as artifacts
from suffice.errors import ArtifactError, TableError, UsageError
from suffice.lab.data.keys import key_hashes
from suffice.lab.predictors import registry
from suffice.lab.predictors.base import Batch, Predictor, extract_table
from suffice.lab.predictors.simple import KNNPredictor
from suffice.lab.train.add_model import add_models
from suffice.lab.train.train import train
from suffice.types import Candidate, Model, Objective, Price

THREE = ("lab/small", "lab/middle", "lab/large")


@pytest.mark.slow
def test_a_difference_by_topic_is_learned_and_chosen() -> None:
    made, outcome = train(table(400), date="2026-01-02")
    assert outcome.chosen != "constant"
    assert outcome.nested is not None
    assert outcome.nested[0] > 0.02
    hard, easy = extract_table(table(60, seed=9)), table(60, seed=9)
    quality = made.estimator.predict(hard.signals, hard.vectors)[0]
    gap = quality[:, 1] - quality[:, 0]
    which = np.array(easy.benchmark) == "hard"
    assert gap[which].mean() > gap[~which].mean() + 0.2
    assert made.card.made == "2026-01-02"
    assert made.card.reference == "lab/strong"
    assert made.card.labels == 800
    assert made.card.scores == "right/wrong"


@pytest.mark.slow
def test_noise_trains_a_constant_with_a_reason() -> None:
    t = table(350, THREE)
    rng = np.random.default_rng(1)
    noise = replace(t, score=(rng.random(t.score.shape) < [0.6, 0.7, 0.8]).astype(float))
    made, outcome = train(noise)
    assert outcome.chosen == "constant"
    assert "no learner" in outcome.reason
    assert made.card.kind == "constant"
    assert made.estimator.quality == pytest.approx([0.6, 0.7, 0.8], abs=0.08)


@pytest.mark.parametrize("policy", ["trained", "ridge", "knn", "cluster", "constant"])
def test_a_saved_learner_predicts_what_the_fitted_one_does(policy: str) -> None:
    t = table(400, THREE)
    made, outcome = train(t, policy=policy)
    assert outcome.chosen == policy
    again = artifacts.unpack(artifacts.pack(made))
    x = extract_table(table(30, THREE, seed=5))
    fitted = registry.make_predictor(policy).fit(
        extract_table(t), t.score, t.cost_usd, np.nanmean(t.cost_usd, axis=0), t.models
    )
    # float32 weights and float16 points are what a file holds.
    for a, b in zip(again.estimator.predict(x.signals, x.vectors), fitted.predict(x), strict=True):
        if policy == "knn":  # of two nearly as near, another may be the twentieth
            assert np.abs(a - b).mean() < 0.02
        else:
            assert np.allclose(a, b, atol=3e-3, rtol=1e-3)


def test_few_labels_train_a_linear_head_for_a_pair_and_means_for_more() -> None:
    made, outcome = train(table(40))
    assert outcome.chosen == "trained"
    assert "too few" in outcome.reason
    more, outcome = train(table(40, THREE))
    assert outcome.chosen == "constant"
    assert made.card.kind == "linear"
    assert more.card.kind == "constant"


@pytest.mark.slow
def test_output_tokens_become_heads() -> None:
    t = table(300)
    tokens = np.tile([100.0, 400.0], (300, 1))
    made, _ = train(replace(t, output_tokens=tokens), policy="trained")
    assert np.allclose(np.exp(np.log(made.sample_tokens)).mean(axis=0), [100, 400], rtol=0.05)


@pytest.mark.slow
def test_missing_scores_are_ignored() -> None:
    t = table(400, THREE)
    score = t.score.copy()
    score[::3, 1] = np.nan
    made, _ = train(replace(t, score=score), policy="trained")
    assert made.card.labels == int((~np.isnan(score)).sum())
    assert np.isfinite(made.sample_quality).all()


@pytest.mark.slow
def test_the_same_table_and_seed_give_the_same_file() -> None:
    a, _ = train(table(200), date="2026-01-02")
    b, _ = train(table(200), date="2026-01-02")
    assert artifacts.pack(a) == artifacts.pack(b)


def test_training_keys_identify_the_training_queries() -> None:
    t = table(120)
    made, _ = train(t, policy="constant")
    assert np.isin(key_hashes(t), made.training_keys).all()
    assert not np.isin(key_hashes(table(120, seed=3)), made.training_keys).all()


def test_one_model_and_an_unknown_policy_are_refused() -> None:
    with pytest.raises(TableError, match="one model"):
        train(table(50).select_models(["lab/weak"]))
    with pytest.raises(UsageError, match="trained"):
        train(table(50), policy="traned")
    with pytest.raises(UsageError, match="learns nothing"):
        train(table(50), policy="length")


@pytest.mark.slow
def test_a_new_model_adds_one_column_and_changes_no_other() -> None:
    t = table(400, THREE)
    old, _ = train(t.select_models(["lab/small", "lab/large"]), policy="trained")
    grown = add_models(old, t.take(np.arange(200)))
    assert grown.card.models == ("lab/small", "lab/large", "lab/middle")
    x = extract_table(table(50, THREE, seed=8))
    before = old.estimator.predict(x.signals, x.vectors)[0]
    after = grown.estimator.predict(x.signals, x.vectors)[0]
    assert np.allclose(before, after[:, :2], atol=1e-9)
    assert before[:, 0].mean() < after[:, 2].mean() < before[:, 1].mean()
    assert grown.version != old.version
    assert any("lab/middle added" in n for n in grown.card.notes)


@pytest.mark.parametrize("policy", ["constant", "ridge"])
def test_constants_and_ridge_can_be_extended(policy: str) -> None:
    t = table(300, THREE)
    old, _ = train(t.select_models(["lab/small", "lab/large"]), policy=policy)
    assert add_models(old, t).card.models[-1] == "lab/middle"


def test_artifacts_that_cannot_be_extended_are_refused_with_a_reason() -> None:
    t = table(300, THREE)
    old, _ = train(t.select_models(["lab/small", "lab/large"]), policy="knn")
    with pytest.raises(ArtifactError, match="knn"):
        add_models(old, t)
    linear, _ = train(t, policy="constant")
    with pytest.raises(TableError, match="no model that the artifact lacks"):
        add_models(linear, t)


def test_the_same_question_is_never_on_both_sides_of_a_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores are pure noise, and each question is in the table twice with the same scores."""
    monkeypatch.setitem(registry.BUILT_IN, "nearest", lambda: KNNPredictor(neighbours=1))
    t = table(200)
    noise = np.random.default_rng(7).integers(0, 2, t.score.shape).astype(float)
    assert t.cost_usd is not None
    twice = replace(
        t,
        query_ids=tuple(f"{q}{s}" for s in "ab" for q in t.query_ids),
        messages=t.messages * 2,
        score=np.concatenate([noise, noise]),
        cost_usd=np.concatenate([t.cost_usd, t.cost_usd]),
        benchmark=None,
    )
    _, outcome = train(twice, policy="nearest")
    # With its copy in the training folds the nearest neighbour would know every score.
    assert outcome.gains["nearest"][0] < 0.05


class Own(Predictor):
    """A user's predictor: what it learned is one number for each model."""

    name = kind = "own"

    def fit(
        self,
        x: Batch,
        score: np.ndarray,
        cost_usd: np.ndarray | None,
        price: np.ndarray,
        models: object,
        sample_weight: np.ndarray | None = None,
    ) -> Own:
        self.level_ = np.nanmean(score, axis=0)
        self.price_ = price
        return self

    def predict(self, x: Batch) -> tuple[np.ndarray, np.ndarray]:
        return np.tile(self.level_, (len(x), 1)), np.tile(self.price_, (len(x), 1))

    def strong_score(self, x: Batch, strong: int, weak: int) -> np.ndarray:
        return np.zeros(len(x))

    def estimator(self, models: tuple[str, ...]) -> OwnEstimator:
        return OwnEstimator(models, self.level_, self.price_)

    @staticmethod
    def from_arrays(models: tuple[str, ...], arrays: dict[str, np.ndarray]) -> OwnEstimator:
        return OwnEstimator(models, arrays["level"], arrays["price"])


class OwnEstimator:
    kind = "own"

    def __init__(self, models: tuple[str, ...], level: np.ndarray, price: np.ndarray) -> None:
        self.models, self.level, self.price = models, level, price

    def predict(self, signals: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = len(signals)
        return np.tile(self.level, (n, 1)), np.tile(self.price, (n, 1))

    def output_tokens(self, signals: np.ndarray, vectors: np.ndarray) -> None:
        return None

    def arrays(self) -> dict[str, np.ndarray]:
        return {"level": self.level, "price": self.price}


@pytest.mark.slow
def test_a_plugin_predictor_trains_saves_and_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    class Entry:
        name = "own"

        @staticmethod
        def load() -> type[Own]:
            return Own

    real = metadata.entry_points

    def entry_points(group: str) -> object:
        return [Entry()] if group == artifacts.ENTRY_POINTS else real(group=group)

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    t = table(120)
    made, _ = train(t, policy="own")
    again = artifacts.unpack(artifacts.pack(made))
    assert again.card.kind == "own"
    assert again.version.startswith("own-")
    policy = policies.TrainedPolicy(again)
    pool = tuple(Candidate(Model(m, "lab", m, price=Price(1.0, 2.0))) for m in t.models)
    d = policy.decide(features.extract_text("hi"), pool, Objective(kind="best"))
    assert d.model == "lab/strong"
    both, outcome = train(t)
    assert "own" in outcome.gains
    assert both.card.figures["cross_validated"]["own"]["gain_over_zero_router"] <= 0.02

"""Every predictor keeps the same promises, on the tables that people really have."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from suffice import features
from suffice.errors import UsageError
from suffice.lab.predictors.base import Batch, Predictor
from suffice.lab.predictors.linear import MIN_MULTI_MODEL_LABELS
from suffice.lab.predictors.registry import BUILT_IN, make_predictor

FloatArray = NDArray[np.float64]
LEARNED = ("trained", "knn", "cluster", "ridge")


class Labels(NamedTuple):
    x: Batch
    score: FloatArray
    cost_usd: FloatArray | None
    price: FloatArray
    models: tuple[str, ...]


def batch(n: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    mean, deviation = features.feature_scaler()
    signals = mean + deviation * rng.normal(size=(n, len(features.SIGNAL_NAMES)))
    vectors = 0.1 * rng.normal(size=(n, features.DIMENSIONS))
    return Batch(signals.astype(np.float32), vectors.astype(np.float32))


def labels(n: int, k: int, seed: int = 0, costs: bool = True) -> Labels:
    """Right or wrong answers of k models, the dearer the better, dearer on longer queries."""
    rng = np.random.default_rng(seed)
    x = batch(n, seed)
    skill = np.linspace(0.9, 0.5, k)
    score = (rng.random((n, k)) < skill).astype(float)
    price = np.geomspace(1e-2, 1e-4, k)
    cost = price * np.exp(0.3 * rng.normal(size=(n, k)) + 0.2 * x.signals[:, :1])
    return Labels(x, score, cost if costs else None, price, tuple(f"m{i}" for i in range(k)))


def changed(given_: Labels, how: str) -> Labels:
    rng = np.random.default_rng(1)
    score, cost, price = given_.score.copy(), given_.cost_usd, given_.price.copy()
    n, k = score.shape
    if how == "constant scores":
        score[:] = 1.0
    elif how == "holes":
        hole = rng.random(score.shape) < 0.4
        score[hole] = np.nan
        if cost is not None:
            cost = np.where(hole, np.nan, cost)
    elif how == "no query twice":  # models without overlap
        score[rng.integers(0, k, n)[:, None] != np.arange(k)] = np.nan
    elif how == "a model without labels":
        score[:, -1] = np.nan
        if cost is not None:
            cost = cost.copy()
            cost[:, -1] = np.nan
    elif how == "the best without labels":
        score[:, 0] = np.nan
    elif how == "prices unknown":
        price[:] = np.nan
        cost = None
    elif how == "free models":
        price[-1] = 0.0
        if cost is not None:
            cost = cost.copy()
            cost[:, -1] = 0.0
    elif how == "graded":
        score = np.clip(score * 0.2 + 0.05 * rng.random(score.shape), 0, 1)
    return given_._replace(score=score, cost_usd=cost, price=price)


HOWS = (
    "plain", "constant scores", "holes", "no query twice", "a model without labels",
    "the best without labels", "prices unknown", "free models", "graded",
)  # fmt: skip


def fit(name: str, g: Labels) -> Predictor:
    return make_predictor(name).fit(g.x, g.score, g.cost_usd, g.price, g.models)


def whole(p: Predictor, g: Labels, test: Batch) -> None:
    """Shapes, and numbers wherever something is known."""
    k = len(g.models)
    quality, cost = p.predict(test)
    assert quality.shape == cost.shape == (len(test), k)
    assert np.isfinite(quality).all()
    assert (quality > -1).all()
    assert (quality < 2).all()
    assert not np.isnan(cost[:, ~np.isnan(g.price)]).any()
    assert (cost[~np.isnan(cost)] >= 0).all()
    if k >= 2:
        rank = p.strong_score(test, 0, 1)
        assert rank.shape == (len(test),)
        assert np.isfinite(rank).all()


@pytest.fixture(params=list(BUILT_IN))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    ("n", "k"), [(0, 2), (1, 2), (60, 2), (60, 4), (MIN_MULTI_MODEL_LABELS + 60, 4)]
)
def test_any_table_gives_complete_predictions(name: str, n: int, k: int, how: str) -> None:
    g = changed(labels(n, k), how)
    p = fit(name, g)
    whole(p, g, batch(30, 5))
    whole(p, g, batch(1, 6))
    whole(p, g, batch(0, 7))


@given(st.integers(0, 90), st.integers(1, 20), st.booleans(), st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_any_number_of_labels_and_models(n: int, k: int, costs: bool, seed: int) -> None:
    g = changed(labels(n, k, seed, costs), "holes")
    for each in BUILT_IN:
        whole(fit(each, g), g, batch(9, seed + 1))


@pytest.mark.slow
def test_twenty_models_with_enough_labels_are_predicted(name: str) -> None:
    g = changed(labels(MIN_MULTI_MODEL_LABELS + 20, 20), "holes")
    whole(fit(name, g), g, batch(30, 5))


def test_predictors_follow_the_estimator_conventions(name: str) -> None:
    g = labels(80, 3)
    p = make_predictor(name)
    assert p.name == name
    before = set(vars(p))
    assert not [a for a in before if a.endswith("_")], "__init__ only stores its arguments"
    score, signals, vectors = g.score.copy(), g.x.signals.copy(), g.x.vectors.copy()
    assert p.fit(g.x, g.score, g.cost_usd, g.price, g.models) is p
    assert all(a.endswith("_") for a in set(vars(p)) - before), "learned state ends in _"
    assert np.array_equal(score, g.score)
    assert np.array_equal(signals, g.x.signals)
    assert np.array_equal(vectors, g.x.vectors)


def test_the_same_labels_give_the_same_fit(name: str) -> None:
    g = changed(labels(MIN_MULTI_MODEL_LABELS + 60, 3), "holes")
    test = batch(50, 9)
    once, again = fit(name, g), fit(name, g)
    for a, b in zip(once.predict(test), again.predict(test), strict=True):
        assert np.array_equal(a, b, equal_nan=True)
    # Fitting again forgets what was learned before.
    refitted = once.fit(*labels(5, 3, seed=8)).predict(test)
    for a, b in zip(refitted, fit(name, labels(5, 3, seed=8)).predict(test), strict=True):
        assert np.array_equal(a, b, equal_nan=True)


def test_a_query_alone_is_predicted_as_in_a_batch(name: str) -> None:
    if name in ("default", "length"):
        return  # their quality is by the quantile within the batch; their rank is tested below
    g = labels(MIN_MULTI_MODEL_LABELS + 60, 3)
    p, test = fit(name, g), batch(20, 9)
    alone = np.concatenate([p.predict(test.take([i]))[0] for i in range(20)])
    # k-means and neighbours compare float32 distances, which sum in another order in a batch.
    assert alone == pytest.approx(p.predict(test)[0], abs=1e-5)


def test_ranks_do_not_depend_on_the_batch(name: str) -> None:
    p, test = fit(name, labels(100, 2)), batch(20, 9)
    alone = [float(p.strong_score(test.take([i]), 0, 1)[0]) for i in range(20)]
    assert alone == pytest.approx(p.strong_score(test, 0, 1).tolist(), abs=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_a_clear_difference_is_learned(name: str) -> None:
    """The strong model is better only in one half of the embedding."""
    rng = np.random.default_rng(2)
    x = batch(1200, 2)
    side = rng.random(1200) < 0.5
    x.vectors[:, 0] += np.where(side, 0.5, -0.5).astype(np.float32)
    score = np.stack([np.ones(1200), np.where(side, 0.0, 1.0)], axis=1)
    train, test = np.arange(600), np.arange(600, 1200)
    p = make_predictor(name).fit(
        x.take(train), score[train], None, np.array([2.0, 1.0]), ("s", "w")
    )
    rank = p.strong_score(x.take(test), 0, 1)
    # In pairs of one query from each half, who is ranked higher?
    right = (rank[side[test]][:, None] > rank[~side[test]][None, :]).mean()
    assert right > 0.95
    assert p.strong_score(x.take(test), 1, 0) == pytest.approx(-rank)


def test_without_labels_the_trained_head_ranks_exactly_by_length() -> None:
    g, test = labels(0, 2), batch(300, 3)
    p = fit("trained", g)
    length = test.signals[:, 0]
    assert np.array_equal(
        np.argsort(p.strong_score(test, 0, 1)), np.argsort(np.clip(_z(length), -4, 4))
    )


def _z(length: NDArray[np.float32]) -> NDArray[np.float32]:
    mean, deviation = features.feature_scaler()
    return np.asarray((length - mean[0]) / deviation[0])


def test_below_few_labels_three_models_get_constants_only() -> None:
    few, enough = (
        fit("trained", labels(MIN_MULTI_MODEL_LABELS - 1, 3)),
        fit("trained", labels(MIN_MULTI_MODEL_LABELS, 3)),
    )
    test = batch(40, 3)
    assert np.ptp(few.predict(test)[0], axis=0).max() == pytest.approx(0.0, abs=1e-12)
    assert np.ptp(enough.predict(test)[0], axis=0).max() > 1e-6
    assert np.ptp(fit("trained", labels(50, 2)).predict(test)[0], axis=0).max() > 1e-6


def test_the_trained_head_predicts_costs_per_query() -> None:
    g = labels(800, 2)
    test = batch(400, 4)
    _, cost = fit("trained", g).predict(test)
    want = g.price * np.exp(0.2 * test.signals[:, :1])
    for j in range(2):
        assert np.corrcoef(np.log(cost[:, j]), np.log(want[:, j]))[0, 1] > 0.6
    assert g.cost_usd is not None
    assert fit("trained", g).predict(g.x)[1].mean(axis=0) == pytest.approx(
        g.cost_usd.mean(axis=0), rel=1e-6
    )


def test_graded_scores_and_right_or_wrong_rank_alike() -> None:
    g, test = labels(400, 2), batch(60, 5)
    tenth = g._replace(score=g.score * 0.1 + 0.4)
    a, b = (
        fit("trained", g).strong_score(test, 0, 1),
        fit("trained", tenth).strong_score(test, 0, 1),
    )
    assert np.corrcoef(a, b)[0, 1] > 0.99


def test_a_model_without_costs_is_predicted_by_its_price() -> None:
    g = changed(labels(MIN_MULTI_MODEL_LABELS + 60, 3), "a model without labels")
    _, cost = fit("trained", g).predict(batch(20, 6))
    assert np.ptp(cost, axis=0).tolist() == [0.0, 0.0, 0.0]
    assert cost[0, 2] == pytest.approx(g.price[2])


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="trained"):
        make_predictor("traned")

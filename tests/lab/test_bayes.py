"""The safe head: exact where it can be checked, and safe on few labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from suffice.lab.predictors.bayes import (
    NULL_LOG_ODDS,
    PRIOR_WIDTHS,
    PSEUDO_LABELS,
    BayesianModelAveragingRegression,
    solve_over_labels,
    solve_over_weights,
)

S, D = 3, 12  # signals beside the length, dimensions
P = 1 + S + D
FloatArray = NDArray[np.float64]


def data(
    n: int, seed: int, slope: float = 0.0, strength: float = 0.0
) -> tuple[FloatArray, FloatArray]:
    """A design (n, P) and one target (n, 1): noise of deviation 0.5, plus what is asked for."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, P))
    y = 0.1 + slope * x[:, 0] + strength * (x[:, 2] - x[:, 6]) + rng.normal(0, 0.5, n)
    return x, y[:, None]


def head(
    x: FloatArray, y: FloatArray, odds: float = NULL_LOG_ODDS, **more: FloatArray
) -> BayesianModelAveragingRegression:
    h = y.shape[1]
    weight = more.pop("weight", None)
    made = BayesianModelAveragingRegression(S, null_log_odds=odds, **more)
    return made.fit(x, y, np.full(h, 0.2), np.full(h, 0.1), np.full(h, 0.3), weight)


def test_without_labels_only_the_length_predicts() -> None:
    x, y = data(0, 0)
    got = head(x, y)
    assert got.intercept_.tolist() == [0.2]
    assert got.weights_[:, 0].tolist() == [0.1] + [0.0] * (P - 1)
    test, _ = data(40, 1)
    assert got.predict(test)[:, 0] == pytest.approx(0.2 + 0.1 * test[:, 0])


@given(st.integers(1, 60), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_both_solvers_give_the_same_solution(n: int, seed: int) -> None:
    x, y = data(n, seed, strength=0.3)
    v = np.random.default_rng(seed).uniform(0.0, 0.1, P)
    v[3] = 0.0  # ruled out
    for a, b in zip(solve_over_labels(x, y)(v), solve_over_weights(x, y)(v), strict=True):
        assert a == pytest.approx(b, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("n", [8, 50])
def test_the_average_equals_its_definition(n: int) -> None:
    """Every member's posterior mean and marginal likelihood, from the densities themselves."""
    x, y = data(n, 3, slope=0.2, strength=0.2)
    spread = np.linspace(2.0, 0.5, D)
    full = np.concatenate([np.ones((n, 1)), x], axis=1)
    start = np.array([0.2, 0.1] + [0.0] * (P - 1))
    r = y[:, 0] - full @ start
    members: list[tuple[float, FloatArray]] = []
    for t1 in PRIOR_WIDTHS:
        for t2 in PRIOR_WIDTHS:
            v = np.concatenate([[0.3 / PSEUDO_LABELS, 0.002], np.full(S, t1), t2 * spread])
            z1, z2 = (np.log10(t1) + 4.0) / 0.75, (np.log10(t2) + 3.75) / 0.5
            members.append((-0.5 * (z1 * z1 + z2 * z2), v))
    total = np.log(sum(np.exp(p) for p, _ in members))
    members = [(p - total, v) for p, v in members]
    nothing = np.zeros(P + 1)
    nothing[0] = 0.3 / PSEUDO_LABELS
    members.append((NULL_LOG_ODDS, nothing))
    weights, means = [], []
    for log_prior, v in members:
        cov = np.eye(n) + (full * (v / 0.3)) @ full.T
        quad = float(r @ np.linalg.inv(cov) @ r)
        noise = (quad + PSEUDO_LABELS * 0.3) / (n + PSEUDO_LABELS)
        weights.append(
            log_prior - 0.5 * (n + PSEUDO_LABELS) * np.log(noise) - 0.5 * np.linalg.slogdet(cov)[1]
        )
        means.append(start + (v / 0.3) * (full.T @ np.linalg.inv(cov) @ r))
    share = np.exp(np.array(weights) - max(weights))
    share /= share.sum()
    want = share @ np.array(means)
    got = head(x, y, vector_spectrum=spread)
    assert got.intercept_[0] == pytest.approx(want[0])
    assert got.weights_[:, 0] == pytest.approx(want[1:])
    assert got.null_probability_[0] == pytest.approx(share[-1])


def test_a_label_of_weight_two_is_two_labels() -> None:
    x, y = data(30, 4, strength=0.2)
    weight = np.ones(30)
    weight[:10] = 2.0
    twice = np.r_[np.arange(30), np.arange(10)]
    one, two = head(x, y, weight=weight), head(x[twice], y[twice])
    assert one.weights_ == pytest.approx(two.weights_)
    assert one.noise_ == pytest.approx(two.noise_)


def test_unknown_targets_are_ignored() -> None:
    x, y = data(60, 5, strength=0.3)
    both = np.concatenate([y, y], axis=1)
    both[20:, 1] = np.nan
    got, few = head(x, both), head(x[:20], y[:20])
    assert got.weights_[:, [0]] == pytest.approx(head(x, y).weights_)
    assert got.weights_[:, [1]] == pytest.approx(few.weights_)
    none = head(x, np.full((60, 1), np.nan))
    assert none.weights_[:, 0].tolist() == [0.1] + [0.0] * (P - 1)


def test_fifty_labels_of_noise_hardly_change_the_prediction() -> None:
    """What makes it safe: where nothing but length is to be learned, the order stays that of the
    length, on every seed."""
    test, _ = data(2000, 99)
    told = []
    for seed in range(40):
        x, y = data(50, seed, slope=0.1)
        got = head(x, y)
        told.append(np.corrcoef(got.predict(test)[:, 0], test[:, 0])[0, 1])
    assert min(told) > 0.8
    assert np.median(told) > 0.98
    loose = [
        np.corrcoef(head(*data(50, s, slope=0.1), odds=-np.inf).predict(test)[:, 0], test[:, 0])[
            0, 1
        ]
        for s in range(40)
    ]
    assert np.mean(loose) < np.mean(told)  # the doubt is what does it


def test_many_labels_reject_the_null_model() -> None:
    x, y = data(2000, 7, slope=-0.2, strength=0.3)
    got = head(x, y)
    assert got.null_probability_[0] < 1e-6
    want = np.zeros(P)
    want[[0, 2, 6]] = -0.2, 0.3, -0.3
    assert got.weights_[:, 0] == pytest.approx(want, abs=0.06)
    assert got.noise_[0] == pytest.approx(0.25, abs=0.03)


def test_the_null_model_can_be_ruled_out() -> None:
    x, y = data(5, 8)
    got = head(x, y, odds=-np.inf)
    assert got.null_probability_.tolist() == [0.0]
    assert np.isfinite(got.weights_).all()
    assert head(x[:0], y[:0], odds=-np.inf).null_probability_.tolist() == [0.0]


def test_a_wider_prior_learns_a_dimension_from_fewer_labels() -> None:
    rng = np.random.default_rng(9)
    x = rng.normal(size=(200, P))
    y = (0.15 * (x[:, 5] + x[:, 6]) + rng.normal(0, 0.5, 200))[:, None]
    wide, narrow = np.ones(D), np.ones(D)
    wide[1], narrow[1] = 4.0, 0.1  # dimension 1 is column 5
    a, b = head(x, y, vector_spectrum=wide), head(x, y, vector_spectrum=narrow)
    assert abs(a.weights_[5, 0]) > 2 * abs(b.weights_[5, 0])

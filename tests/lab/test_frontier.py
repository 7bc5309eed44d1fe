"""From predictions to choices, and from points to hulls."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.lab.evaluate import frontier, metrics
from suffice.lab.evaluate.frontier import random_mixtures, sweep_thresholds, sweep_tradeoffs

POINT = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda p: (p[0] / 12, p[1] / 12))


def test_a_sweep_goes_from_the_best_to_the_cheapest() -> None:
    quality = np.array([[0.2, 0.9, 0.5], [0.7, 0.7, 0.1]])
    cost = np.tile([1.0, 10.0, 5.0], (2, 1))
    choices = sweep_tradeoffs(quality, cost)
    assert choices[0].tolist() == [1, 0], "the best, and of equals the cheapest"
    assert choices[-1].tolist() == [0, 0]
    assert [1, 0] in choices.tolist()


def test_thresholds_go_from_all_strong_calls_to_none() -> None:
    score = np.arange(50.0)
    choices = sweep_thresholds(score, strong=1, weak=0)
    share = choices.mean(axis=1)
    assert (share[0], share[-1]) == (1.0, 0.0)
    assert (np.diff(share) <= 0).all()
    # A new query is sent where its score would have been sent.
    new = sweep_thresholds(np.array([49.5, -1.0]), 1, 0, reference=score)
    assert new[50].tolist() == [1, 0]


def test_random_mixtures_include_each_model_of_the_hull() -> None:
    coin = np.random.default_rng(0).random(2000)
    choices = random_mixtures(coin, [4, 2, 7])
    assert set(choices[0]) == {4}
    assert set(choices[50]) == {2}
    assert set(choices[-1]) == {7}
    assert (choices[25] == 2).mean() == pytest.approx(0.5, abs=0.05)
    assert random_mixtures(coin, [3]).shape == (1, 2000)


@given(st.lists(POINT, min_size=1, max_size=12))
@settings(max_examples=150)
def test_hull_is_the_best_mixture_of_two_points(points: list[tuple[float, float]]) -> None:
    hull = frontier.upper_hull(points)
    assert (np.diff(hull[:, 0]) > 0).all()
    assert (np.diff(hull[:, 1]) > 0).all()
    for x in np.linspace(min(p[0] for p in points), 1.0, 7):
        # The best of all mixtures of two points whose mean cost is at most x.
        best = max((b for a, b in points if a <= x + 1e-12), default=-math.inf)
        for a, b in points:
            for c, d in points:
                if a <= x <= c and c > a:
                    best = max(best, b + (d - b) * (x - a) / (c - a))
        assert float(frontier.quality_on_hull(hull, x)) == pytest.approx(best, abs=1e-9)


def literal_area(points: list[tuple[float, float]], singles: list[tuple[float, float]]) -> float:
    """Mean of the best mixture's quality over a fine grid of costs."""
    low, high = min(s[0] for s in singles), max(s[0] for s in singles)
    cheapest = max((s for s in singles if s[0] == low), key=lambda s: s[1])
    every = [*points, cheapest]
    total, steps = 0.0, 4000
    for i in range(steps):
        x = low + (high - low) * (i + 0.5) / steps
        best = max(b for a, b in every if a <= x)
        for a, b in every:
            for c, d in every:
                if a <= x <= c and c > a:
                    best = max(best, b + (d - b) * (x - a) / (c - a))
        total += best
    return total / steps


def test_area_is_the_mean_height_over_the_single_models_costs() -> None:
    singles = [(1.0, 0.5), (3.0, 0.6), (5.0, 0.9)]
    points = [(0.5, 0.4), (2.0, 0.8), (4.0, 0.85), (4.5, 0.7)]
    assert frontier.hull_area(points, singles) == pytest.approx(
        literal_area(points, singles), abs=1e-3
    )
    # The zero router: straight from (1, .5) to (5, .9), for (3, .6) lies below.
    assert frontier.hull_area(singles, singles) == pytest.approx(0.7)
    assert frontier.zero_router_hull(singles).tolist() == [[1.0, 0.5], [5.0, 0.9]]
    # One price for all: the best of them.
    assert frontier.hull_area([(1.0, 0.3)], [(1.0, 0.2), (1.0, 0.4)]) == 0.4


def test_qnc_and_equal_cost_and_quality() -> None:
    singles = [(1.0, 0.5), (5.0, 0.9)]
    points = [(2.0, 0.8), (3.0, 0.95)]
    # .9 lies two thirds of the way from .8 to .95, so at 2.667 of 5.
    assert metrics.qnc(points, singles) == pytest.approx((2 + 2 / 3) / 5)
    assert metrics.qnc([(2.0, 0.8)], singles) is None
    assert metrics.qnc(singles, singles) == pytest.approx(1.0)
    assert frontier.cost_at(points, singles, 0.65) == pytest.approx(1.5)
    assert frontier.cost_at(points, singles, 0.99) is None
    assert frontier.quality_at(points, singles, 1.5) == pytest.approx(0.65)
    assert frontier.quality_at(points, singles, 0.5) is None

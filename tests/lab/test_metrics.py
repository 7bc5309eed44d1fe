"""Each figure of merit against its definition, written out once more the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.lab import stats
from suffice.lab.evaluate import frontier, metrics


def literal_pair(
    score: list[float], strong: list[float], weak: list[float]
) -> list[tuple[float, float]]:
    """RouteLLM's protocol as its text says it: (share of strong calls, mean quality) for each edge
    of ten equal-count bins, the last edge strict."""
    ordered = sorted(score)
    edges = []
    for b in range(11):
        at = b / 10 * (len(ordered) - 1)
        low = math.floor(at)
        high = min(low + 1, len(ordered) - 1)
        edges.append(ordered[low] + (ordered[high] - ordered[low]) * (at - low))
    edges = sorted(set(edges))
    points = []
    for i, edge in enumerate(edges):
        last = i == len(edges) - 1
        to_strong = [s > edge if last else s >= edge for s in score]
        quality = [a if t else b for t, a, b in zip(to_strong, strong, weak, strict=True)]
        points.append((sum(to_strong) / len(score), sum(quality) / len(score)))
    return points


def literal_apgr(points: list[tuple[float, float]], strong: float, weak: float) -> float:
    p = sorted(points)
    auc = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(p, p[1:], strict=False))
    return (auc - weak * (p[-1][0] - p[0][0])) / ((strong - weak) * (p[-1][0] - p[0][0]))


@pytest.mark.parametrize("seed", range(5))
def test_apgr_is_routellms(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 137
    score = rng.normal(size=n)
    weak = (rng.random(n) < 0.5).astype(float)
    strong = (rng.random(n) < 0.8).astype(float)
    p = metrics.pair_curve(score, strong, weak)
    points = literal_pair(score.tolist(), strong.tolist(), weak.tolist())
    got = np.array(sorted(zip(p.share.tolist(), p.quality.tolist(), strict=True)))
    assert got == pytest.approx(np.array(sorted(points)))
    assert p.apgr == pytest.approx(literal_apgr(points, strong.mean(), weak.mean()))


def test_apgr_of_known_rankings() -> None:
    # 100 queries, the weak model right on half of them; the strong one always.
    weak = np.arange(100) % 2 == 0
    strong = np.ones(100)
    perfect = metrics.pair_curve(1 - weak + np.arange(100) * 1e-6, strong, weak)
    # The gap is closed at half of the calls: half a triangle and half a rectangle.
    assert perfect.apgr == pytest.approx(0.75, abs=0.01)
    assert perfect.cpt(0.5) == pytest.approx(0.25, abs=0.01)
    assert perfect.cpt(0.8) == pytest.approx(0.40, abs=0.01)
    constant = metrics.pair_curve(np.zeros(100), strong, weak)
    assert constant.apgr == pytest.approx(0.5)
    assert (constant.cpt(0.5), constant.cpt(0.8)) == (pytest.approx(0.5), pytest.approx(0.8))
    worst = metrics.pair_curve(weak + np.arange(100) * 1e-6, strong, weak)
    assert worst.apgr == pytest.approx(0.25, abs=0.01)


def test_cpt_reads_the_running_maximum() -> None:
    # Recovered: 0, .6, .4, 1 at shares 0, .25, .5, 1. Half is reached before .25, and stays so.
    p = metrics.PairCurve(np.array([1.0, 0.5, 0.25, 0.0]), np.array([1.0, 0.4, 0.6, 0.0]), 0.0, 1.0)
    assert p.cpt(0.5) == pytest.approx(0.25 * 0.5 / 0.6)
    assert p.cpt(0.8) == pytest.approx(0.5 + 0.5 * (0.8 - 0.6) / (1.0 - 0.6))
    unreached = metrics.PairCurve(np.array([1.0, 0.0]), np.array([0.4, 0.0]), 0.0, 1.0)
    assert unreached.cpt(0.5) is None


def test_equal_models_have_no_apgr() -> None:
    same = np.array([0.0, 1.0, 1.0])
    p = metrics.pair_curve(np.arange(3.0), same, same)
    assert math.isnan(p.apgr)
    assert p.cpt(0.5) is None


POINT = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda p: (p[0] / 12, p[1] / 12))


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


def test_aiq_by_paper_and_by_code() -> None:
    points = [(1.0, 0.5), (3.0, 0.9), (4.0, 0.6)]
    # Over [0, 5]: null model to (1, .5), up to (3, .9), flat to 5.
    paper = (0.5 * 1 * 0.5 + 2 * 0.7 + 2 * 0.9) / 5
    assert metrics.aiq_paper(points, 0.0, 5.0) == pytest.approx(paper)
    assert metrics.aiq_paper(points, 1.0, 5.0) == pytest.approx((2 * 0.7 + 2 * 0.9) / 4)
    # The code starts at the first point and divides by the dearest.
    assert metrics.aiq_code(points, 5.0) == pytest.approx((2 * 0.7 + 2 * 0.9) / 5)


def test_routerarena_score() -> None:
    c = math.log2(200 / 1.0) / math.log2(200 / 0.0044)
    assert metrics.routerarena(0.7, 1.0) == pytest.approx(1.1 * 0.7 * c / (0.1 * 0.7 + c))
    assert metrics.routerarena(0.7, 0.0044) == pytest.approx(1.1 * 0.7 / 1.07)
    assert metrics.routerarena(0.7, 200.0) == pytest.approx(0.0)
    assert metrics.routerarena(0.7, 0.0) is None


def test_losses_against_a_reference() -> None:
    gross, net = metrics.losses([0, 1, 0, 1], [1, 0, 0, 1])
    assert (gross, net) == (0.25, 0.0)


def test_apgr_draws_weigh_queries_as_redrawn() -> None:
    rng = np.random.default_rng(3)
    n = 60
    score, weak = rng.normal(size=n), (rng.random(n) < 0.4).astype(float)
    strong = (rng.random(n) < 0.9).astype(float)
    redraws = stats.ClusterBootstrap(np.arange(n), 5, seed=1)
    drawn = metrics.apgr_draws(score, strong, weak, redraws)
    edges = metrics.bin_edges(score)
    chosen = metrics.strong_calls(score, edges)
    for i in range(5):
        w = redraws.means(np.eye(n))[i]  # the share of each query in this resample
        share = (chosen * w).sum(axis=1) / w.sum()
        quality = (np.where(chosen, strong, weak) * w).sum(axis=1) / w.sum()
        s, k = (strong * w).sum() / w.sum(), (weak * w).sum() / w.sum()
        points = list(zip(share.tolist(), quality.tolist(), strict=True))
        assert drawn[i] == pytest.approx(literal_apgr(points, s, k))


def test_redraws_take_whole_clusters() -> None:
    clusters = np.array([0, 0, 0, 1, 1, 2])
    values = np.array([[1.0], [1.0], [1.0], [5.0], [5.0], [9.0]])
    drawn = stats.ClusterBootstrap(clusters, 400, seed=0).means(values)[:, 0]
    # Three clusters with replacement: ten multisets, so at most ten means.
    assert len(set(np.round(drawn, 9))) <= 10
    assert {1.0, 5.0, 9.0} <= set(np.round(drawn, 9))


def test_redraws_of_many_clusters_keep_the_variance() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30_000, 1))
    drawn = stats.ClusterBootstrap(np.arange(30_000), 600, seed=0).means(x)
    assert drawn.std() == pytest.approx(1 / math.sqrt(30_000), rel=0.15)


def test_interval_covers_a_mean_at_its_level() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        x = rng.exponential(size=(80, 1))
        drawn = stats.ClusterBootstrap(np.arange(80), 200, seed=0).means(x)[:, 0]
        low, high = stats.basic_interval(drawn, float(x.mean())) or (0.0, 0.0)
        hits += low <= 1.0 <= high
    assert 0.86 <= hits / 200 <= 0.99


def test_interval_says_nothing_where_nothing_is_known() -> None:
    assert stats.basic_interval([math.nan] * 50, 0.5) is None
    assert stats.basic_interval([0.1, 0.2], math.nan) is None
    assert stats.percentile_interval([]) is None


def test_wilson_against_the_textbook() -> None:
    # Newcombe 1998, table I: 81 of 263.
    low, high = stats.wilson_interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)

"""Each figure of merit against its definition, written out once more the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from suffice.lab import stats
from suffice.lab.evaluate import metrics


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
def test_apgr_equals_its_definition(seed: int) -> None:
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


def test_apgr_draws_weigh_queries_as_resampled() -> None:
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

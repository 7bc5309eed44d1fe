"""Bootstrap, binomial and t intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from suffice.lab import stats


def test_the_bootstrap_resamples_whole_clusters() -> None:
    clusters = np.array([0, 0, 0, 1, 1, 2])
    values = np.array([[1.0], [1.0], [1.0], [5.0], [5.0], [9.0]])
    drawn = stats.ClusterBootstrap(clusters, 400, seed=0).means(values)[:, 0]
    # Three clusters with replacement: ten multisets, so at most ten means.
    assert len(set(np.round(drawn, 9))) <= 10
    assert {1.0, 5.0, 9.0} <= set(np.round(drawn, 9))


def test_grouped_resampling_keeps_the_variance() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30_000, 1))
    drawn = stats.ClusterBootstrap(np.arange(30_000), 600, seed=0).means(x)
    assert drawn.std() == pytest.approx(1 / math.sqrt(30_000), rel=0.15)


def test_the_basic_interval_covers_a_mean_at_its_level() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        x = rng.exponential(size=(80, 1))
        drawn = stats.ClusterBootstrap(np.arange(80), 200, seed=0).means(x)[:, 0]
        low, high = stats.basic_interval(drawn, float(x.mean())) or (0.0, 0.0)
        hits += low <= 1.0 <= high
    assert 0.86 <= hits / 200 <= 0.99


def test_unknown_values_have_no_interval() -> None:
    assert stats.basic_interval([math.nan] * 50, 0.5) is None
    assert stats.basic_interval([0.1, 0.2], math.nan) is None
    assert stats.percentile_interval([]) is None


def test_wilson_interval_equals_a_published_one() -> None:
    # Newcombe 1998, table I: 81 of 263.
    low, high = stats.wilson_interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(("df", "published"), [(1, 12.706), (2, 4.303), (5, 2.571), (30, 2.042)])
def test_t_quantiles_equal_published_ones_at_few_degrees_of_freedom(
    df: int, published: float
) -> None:
    assert stats.student_t_quantile(0.975, df) == pytest.approx(published, abs=5e-4)

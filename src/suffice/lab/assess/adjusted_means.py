"""Mean scores that can be compared although not every model was labelled every query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from suffice.lab.assess.results import Estimate
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.stats import ClusterBootstrap, percentile_interval, wilson_interval

DRAWS = 400
MIN_LABELS = 10  # for an interval: a bootstrap sample of fewer says too little


def bootstrap(table: Table, seed: int, draws: int = DRAWS) -> ClusterBootstrap:
    """Bootstrap samples of a table's queries, whole groups at a time."""
    return ClusterBootstrap(table.clusters, draws, seed)


def adjusted_means(score: FloatArray, draws: ClusterBootstrap) -> tuple[FloatArray, FloatArray]:
    """The mean score of each model, adjusted for which queries it was labelled.

    If every model was labelled every query these are the plain means. If not, queries and models get
    additive effects by least squares, score = query + model, so that a model that was labelled only
    easy queries has no advantage. Bootstrap samples move the effects by their first-order influence.
    Models that share no query, directly or through others, cannot be compared this way: they keep
    their plain means.

    Args:
        score: (n, k), NaN = unknown.
        draws: Bootstrap samples of the n queries.

    Returns:
        (k,) means, and (draws, k) means in each bootstrap sample; NaN for a model without a score.
    """
    seen = ~np.isnan(score)
    known = np.where(seen, score, 0.0)
    count = seen.sum(axis=0)
    complete = np.asarray(seen[:, count > 0].all(axis=1))
    if complete[seen.any(axis=1)].all() or not _is_connected(seen):
        mean = _ratio(known.sum(axis=0), count)
        return mean, _ratio(draws.means(known), draws.means(seen.astype(float)))
    return _two_way_effects(known, seen, draws)


def _two_way_effects(
    known: FloatArray, seen: NDArray[np.bool_], draws: ClusterBootstrap
) -> tuple[FloatArray, FloatArray]:
    """Means by the additive model score = query + model. known, seen: (n, k)."""
    n, k = known.shape
    used = np.flatnonzero(seen.any(axis=0))
    labelled = np.flatnonzero(seen.any(axis=1))
    m = seen[np.ix_(labelled, used)].astype(float)
    y = known[np.ix_(labelled, used)]
    per_query = m.sum(axis=1, keepdims=True)
    gram = np.diag(m.sum(axis=0)) - (m / per_query).T @ m
    inverse = np.linalg.pinv(gram)
    effect = inverse @ (m * (y - y.sum(axis=1, keepdims=True) / per_query)).sum(axis=0)
    residual = m * (y - effect)
    level = residual.sum(axis=1, keepdims=True) / per_query  # (n_asked, 1) effect of each query
    # Influence of each query on the effects, over all rows of the table, for the bootstrap.
    influence = np.zeros((n, len(used)))
    influence[labelled] = m * (residual - level)
    weight = np.zeros((n, 1 + len(used)))
    weight[labelled, 0] = 1.0
    weight[labelled, 1:] = m / per_query
    levels = np.zeros((n, 1))
    levels[labelled] = level
    weight_draws = draws.means(weight)
    effect_draws = (draws.means(influence) / weight_draws[:, :1]) @ inverse * len(labelled)
    base = draws.means(levels) / weight_draws[:, :1]
    shift = effect_draws * (weight_draws[:, 1:] / weight_draws[:, :1])
    base = base - shift.sum(axis=1, keepdims=True)
    mean = np.full(k, np.nan)
    mean[used] = level.mean() + effect
    mean_draws = np.full((len(effect_draws), k), np.nan)
    mean_draws[:, used] = base + effect + effect_draws
    return mean, mean_draws


def _is_connected(seen: NDArray[np.bool_]) -> bool:
    """Whether all models were labelled queries in common, directly or through other models."""
    from scipy.sparse.csgraph import connected_components

    labelled = seen[:, seen.any(axis=0)].astype(np.float32)
    return (
        int(connected_components(labelled.T @ labelled, directed=False, return_labels=False)) == 1
    )


def _ratio(top: FloatArray, bottom: NDArray[np.floating] | NDArray[np.integer]) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(bottom > 0, top / bottom, np.nan))


def estimate(value: float, draws: Sequence[float] | FloatArray, n: int) -> Estimate:
    """A figure with the percentile interval of its bootstrap values; none below MIN_LABELS."""
    known = np.asarray(draws, float)
    known = known[~np.isnan(known)]
    few = n < MIN_LABELS or len(known) < 0.99 * np.size(draws)
    return Estimate(float(value), None if few else percentile_interval(known), int(n))


def proportion(hits: FloatArray, draws: ClusterBootstrap, grouped: bool) -> Estimate | None:
    """The mean of 0/1 values with its interval.

    Args:
        hits: (n,) 0 or 1, NaN = not counted.
        draws: Bootstrap samples, used if queries come in groups; otherwise the interval is Wilson's.
        grouped: Whether queries come in groups.

    Returns:
        The estimate; None without any value.
    """
    seen = ~np.isnan(hits)
    n = int(seen.sum())
    if not n:
        return None
    total = float(np.nansum(hits))
    if not grouped:
        return Estimate(total / n, wilson_interval(total, n) if n >= MIN_LABELS else None, n)
    both = draws.means(np.stack([np.where(seen, hits, 0.0), seen.astype(float)], axis=1))
    return estimate(total / n, _ratio(both[:, 0], both[:, 1]), n)


def cluster_means(
    score: FloatArray, labels: NDArray[np.intp], k: int, draws: ClusterBootstrap
) -> tuple[FloatArray, FloatArray, NDArray[np.intp]]:
    """Means of each column within each cluster.

    Args:
        score: (n, m), NaN = unknown.
        labels: (n,) cluster of each query.
        k: Number of clusters.
        draws: Bootstrap samples of the n queries.

    Returns:
        (k, m) means, (draws, k, m) means in each bootstrap sample, (k, m) numbers of scores.
    """
    seen = ~np.isnan(score)
    known = np.where(seen, score, 0.0)
    m = score.shape[1]
    means = np.full((k, m), np.nan)
    mean_draws = np.empty((len(draws.means(np.ones((len(score), 1)))), k, m))
    counts: NDArray[np.intp] = np.zeros((k, m), np.intp)
    for c in range(k):
        inside = (labels == c)[:, None]
        counted = seen & inside
        counts[c] = counted.sum(axis=0)
        means[c] = _ratio((known * inside).sum(axis=0), counts[c])
        mean_draws[:, c] = _ratio(draws.means(known * inside), draws.means(counted.astype(float)))
    return means, mean_draws, counts

"""Mean scores that compare, although not every model was asked every query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from suffice.lab.assess.results import Estimate
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.stats import ClusterBootstrap, percentile_interval, wilson_interval

DRAWS = 400
TOO_FEW = 10  # labels below which no interval is given: a resample of so few knows too little


def redraws(table: Table, seed: int, draws: int = DRAWS) -> ClusterBootstrap:
    """Resamples of a table's queries, whole groups at a time."""
    return ClusterBootstrap(table.clusters, draws, seed)


def adjusted(score: FloatArray, drawn: ClusterBootstrap) -> tuple[FloatArray, FloatArray]:
    """(mean score of each model (k,), the same in each redraw (draws, k)); NaN for a model without
    a score.

    Where every model was asked everything these are the plain means. Where not, queries and models
    get additive effects by least squares, score = query + model, so that a model that was asked
    easy queries only is not the better for it; redraws move the effects by their first-order
    influence. Models that share no query, directly or through others, cannot be compared so: they
    keep their plain means (see `parts`).
    """
    seen = ~np.isnan(score)
    s = np.where(seen, score, 0.0)
    count = seen.sum(axis=0)
    whole = np.asarray(seen[:, count > 0].all(axis=1))
    if whole[seen.any(axis=1)].all() or len(parts(seen)) > 1:
        mean = _ratio(s.sum(axis=0), count)
        return mean, _ratio(drawn.means(s), drawn.means(seen.astype(float)))
    used = np.flatnonzero(count)
    asked = np.flatnonzero(seen.any(axis=1))
    m = seen[np.ix_(asked, used)].astype(float)
    y = s[np.ix_(asked, used)]
    each = m.sum(axis=1, keepdims=True)
    gram = np.diag(m.sum(axis=0)) - (m / each).T @ m
    inverse = np.linalg.pinv(gram)
    effect = inverse @ (m * (y - y.sum(axis=1, keepdims=True) / each)).sum(axis=0)
    rest = m * (y - effect)
    level = rest.sum(axis=1, keepdims=True) / each  # (n, 1) of each query
    # Influence of each query on the effects, spread over the whole table's rows for the redraws.
    pull = np.zeros((len(score), len(used)))
    pull[asked] = m * (rest - level)
    share = np.zeros((len(score), 1 + len(used)))
    share[asked, 0] = 1.0
    share[asked, 1:] = m / each
    levels = np.zeros((len(score), 1))
    levels[asked] = level
    asked_share = drawn.means(share)
    moved = (drawn.means(pull) / asked_share[:, :1]) @ inverse * len(asked)
    base = drawn.means(levels) / asked_share[:, :1]
    base = base - (moved * (asked_share[:, 1:] / asked_share[:, :1])).sum(axis=1, keepdims=True)
    mean = np.full(score.shape[1], np.nan)
    mean[used] = level.mean() + effect
    draws = np.full((len(moved), score.shape[1]), np.nan)
    draws[:, used] = base + effect + moved
    return mean, draws


def parts(seen: NDArray[np.bool_]) -> list[set[int]]:
    """Models that were asked queries in common, directly or through other models, together."""
    together = (seen.astype(np.float32).T @ seen.astype(np.float32)) > 0
    left = set(np.flatnonzero(seen.any(axis=0)).tolist())
    found = []
    while left:
        part: set[int] = set()
        reach = {left.pop()}
        while reach:
            j = reach.pop()
            part.add(j)
            near = set(np.flatnonzero(together[j]).tolist()) & left
            left -= near
            reach |= near
        found.append(part)
    return found


def _ratio(top: FloatArray, bottom: NDArray[np.floating] | NDArray[np.integer]) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(bottom > 0, top / bottom, np.nan))


def estimate(value: float, draws: Sequence[float] | FloatArray, n: int) -> Estimate:
    """A figure with the percentile interval of its redraws; none below TOO_FEW labels."""
    known = np.asarray(draws, float)
    known = known[~np.isnan(known)]
    few = n < TOO_FEW or len(known) < 0.99 * np.size(draws)
    return Estimate(float(value), None if few else percentile_interval(known), int(n))


def share(hits: FloatArray, drawn: ClusterBootstrap, grouped: bool) -> Estimate | None:
    """Mean of 0/1 values (n,), NaN = not counted: by Wilson, or by redraws where queries come in
    groups. None without any."""
    seen = ~np.isnan(hits)
    n = int(seen.sum())
    if not n:
        return None
    total = float(np.nansum(hits))
    if not grouped:
        return Estimate(total / n, wilson_interval(total, n) if n >= TOO_FEW else None, n)
    both = drawn.means(np.stack([np.where(seen, hits, 0.0), seen.astype(float)], axis=1))
    return estimate(total / n, _ratio(both[:, 0], both[:, 1]), n)


def within(
    score: FloatArray, labels: NDArray[np.intp], k: int, drawn: ClusterBootstrap
) -> tuple[FloatArray, FloatArray, NDArray[np.intp]]:
    """Means of each column inside each of k clusters: (k, m), in each redraw (draws, k, m), and the
    number of scores (k, m). score: (n, m), NaN = unknown."""
    seen = ~np.isnan(score)
    s = np.where(seen, score, 0.0)
    m = score.shape[1]
    means = np.full((k, m), np.nan)
    draws = np.empty((len(drawn.means(np.ones((len(score), 1)))), k, m))
    counts: NDArray[np.intp] = np.zeros((k, m), np.intp)
    for c in range(k):
        inside = (labels == c)[:, None]
        held = seen & inside
        counts[c] = held.sum(axis=0)
        means[c] = _ratio((s * inside).sum(axis=0), counts[c])
        draws[:, c] = _ratio(drawn.means(s * inside), drawn.means(held.astype(float)))
    return means, draws, counts

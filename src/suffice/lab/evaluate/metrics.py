"""Figures of merit, each as its source defines it: arrays in, numbers out.

Costs and qualities are means over queries. A curve is (m, 2): cost, quality.
"""

from __future__ import annotations

from math import log2
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from suffice.lab.data.table import FloatArray
from suffice.lab.evaluate.frontier import best_single, cost_at, upper_hull
from suffice.lab.stats import ClusterBootstrap, weighted_mean

BINS = 10  # RouteLLM's protocol


class PairCurve(NamedTuple):
    """A pair of models by RouteLLM's protocol, at the edges of ten equal-count bins of a score.

    Ong et al. 2024, "RouteLLM", arXiv 2406.18665, section 4.
    """

    share: FloatArray
    """(m,) share of strong calls at each bin edge, m at most 11, most first."""
    quality: FloatArray
    """(m,) mean quality at each bin edge."""
    weak: float
    """Mean quality of the weak model alone."""
    strong: float
    """Mean quality of the strong model alone."""

    @property
    def apgr(self) -> float:
        """Average performance gap recovered; NaN if the two models are equally good.

        It is (AUC - AUC_weak) / (AUC_strong - AUC_weak), by trapezoids over the share of strong calls.
        """
        order = np.argsort(self.share, kind="stable")
        area = float(np.trapezoid(self.quality[order], self.share[order]))
        span = float(self.share.max() - self.share.min())
        gap = (self.strong - self.weak) * span
        return (area - self.weak * span) / gap if gap else float("nan")

    def cpt(self, target: float) -> float | None:
        """Call-performance threshold: least share of strong calls that recovers `target` of the gap.

        RouteLLM's code interpolates the raw accuracies, which need not be monotone and then give a
        share at which the target is not met. Here it is their running maximum.

        Returns:
            The share, linear between the points of the grid; None if no share reaches the target.
        """
        if self.strong == self.weak:
            return None
        order = np.argsort(self.share, kind="stable")
        share = self.share[order]
        recovered = (self.quality[order] - self.weak) / (self.strong - self.weak)
        recovered = np.maximum.accumulate(recovered)
        i = int(np.argmax(recovered >= target - 1e-12))
        if recovered[i] < target - 1e-12:
            return None
        if i == 0 or recovered[i] == recovered[i - 1]:
            return float(share[i])
        part = (target - recovered[i - 1]) / (recovered[i] - recovered[i - 1])
        return float(share[i - 1] + min(1.0, max(0.0, part)) * (share[i] - share[i - 1]))


def bin_edges(score: ArrayLike) -> FloatArray:
    """Edges of ten equal-count bins of a score (n,): (11,), or fewer if the score has ties."""
    return np.unique(np.quantile(np.asarray(score, float), np.linspace(0.0, 1.0, BINS + 1)))


def strong_calls(score: ArrayLike, edges: FloatArray) -> NDArray[np.bool_]:
    """(n_edges, n): whether each query goes to the strong model; the last edge is strict."""
    s = np.asarray(score, float)
    calls = s[None, :] >= edges[:, None]
    calls[-1] = s > edges[-1]
    return calls


def pair_curve(
    score: ArrayLike, strong: ArrayLike, weak: ArrayLike, weight: FloatArray | None = None
) -> PairCurve:
    """Compute the curve of a pair.

    Args:
        score: (n,); queries of a larger score go to the strong model first.
        strong: (n,) score of the strong model on each query.
        weak: (n,) score of the weak model on each query.
        weight: (n,) of the queries; None: all equal.

    Returns:
        The curve.
    """
    s, w = np.asarray(strong, float), np.asarray(weak, float)
    calls = _calls_at_edges(score)
    return PairCurve(
        weighted_mean(calls.T.astype(float), weight),
        weighted_mean(np.where(calls, s, w).T, weight),
        float(weighted_mean(w, weight)),
        float(weighted_mean(s, weight)),
    )


def _calls_at_edges(score: ArrayLike) -> NDArray[np.bool_]:
    """(m, n) which queries go to the strong model at each edge, most first."""
    calls = strong_calls(score, bin_edges(score))
    if len(calls) == 1:  # a constant score: all or none
        calls = np.vstack([np.ones_like(calls), calls & False])
    return calls


def apgr_draws(
    score: ArrayLike, strong: ArrayLike, weak: ArrayLike, bootstrap: ClusterBootstrap
) -> FloatArray:
    """(draws,) APGR in each resample with the same thresholds; NaN if the models are equally good."""
    s, w = np.asarray(strong, float), np.asarray(weak, float)
    calls = _calls_at_edges(score)
    share = bootstrap.means(calls.T.astype(float))
    quality = bootstrap.means(np.where(calls, s, w).T)
    ends = bootstrap.means(np.stack([w, s], axis=1))
    # Thresholds ascend, so shares descend: the trapezoids run from right to left.
    width = share[:, :-1] - share[:, 1:]
    total = ((quality[:, :-1] + quality[:, 1:]) / 2 * width).sum(axis=1)
    span = share[:, 0] - share[:, -1]
    gap = (ends[:, 1] - ends[:, 0]) * span
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(gap == 0, np.nan, (total - ends[:, 0] * span) / gap))


def qnc(points: ArrayLike, singles: ArrayLike) -> float | None:
    """Least relative cost at which the quality of the best single model is reached.

    Args:
        points: (m, 2) of the policy.
        singles: (k, 2) of the single models.

    Returns:
        1 if nothing is saved; None if the quality is never reached.
    """
    cost, quality = np.asarray(singles, float)[best_single(singles)]
    x = cost_at(points, singles, float(quality))
    if x is None:
        return None
    return x / float(cost) if cost > 0 else (1.0 if x <= 0 else None)


def aiq_paper(points: ArrayLike, c_min: float, c_max: float) -> float:
    """Average improvement in quality as RouterBench's paper defines it (section 3.3).

    It is the integral of the non-decreasing hull over [c_min, c_max], divided by its length. Right of
    its last point the hull is flat; left of its first point it is mixed with the null model (no cost,
    no quality).

    Returns:
        A mean quality.
    """
    hull = upper_hull(points)
    if hull[0, 0] > 0:
        hull = np.vstack([[0.0, 0.0], hull])
    x = np.unique(np.concatenate([[c_min, c_max], hull[:, 0].clip(c_min, c_max)]))
    y = np.interp(x, hull[:, 0], hull[:, 1])
    return float(np.trapezoid(y, x) / (c_max - c_min)) if c_max > c_min else float(y[-1])


def aiq_code(points: ArrayLike, c_max: float) -> float:
    """Average improvement in quality as RouterBench's code computes it (evaluation/AIQ.py).

    The integral runs from the hull's first point to `c_max`, the most expensive hull point of all
    routers compared, and is divided by `c_max`: the part left of the first point counts as zero.

    Returns:
        A mean quality.
    """
    hull = upper_hull(points)
    x = np.append(hull[:, 0], max(c_max, float(hull[-1, 0])))
    y = np.append(hull[:, 1], hull[-1, 1])
    return float(np.trapezoid(y, x) / x[-1]) if x[-1] > 0 else float(hull[-1, 1])


def routerarena(accuracy: float, usd_per_1000: float, beta: float = 0.1) -> float | None:
    """RouterArena's score (Lu et al. 2025, arXiv 2510.00202).

    S = (1 + beta) A C / (beta A + C) with C = log2(200 / c) / log2(200 / 0.0044).

    Args:
        accuracy: A.
        usd_per_1000: c, USD per 1,000 queries.
        beta: Weight of the cost.

    Returns:
        S, or None if c is not positive or so large that the formula has no meaning.
    """
    if usd_per_1000 <= 0:
        return None
    cost_score = log2(200.0 / usd_per_1000) / log2(200.0 / 0.0044)
    divisor = beta * accuracy + cost_score
    return (1 + beta) * accuracy * cost_score / divisor if divisor > 0 else None


def losses(
    score: ArrayLike, reference: ArrayLike, weight: FloatArray | None = None
) -> tuple[float, float]:
    """Compute the loss of quality against a reference model.

    Args:
        score: (n,) of the models that were chosen.
        reference: (n,) of the reference model.
        weight: (n,) of the queries; None: all equal.

    Returns:
        (gross, net): the mean loss on queries on which the reference is better, and that less the
        mean gain on the others.
    """
    gap = np.asarray(reference, float) - np.asarray(score, float)
    gross = weighted_mean(np.maximum(gap, 0.0), weight)
    return float(gross), float(weighted_mean(gap, weight))

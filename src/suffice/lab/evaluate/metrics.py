"""Figures of merit, each as its source defines it. Pure numpy: arrays in, numbers out.

Costs and qualities are means over queries unless said otherwise. A curve is (m, 2): cost, quality.
"""

from __future__ import annotations

from math import log2
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from suffice.lab.data.table import FloatArray
from suffice.lab.evaluate.frontier import best_single, cost_at, upper_hull
from suffice.lab.stats import ClusterBootstrap

BINS = 10  # RouteLLM's protocol


class Pair(NamedTuple):
    """RouteLLM's protocol for one score. share, quality: (11,) at the bin edges, most strong calls
    first; weak, strong: mean quality of each model alone."""

    share: FloatArray
    quality: FloatArray
    weak: float
    strong: float

    @property
    def apgr(self) -> float:
        return apgr(self)

    def cpt(self, p: float) -> float | None:
        return cpt(self, p)


def bin_edges(score: ArrayLike) -> FloatArray:
    """Edges of ten equal-count bins, (11,) or fewer where the score has ties: its quantiles."""
    return np.unique(np.quantile(np.asarray(score, float), np.linspace(0.0, 1.0, BINS + 1)))


def strong_at(score: ArrayLike, edges: FloatArray) -> NDArray[np.bool_]:
    """(n_edges, n): whether each query goes to the strong model; the last edge is strict."""
    s = np.asarray(score, float)
    chosen = s[None, :] >= edges[:, None]
    chosen[-1] = s > edges[-1]
    return chosen


def pair(score: ArrayLike, strong: ArrayLike, weak: ArrayLike) -> Pair:
    """score (n,): larger = rather strong. strong, weak (n,): each model's score on each query.

    RouteLLM (Ong et al. 2024, arXiv 2406.18665, section 4): thresholds at the edges of ten
    equal-count bins of the score.
    """
    s, w = np.asarray(strong, float), np.asarray(weak, float)
    chosen = _grid(score)
    return Pair(
        chosen.mean(axis=1),
        np.where(chosen, s, w).mean(axis=1),
        float(w.mean()),
        float(s.mean()),
    )


def _grid(score: ArrayLike) -> NDArray[np.bool_]:
    """(m, n) who goes to the strong model at each edge, most first."""
    chosen = strong_at(score, bin_edges(score))
    if len(chosen) == 1:  # a constant score: all or nothing
        chosen = np.vstack([np.ones_like(chosen), chosen & False])
    return chosen


def apgr(p: Pair) -> float:
    """(AUC - AUC_weak) / (AUC_strong - AUC_weak), trapezoids over the share of strong calls; NaN
    where the two models are equally good."""
    order = np.argsort(p.share, kind="stable")
    hull_area = float(np.trapezoid(p.quality[order], p.share[order]))
    span = float(p.share.max() - p.share.min())
    gap = (p.strong - p.weak) * span
    return (hull_area - p.weak * span) / gap if gap else float("nan")


def apgr_draws(
    score: ArrayLike, strong: ArrayLike, weak: ArrayLike, redraws: ClusterBootstrap
) -> FloatArray:
    """(draws,) APGR in each redraw, thresholds kept; NaN where the two models came out equal."""
    s, w = np.asarray(strong, float), np.asarray(weak, float)
    chosen = _grid(score)
    share = redraws.means(chosen.T.astype(float))
    quality = redraws.means(np.where(chosen, s, w).T)
    ends = redraws.means(np.stack([w, s], axis=1))
    # Thresholds ascend, so shares descend: the trapezoids run from right to left.
    width = share[:, :-1] - share[:, 1:]
    total = ((quality[:, :-1] + quality[:, 1:]) / 2 * width).sum(axis=1)
    span = share[:, 0] - share[:, -1]
    gap = (ends[:, 1] - ends[:, 0]) * span
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(gap == 0, np.nan, (total - ends[:, 0] * span) / gap))


def cpt(p: Pair, target: float) -> float | None:
    """Least share of strong calls whose performance gap recovered is at least `target`, linear
    between the grid's points; None where no share reaches it.

    RouteLLM's own code interpolates the raw accuracies, which need not be monotone and then give
    a share at which the target is not met; here it is their running maximum.
    """
    if p.strong == p.weak:
        return None
    order = np.argsort(p.share, kind="stable")
    share = p.share[order]
    pgr = np.maximum.accumulate((p.quality[order] - p.weak) / (p.strong - p.weak))
    at = int(np.argmax(pgr >= target - 1e-12))
    if pgr[at] < target - 1e-12:
        return None
    if at == 0 or pgr[at] == pgr[at - 1]:
        return float(share[at])
    part = (target - pgr[at - 1]) / (pgr[at] - pgr[at - 1])
    return float(share[at - 1] + min(1.0, max(0.0, part)) * (share[at] - share[at - 1]))


def qnc(points: ArrayLike, singles: ArrayLike) -> float | None:
    """Least relative cost at which the best single model's quality is reached: 1 = no saving; None
    where it never is."""
    cost, quality = np.asarray(singles, float)[best_single(singles)]
    x = cost_at(points, singles, float(quality))
    if x is None:
        return None
    return x / float(cost) if cost > 0 else (1.0 if x <= 0 else None)


def aiq_paper(points: ArrayLike, c_min: float, c_max: float) -> float:
    """Average improvement in quality as RouterBench's paper defines it (section 3.3): the integral
    of the non-decreasing hull over [c_min, c_max], divided by its length. Right of its last point
    the hull is flat; left of its first it is mixed with the null model (no cost, no quality)."""
    hull = upper_hull(points)
    if hull[0, 0] > 0:
        hull = np.vstack([[0.0, 0.0], hull])
    x = np.unique(np.concatenate([[c_min, c_max], hull[:, 0].clip(c_min, c_max)]))
    y = np.interp(x, hull[:, 0], hull[:, 1])
    return float(np.trapezoid(y, x) / (c_max - c_min)) if c_max > c_min else float(y[-1])


def aiq_code(points: ArrayLike, c_max: float) -> float:
    """The same as RouterBench's published code computes it (evaluation/AIQ.py): from the hull's own
    first point to c_max, the dearest hull point of all routers compared, divided by c_max, so that
    what lies left of the first point counts as zero."""
    hull = upper_hull(points)
    x = np.append(hull[:, 0], max(c_max, float(hull[-1, 0])))
    y = np.append(hull[:, 1], hull[-1, 1])
    return float(np.trapezoid(y, x) / x[-1]) if x[-1] > 0 else float(hull[-1, 1])


def routerarena(accuracy: float, usd_per_1000: float, beta: float = 0.1) -> float | None:
    """RouterArena's score (Lu et al. 2025, arXiv 2510.00202): S = (1 + beta) A C / (beta A + C),
    C = log2(200 / c) / log2(200 / 0.0044), c in USD per 1,000 queries. None where c is not positive
    or so large that the formula has no meaning (beta A + C <= 0)."""
    if usd_per_1000 <= 0:
        return None
    cheap = log2(200.0 / usd_per_1000) / log2(200.0 / 0.0044)
    bottom = beta * accuracy + cheap
    return (1 + beta) * accuracy * cheap / bottom if bottom > 0 else None


def losses(got: ArrayLike, reference: ArrayLike) -> tuple[float, float]:
    """(gross, net) loss against a reference model, scores (n,): gross = mean of what was lost where
    the reference was better (right/wrong scores: cheap wrong and reference right), net = less what
    was won elsewhere."""
    gap = np.asarray(reference, float) - np.asarray(got, float)
    return float(np.maximum(gap, 0.0).mean()), float(gap.mean())

"""Figures of merit, each as its source defines it. Pure numpy: arrays in, numbers out.

Costs and qualities are means over queries unless said otherwise. A curve is (m, 2): cost, quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from suffice.lab.data.table import FloatArray

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
    area = float(np.trapezoid(p.quality[order], p.share[order]))
    span = float(p.share.max() - p.share.min())
    gap = (p.strong - p.weak) * span
    return (area - p.weak * span) / gap if gap else float("nan")


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


def upper_hull(points: ArrayLike) -> FloatArray:
    """Upper concave hull of (m, 2) points, cost ascending, rising only: what random mixing between
    the points can reach, and no dearer point that is no better."""
    p = np.asarray(points, float)
    p = p[np.lexsort((-p[:, 1], p[:, 0]))]
    hull: list[tuple[float, float]] = []
    for x, y in p.tolist():
        if hull and y <= hull[-1][1]:
            continue
        while len(hull) >= 2:
            (x1, y1), (x2, y2) = hull[-2], hull[-1]
            if (y2 - y1) * (x - x1) <= (y - y1) * (x2 - x1):
                hull.pop()
            else:
                break
        if hull and hull[-1][0] == x:
            hull.pop()
        hull.append((x, y))
    return np.array(hull)


def height(hull: FloatArray, cost: ArrayLike) -> FloatArray:
    """Quality of a hull at given costs: linear inside, flat beyond its dearest point, minus
    infinity below its cheapest."""
    c = np.asarray(cost, float)
    y = np.interp(c, hull[:, 0], hull[:, 1])
    return np.where(c < hull[0, 0] - 1e-15, -np.inf, y)


def frontier(points: ArrayLike, singles: ArrayLike) -> FloatArray:
    """Upper hull of a policy's points and the cheapest single model: whoever routes may also send
    everything there. singles: (k, 2)."""
    s = np.asarray(singles, float)
    cheapest = s[np.lexsort((-s[:, 1], s[:, 0]))[0]]
    return upper_hull(np.vstack([np.asarray(points, float).reshape(-1, 2), cheapest]))


def area(points: ArrayLike, singles: ArrayLike) -> float:
    """Mean height of the points' `frontier` over [c_min, c_max] of the single models.

    Beyond the points' dearest the hull is flat: nobody must spend. singles: (k, 2).
    """
    s = np.asarray(singles, float)
    low, high = float(s[:, 0].min()), float(s[:, 0].max())
    hull = frontier(points, s)
    if high <= low:
        return float(hull[-1, 1])
    # Points cheaper than any single model (cost predicted per query) cut in at c_min.
    inside = hull[(hull[:, 0] > low) & (hull[:, 0] < high)]
    x = np.concatenate([[low], inside[:, 0], [high]])
    return float(np.trapezoid(height(hull, x), x) / (high - low))


def zero_router(singles: ArrayLike) -> FloatArray:
    """Hull of the single models: the best that random mixing of them does (RouterBench, Hu et al.
    2024, arXiv 2403.12031, section 3)."""
    return upper_hull(singles)


def cost_at(points: ArrayLike, singles: ArrayLike, quality: float) -> float | None:
    """Least cost at which the `frontier` reaches a quality; None where it never does."""
    hull = frontier(points, singles)
    reached = hull[:, 1] >= quality - 1e-12
    if not reached.any():
        return None
    at = int(np.argmax(reached))
    if at == 0:
        return float(hull[0, 0])
    (x1, y1), (x2, y2) = hull[at - 1], hull[at]
    return float(x1 + min(1.0, max(0.0, (quality - y1) / (y2 - y1))) * (x2 - x1))


def quality_at(points: ArrayLike, singles: ArrayLike, cost: float) -> float | None:
    """Quality of the `frontier` at a cost; None below its cheapest point."""
    y = float(height(frontier(points, singles), cost))
    return None if y == -np.inf else y


def best_single(singles: ArrayLike) -> int:
    """The single model of highest quality, the cheaper one of equals. singles: (k, 2)."""
    s = np.asarray(singles, float)
    return int(np.lexsort((s[:, 0], -s[:, 1]))[0])


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


class ClusterBootstrap:
    """A bootstrap that redraws whole clusters, at a cost that does not grow with the table.

    clusters: (n,) number of each query's cluster. Up to `buckets` clusters each is redrawn itself;
    beyond, clusters are first put together at random into that many buckets, which estimates the
    same variance (grouped resampling).
    """

    def __init__(
        self, clusters: NDArray[np.intp], draws: int, seed: int, buckets: int = 2000
    ) -> None:
        rng = np.random.default_rng(seed)
        which = np.unique(clusters, return_inverse=True)[1]
        count = int(which.max()) + 1
        self.clusters = count
        if count > buckets:
            which = rng.permutation(np.arange(count) % buckets)[which]
            count = buckets
        self._order = np.argsort(which, kind="stable")
        self._starts = np.searchsorted(which[self._order], np.arange(count))
        self._weights = rng.multinomial(count, np.full(count, 1.0 / count), size=draws).astype(
            float
        )
        self._total = self._weights @ self._sums(np.ones((len(which), 1)))

    def _sums(self, values: FloatArray) -> FloatArray:
        return np.asarray(np.add.reduceat(values[self._order], self._starts, axis=0))

    def means(self, values: FloatArray) -> FloatArray:
        """values (n, t) -> means over queries in each redraw, (draws, t)."""
        return np.asarray(self._weights @ self._sums(values) / self._total)


def basic(
    values: Sequence[float] | FloatArray, estimate: float, level: float = 0.95
) -> tuple[float, float] | None:
    """Basic bootstrap interval, the percentiles reflected at the estimate (Davison and Hinkley
    1997, section 5.2); None where more than one value in a hundred is no number.

    A hull picked anew in each redraw profits from chance as the estimate did; reflecting takes that
    off. On tables of this kind it covers a coin's true gain of 0 in 88 to 100 % of runs, where the
    plain percentiles, even moved onto the estimate, cover it in 70 to 80 %.
    """
    v = np.asarray(values, float)
    known = v[~np.isnan(v)]
    if len(known) < 2 or len(known) < 0.99 * len(v) or not np.isfinite(estimate):
        return None
    found = interval(known, level)
    assert found is not None
    return 2 * estimate - found[1], 2 * estimate - found[0]


def interval(
    values: Sequence[float] | FloatArray, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of bootstrap values; None where any is not a number."""
    v = np.asarray(values, float)
    if not len(v) or np.isnan(v).any():
        return None
    tail = (1.0 - level) / 2
    low, high = np.quantile(v, [tail, 1.0 - tail])
    return float(low), float(high)


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a share (Wilson 1927); (0, 1) without trials."""
    if n <= 0:
        return 0.0, 1.0
    p = successes / n
    middle = p + z * z / (2 * n)
    spread = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    bottom = 1 + z * z / n
    return max(0.0, (middle - spread) / bottom), min(1.0, (middle + spread) / bottom)

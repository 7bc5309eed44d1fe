"""From predictions to choices, one for each trade-off between quality and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from suffice.lab.data.table import FloatArray
from suffice.lab.stats import ClusterBootstrap, basic_interval

STEPS = 101  # trade-offs on a curve, at most
_ROWS = 400  # queries that the prices of quality are read from


def sweep_thresholds(
    score: FloatArray, strong: int, weak: int, like: FloatArray | None = None
) -> NDArray[np.intp]:
    """(t, n) of a pair: the strong model where the score is at least a threshold, thresholds at
    STEPS quantiles of `like` (else of the score itself), most strong calls first, none last."""
    s = np.asarray(score, float)
    base = s if like is None else like
    edges = np.unique(np.quantile(base, np.linspace(0.0, 1.0, STEPS)))
    edges = np.append(edges, np.inf)
    return np.where(s[None, :] >= edges[:, None], strong, weak).astype(np.intp)


def sweep_tradeoffs(quality: FloatArray, cost: FloatArray) -> NDArray[np.intp]:
    """(t, n) the model of largest quality - lambda * cost, for lambdas from nearly 0 (the best
    predicted, the cheapest of equals) to where only cost counts."""
    return _best(quality, cost, _lambdas(quality, cost))


def choices_at(
    quality: FloatArray, cost: FloatArray, like: tuple[FloatArray, FloatArray], step: int
) -> NDArray[np.intp]:
    """(n,) the choice at one of the trade-offs that `like` = (quality, cost) was swept by."""
    return np.asarray(_best(quality, cost, _lambdas(*like)[step : step + 1])[0])


def best_predicted(quality: FloatArray, cost: FloatArray) -> NDArray[np.intp]:
    """(n,) the cheapest of the models predicted to be best."""
    return np.asarray(_best(quality, cost, np.zeros(1))[0])


def _best(quality: FloatArray, cost: FloatArray, prices: FloatArray) -> NDArray[np.intp]:
    """(t, n) for t prices of quality."""
    # argmax takes the first of equals: the cheapest on average comes first.
    order = np.argsort(cost.mean(axis=0), kind="stable")
    q, c = np.ascontiguousarray(quality[:, order]), np.ascontiguousarray(cost[:, order])
    return np.stack([order[np.argmax(q - price * c, axis=1)] for price in prices])


def _lambdas(quality: FloatArray, cost: FloatArray) -> FloatArray:
    """Where choices change: for two models and a query, the quality that the dearer adds for each
    unit of cost it adds. Their quantiles over queries and pairs of models space a curve well
    whatever the scales."""
    n = len(quality)
    at = np.linspace(0, n - 1, min(n, _ROWS)).astype(int)
    q, c = quality[at], cost[at]
    found = []
    for j in range(q.shape[1]):
        more, dearer = q - q[:, [j]], c - c[:, [j]]
        up = (more > 0) & (dearer > 0)
        found.append(more[up] / dearer[up])
    prices = np.unique(np.concatenate(found)) if found else np.empty(0)
    prices = prices[np.isfinite(prices) & (prices > 0)]
    if not len(prices):
        return np.array([1e-12, 1e12])
    if len(prices) < STEPS - 1:
        inner = np.sqrt(prices[:-1] * prices[1:])
    else:
        inner = np.quantile(prices, np.linspace(0.0, 1.0, STEPS)[1:-1])
    return np.concatenate([[prices[0] * 1e-3], inner, [prices[-1] * 1e3]])


def random_mixtures(coin: FloatArray, members: Sequence[int]) -> NDArray[np.intp]:
    """(t, n) random mixing along a hull of single models (columns, cheapest first): between two
    neighbours, each query takes the dearer with the mix's probability. coin: (n,) uniform."""
    if len(members) == 1:
        return np.full((1, len(coin)), members[0], np.intp)
    out = []
    for x in np.linspace(0.0, len(members) - 1, STEPS):
        low = min(int(x), len(members) - 2)
        out.append(np.where(coin < x - low, members[low + 1], members[low]))
    return np.stack(out).astype(np.intp)


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


def quality_on_hull(hull: FloatArray, cost: ArrayLike) -> FloatArray:
    """Quality of a hull at given costs: linear inside, flat beyond its dearest point, minus
    infinity below its cheapest."""
    c = np.asarray(cost, float)
    y = np.interp(c, hull[:, 0], hull[:, 1])
    return np.where(c < hull[0, 0] - 1e-15, -np.inf, y)


def policy_hull(points: ArrayLike, singles: ArrayLike) -> FloatArray:
    """Upper hull of a policy's points and the cheapest single model: whoever routes may also send
    everything there. singles: (k, 2)."""
    s = np.asarray(singles, float)
    cheapest = s[np.lexsort((-s[:, 1], s[:, 0]))[0]]
    return upper_hull(np.vstack([np.asarray(points, float).reshape(-1, 2), cheapest]))


def hull_area(points: ArrayLike, singles: ArrayLike) -> float:
    """Mean height of the points' `frontier` over [c_min, c_max] of the single models.

    Beyond the points' dearest the hull is flat: nobody must spend. singles: (k, 2).
    """
    s = np.asarray(singles, float)
    low, high = float(s[:, 0].min()), float(s[:, 0].max())
    hull = policy_hull(points, s)
    if high <= low:
        return float(hull[-1, 1])
    # Points cheaper than any single model (cost predicted per query) cut in at c_min.
    inside = hull[(hull[:, 0] > low) & (hull[:, 0] < high)]
    x = np.concatenate([[low], inside[:, 0], [high]])
    return float(np.trapezoid(quality_on_hull(hull, x), x) / (high - low))


def zero_router_hull(singles: ArrayLike) -> FloatArray:
    """Hull of the single models: the best that random mixing of them does (RouterBench, Hu et al.
    2024, arXiv 2403.12031, section 3)."""
    return upper_hull(singles)


def cost_at(points: ArrayLike, singles: ArrayLike, quality: float) -> float | None:
    """Least cost at which the `frontier` reaches a quality; None where it never does."""
    hull = policy_hull(points, singles)
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
    y = float(quality_on_hull(policy_hull(points, singles), cost))
    return None if y == -np.inf else y


def best_single(singles: ArrayLike) -> int:
    """The single model of highest quality, the cheaper one of equals. singles: (k, 2)."""
    s = np.asarray(singles, float)
    return int(np.lexsort((s[:, 0], -s[:, 1]))[0])


class Gain(NamedTuple):
    """gain: area over the zero router's; draws: the same in each redraw of the queries."""

    gain: float
    draws: FloatArray

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        return basic_interval(self.draws, self.gain, level)

    def lower(self, confidence: float) -> float:
        """One-sided lower bound; minus infinity where there is none."""
        found = basic_interval(self.draws, self.gain, 2 * confidence - 1)
        return -np.inf if found is None else found[0]


def area_gain(
    quality: FloatArray,
    cost: FloatArray,
    score: FloatArray,
    paid: FloatArray,
    redraws: ClusterBootstrap | None,
) -> Gain:
    """quality, cost: (n, k) as predicted; score, paid: (n, k) as they were. The hulls of the policy
    and of the single models are picked anew in each redraw; no draws without redraws."""
    at, k = np.arange(len(score)), score.shape[1]
    choices = sweep_tradeoffs(quality, cost)
    costs, scores = paid[at, choices].T, score[at, choices].T  # (n, t)
    singles = np.stack([paid.mean(axis=0), score.mean(axis=0)], axis=1)
    points = np.stack([costs.mean(axis=0), scores.mean(axis=0)], axis=1)
    gain = hull_area(points, singles) - hull_area(singles, singles)
    if redraws is None:
        return Gain(gain, np.empty(0))
    means = redraws.means(np.concatenate([costs, scores, paid, score], axis=1))
    m = costs.shape[1]
    draws = np.empty(len(means))
    for i, row in enumerate(means):
        drawn = np.stack([row[:m], row[m : 2 * m]], axis=1)
        single = np.stack([row[2 * m : 2 * m + k], row[2 * m + k :]], axis=1)
        draws[i] = hull_area(drawn, single) - hull_area(single, single)
    return Gain(gain, draws)

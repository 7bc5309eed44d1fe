"""From predictions to choices per trade-off, and from choices to cost-quality hulls and gains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from suffice.lab.data.table import FloatArray
from suffice.lab.stats import ClusterBootstrap, basic_interval, weighted_mean

STEPS = 101  # trade-offs on a curve, at most
_LAMBDA_ROWS = 400  # queries from which the trade-offs are computed


# ── choices ──────────────────────────────────────────────────────────────────────────────────────


def sweep_thresholds(
    score: FloatArray, strong: int, weak: int, reference: FloatArray | None = None
) -> NDArray[np.intp]:
    """Choose between two models by a threshold on a score.

    Args:
        score: (n,); queries at or above a threshold go to the strong model.
        strong: Its column.
        weak: Column of the other model.
        reference: Scores whose `STEPS` quantiles are the thresholds; None: `score`.

    Returns:
        (t, n) chosen columns, most strong calls first, none last.
    """
    base = score if reference is None else reference
    thresholds = np.unique(np.quantile(base, np.linspace(0.0, 1.0, STEPS)))
    thresholds = np.append(thresholds, np.inf)
    return np.where(score[None, :] >= thresholds[:, None], strong, weak).astype(np.intp)


def sweep_tradeoffs(quality: FloatArray, cost: FloatArray) -> NDArray[np.intp]:
    """Choose the model of largest quality - lambda * cost for a sweep of lambda.

    Args:
        quality: (n, k) predicted.
        cost: (n, k) predicted.

    Returns:
        (t, n) chosen columns, from lambda near 0 (the best predicted model, the cheapest of equals)
        to lambda so large that only cost counts.
    """
    return _argmax_utility(quality, cost, _lambdas(quality, cost))


def choices_at(
    quality: FloatArray, cost: FloatArray, swept: tuple[FloatArray, FloatArray], step: int
) -> NDArray[np.intp]:
    """(n,) the choices at one trade-off of the sweep over `swept` = (quality, cost)."""
    return np.asarray(_argmax_utility(quality, cost, _lambdas(*swept)[step : step + 1])[0])


def best_predicted(quality: FloatArray, cost: FloatArray) -> NDArray[np.intp]:
    """(n,) the cheapest of the models predicted to be best."""
    return np.asarray(_argmax_utility(quality, cost, np.zeros(1))[0])


def _argmax_utility(quality: FloatArray, cost: FloatArray, lambdas: FloatArray) -> NDArray[np.intp]:
    """(t, n) for t lambdas."""
    # argmax returns the first of equals: the model that is cheapest on average comes first.
    order = np.argsort(cost.mean(axis=0), kind="stable")
    q, c = np.ascontiguousarray(quality[:, order]), np.ascontiguousarray(cost[:, order])
    return np.stack([order[np.argmax(q - lam * c, axis=1)] for lam in lambdas])


def _lambdas(quality: FloatArray, cost: FloatArray) -> FloatArray:
    """Compute the values of lambda at which choices change.

    For two models and a query that is the quality that the costlier model adds per unit of cost that
    it adds. The quantiles over queries and pairs of models space a curve well at any scale.

    Returns:
        (t,) ascending.
    """
    n = len(quality)
    rows = np.linspace(0, n - 1, min(n, _LAMBDA_ROWS)).astype(int)
    q, c = quality[rows], cost[rows]
    ratios = []
    for j in range(q.shape[1]):
        quality_gain, extra_cost = q - q[:, [j]], c - c[:, [j]]
        traded = (quality_gain > 0) & (extra_cost > 0)
        ratios.append(quality_gain[traded] / extra_cost[traded])
    lambdas = np.unique(np.concatenate(ratios)) if ratios else np.empty(0)
    lambdas = lambdas[np.isfinite(lambdas) & (lambdas > 0)]
    if not len(lambdas):
        return np.array([1e-12, 1e12])
    if len(lambdas) < STEPS - 1:
        inner = np.sqrt(lambdas[:-1] * lambdas[1:])
    else:
        inner = np.quantile(lambdas, np.linspace(0.0, 1.0, STEPS)[1:-1])
    return np.concatenate([[lambdas[0] * 1e-3], inner, [lambdas[-1] * 1e3]])


def random_mixtures(uniform: FloatArray, members: Sequence[int]) -> NDArray[np.intp]:
    """Mix single models at random along their hull.

    Args:
        uniform: (n,) random numbers in [0, 1).
        members: Columns of the models on the hull, cheapest first.

    Returns:
        (t, n) chosen columns: between two neighbours on the hull, the costlier one with the
        probability of the mixture.
    """
    if len(members) == 1:
        return np.full((1, len(uniform)), members[0], np.intp)
    choices = []
    for position in np.linspace(0.0, len(members) - 1, STEPS):
        low = min(int(position), len(members) - 2)
        choices.append(np.where(uniform < position - low, members[low + 1], members[low]))
    return np.stack(choices).astype(np.intp)


# ── hulls: points are (m, 2), cost and quality ───────────────────────────────────────────────────


def upper_hull(points: ArrayLike) -> FloatArray:
    """Upper concave hull of (m, 2) points: what random mixing of the points can reach.

    Returns:
        (h, 2), cost and quality ascending, without costlier points that are no better.
    """
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
    """Quality of a hull at given costs.

    Returns:
        Linear between its points, constant beyond the most expensive one, minus infinity below the
        cheapest one.
    """
    c = np.asarray(cost, float)
    y = np.interp(c, hull[:, 0], hull[:, 1])
    return np.where(c < hull[0, 0] - 1e-15, -np.inf, y)


def policy_hull(points: ArrayLike, singles: ArrayLike) -> FloatArray:
    """Upper hull of a policy's points and the cheapest single model.

    A router may always send everything to the cheapest model.

    Args:
        points: (m, 2) of the policy.
        singles: (k, 2) of the single models.

    Returns:
        (h, 2).
    """
    s = np.asarray(singles, float)
    cheapest = s[np.lexsort((-s[:, 1], s[:, 0]))[0]]
    return upper_hull(np.vstack([np.asarray(points, float).reshape(-1, 2), cheapest]))


def hull_area(points: ArrayLike, singles: ArrayLike) -> float:
    """Mean height of a policy's hull over the cost range of the single models.

    Beyond the policy's most expensive point the hull is flat: spending more is optional.

    Args:
        points: (m, 2) of the policy.
        singles: (k, 2) of the single models.

    Returns:
        A mean quality.
    """
    s = np.asarray(singles, float)
    low, high = float(s[:, 0].min()), float(s[:, 0].max())
    hull = policy_hull(points, s)
    if high <= low:
        return float(hull[-1, 1])
    # Points cheaper than any single model (cost predicted per query) count from the low end on.
    inside = hull[(hull[:, 0] > low) & (hull[:, 0] < high)]
    x = np.concatenate([[low], inside[:, 0], [high]])
    return float(np.trapezoid(quality_on_hull(hull, x), x) / (high - low))


def zero_router_hull(singles: ArrayLike) -> FloatArray:
    """Hull of the single models: the best that mixing them at random can do."""
    # RouterBench, Hu et al. 2024, arXiv 2403.12031, section 3.
    return upper_hull(singles)


def cost_at(points: ArrayLike, singles: ArrayLike, quality: float) -> float | None:
    """Least cost at which the policy's hull reaches a quality; None if it never does."""
    hull = policy_hull(points, singles)
    reached = hull[:, 1] >= quality - 1e-12
    if not reached.any():
        return None
    i = int(np.argmax(reached))
    if i == 0:
        return float(hull[0, 0])
    (x1, y1), (x2, y2) = hull[i - 1], hull[i]
    return float(x1 + min(1.0, max(0.0, (quality - y1) / (y2 - y1))) * (x2 - x1))


def quality_at(points: ArrayLike, singles: ArrayLike, cost: float) -> float | None:
    """Quality of the policy's hull at a cost; None below its cheapest point."""
    y = float(quality_on_hull(policy_hull(points, singles), cost))
    return None if y == -np.inf else y


def best_single(singles: ArrayLike) -> int:
    """Row of the single model (k, 2) of highest quality, the cheaper one of equals."""
    s = np.asarray(singles, float)
    return int(np.lexsort((s[:, 0], -s[:, 1]))[0])


# ── gain over the zero router ────────────────────────────────────────────────────────────────────


class Gain(NamedTuple):
    """Area of a policy above that of the zero router."""

    gain: float
    draws: FloatArray
    """(draws,) the same in each bootstrap resample; empty without a bootstrap."""

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Basic bootstrap interval, None if there is none."""
        return basic_interval(self.draws, self.gain, level)

    def lower_bound(self, confidence: float) -> float:
        """One-sided lower bound; minus infinity if there is none."""
        interval = basic_interval(self.draws, self.gain, 2 * confidence - 1)
        return -np.inf if interval is None else interval[0]


def area_gain(
    predicted: tuple[FloatArray, FloatArray],
    score: FloatArray,
    cost: FloatArray,
    bootstrap: ClusterBootstrap | None,
    weight: FloatArray | None = None,
) -> Gain:
    """Compute the gain of predictions over the zero router.

    The hulls of the policy and of the single models are computed again in each resample.

    Args:
        predicted: (quality, cost), each (n, k).
        score: (n, k) observed.
        cost: (n, k) observed.
        bootstrap: Of the n queries; None: no interval.
        weight: (n,) of the queries; None: all equal.

    Returns:
        The gain and its bootstrap distribution.
    """
    rows, k = np.arange(len(score)), score.shape[1]
    choices = sweep_tradeoffs(*predicted)
    t = len(choices)
    values = np.concatenate([cost[rows, choices].T, score[rows, choices].T, cost, score], axis=1)

    def gain_of(means: FloatArray) -> float:
        points = np.stack([means[:t], means[t : 2 * t]], axis=1)
        singles = np.stack([means[2 * t : 2 * t + k], means[2 * t + k :]], axis=1)
        return hull_area(points, singles) - hull_area(singles, singles)

    gain = gain_of(weighted_mean(values, weight))
    if bootstrap is None:
        return Gain(gain, np.empty(0))
    return Gain(gain, np.array([gain_of(means) for means in bootstrap.means(values)]))

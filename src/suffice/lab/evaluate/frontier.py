"""From predictions to choices, one for each trade-off between quality and cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.table import FloatArray

STEPS = 101  # trade-offs on a curve, at most
_ROWS = 400  # queries that the prices of quality are read from


def by_threshold(
    score: FloatArray, strong: int, weak: int, like: FloatArray | None = None
) -> NDArray[np.intp]:
    """(t, n) of a pair: the strong model where the score is at least a threshold, thresholds at
    STEPS quantiles of `like` (else of the score itself), most strong calls first, none last."""
    s = np.asarray(score, float)
    base = s if like is None else like
    edges = np.unique(np.quantile(base, np.linspace(0.0, 1.0, STEPS)))
    edges = np.append(edges, np.inf)
    return np.where(s[None, :] >= edges[:, None], strong, weak).astype(np.intp)


def by_price_of_quality(quality: FloatArray, cost: FloatArray) -> NDArray[np.intp]:
    """(t, n) the model of largest quality - lambda * cost, for lambdas from nearly 0 (the best
    predicted, the cheapest of equals) to where only cost counts."""
    return _best(quality, cost, _lambdas(quality, cost))


def wished(
    quality: FloatArray, cost: FloatArray, like: tuple[FloatArray, FloatArray], step: int
) -> NDArray[np.intp]:
    """(n,) the choice at one of the trade-offs that `like` = (quality, cost) was swept by."""
    return np.asarray(_best(quality, cost, _lambdas(*like)[step : step + 1])[0])


def cheapest(quality: FloatArray, cost: FloatArray) -> NDArray[np.intp]:
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


def along_hull(coin: FloatArray, members: Sequence[int]) -> NDArray[np.intp]:
    """(t, n) random mixing along a hull of single models (columns, cheapest first): between two
    neighbours, each query takes the dearer with the mix's probability. coin: (n,) uniform."""
    if len(members) == 1:
        return np.full((1, len(coin)), members[0], np.intp)
    out = []
    for x in np.linspace(0.0, len(members) - 1, STEPS):
        low = min(int(x), len(members) - 2)
        out.append(np.where(coin < x - low, members[low + 1], members[low]))
    return np.stack(out).astype(np.intp)

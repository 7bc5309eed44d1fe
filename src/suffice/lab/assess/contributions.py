"""What each compared model adds, and what would be lost without it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from suffice.lab.assess.adjusted_means import TOO_FEW, estimate
from suffice.lab.assess.comparison import Compared, hull_of, reach, trade_offs
from suffice.lab.assess.pools import by_price, gain, measurable
from suffice.lab.assess.results import Estimate
from suffice.lab.data.table import FloatArray
from suffice.lab.stats import basic_interval


def each_model(c: Compared, pick: Sequence[int]) -> dict[str, dict[str, object]]:
    """For each compared model the fields of its ModelLine, beside the pool of columns `pick`."""
    k = len(c.models)
    hull = hull_of(c, c.level, c.price)
    times = np.zeros(k)
    if c.prices is not None:
        for level, price in zip(c.levels, c.prices, strict=True):
            times[list(hull_of(c, level, price))] += 1
    mixed, routed = _lost_without(c)
    oracle = _oracle_lost(c)
    out: dict[str, dict[str, object]] = {}
    for j, name in enumerate(c.models):
        inside = j in pick
        rest = tuple(x for x in pick if x != j)
        adds = None
        if inside and rest:
            adds = gain(c, pick, rest)
        elif not inside and (c.expected is not None or c.price is not None):
            adds = gain(c, (*pick, j), pick)
        out[name] = {
            "on_hull": j in hull if c.price is not None else None,
            "hull_share": float(times[j] / len(c.levels)) if c.price is not None else None,
            "worse_than": () if c.price is None or j in hull else _worse_than(c, j, hull),
            "lost_without": mixed[j],
            "routed_lost_without": routed[j],
            "oracle_lost_without": oracle[j],
            "adds": adds,
            "verdict": "in the pool" if inside else measurable(adds),
        }
    return out


def _worse_than(c: Compared, j: int, hull: set[int]) -> tuple[str, ...]:
    """The hull's model that is as good for no more, or else the two whose mix is."""
    assert c.price is not None
    order = by_price(c, hull)
    for h in order:
        if c.level[h] >= c.level[j] and c.price[h] <= c.price[j]:
            return (c.models[h],)
    for a, b in pairwise(order):
        if c.price[a] <= c.price[j] <= c.price[b]:
            return (c.models[a], c.models[b])
    return ()


def _lost_without(c: Compared) -> tuple[list[Estimate | None], list[Estimate | None]]:
    """What the hull of all models loses without each: mixed, and routed."""
    n, k = c.score.shape
    nothing: list[Estimate | None] = [None] * k
    if k < 2:
        return nothing, nothing
    if c.price is None or c.prices is None:
        return nothing, _routed_lost(c)
    low, high = float(c.price.min()), float(c.price.max())

    def lost(level: FloatArray, price: FloatArray) -> FloatArray:
        all_ = reach(price, level, low, high)
        out = np.zeros(k)
        for j in hull_of(c, level, price):  # without any other the hull stays as it is
            kept = np.arange(k) != j
            out[j] = all_ - reach(price[kept], level[kept], low, high)
        return out

    value = lost(c.level, c.price)
    draws = np.array([lost(a, b) for a, b in zip(c.levels, c.prices, strict=True)])
    mixed: list[Estimate | None] = [estimate(value[j], draws[:, j], n) for j in range(k)]
    return mixed, _routed_lost(c)


def _routed_lost(c: Compared) -> list[Estimate | None]:
    """The same where a cross-fitted router serves: at each trade-off the queries of the model that
    is taken away go to their second choice."""
    n, k = c.score.shape
    if c.expected is None:
        return [None] * k
    price = np.zeros(k) if c.price is None else c.price
    cost = np.zeros((n, k)) if c.cost is None else c.cost
    lambdas = np.zeros(1) if c.price is None else trade_offs(c.expected, price)
    t, rows = len(lambdas), np.arange(n)
    points = np.empty((2, t))  # quality, cost
    without = np.empty((2, t, k))
    drawn_points = np.empty((2, t, len(c.levels)))
    drawn_without = np.empty((2, t, len(c.levels), k))
    for i, x in enumerate(lambdas):
        merit = c.expected - x * price
        first = np.argmax(merit, axis=1)
        merit[rows, first] = -np.inf
        second = np.argmax(merit, axis=1)
        for what, values in enumerate((c.score, cost)):
            got = values[rows, first]
            moved = np.zeros((n, k))
            moved[rows, first] = values[rows, second] - got
            points[what, i] = got.mean()
            without[what, i] = got.mean() + moved.mean(axis=0)
            drawn_points[what, i] = c.drawn.means(got[:, None])[:, 0]
            drawn_without[what, i] = drawn_points[what, i][:, None] + c.drawn.means(moved)

    def value(
        quality: FloatArray,
        spent: FloatArray,
        kept: FloatArray,
        level: FloatArray,
        money: FloatArray,
    ) -> float:
        if c.price is None:
            return float(quality[0])
        return reach(
            np.concatenate([spent, money[kept]]), np.concatenate([quality, level[kept]]),
            float(c.price.min()), float(c.price.max()),
        )  # fmt: skip

    everyone = np.ones(k, bool)
    d = range(len(c.levels))
    prices = np.zeros_like(c.levels) if c.prices is None else c.prices
    all_ = value(points[0], points[1], everyone, c.level, price)
    all_draws = np.array(
        [value(drawn_points[0][:, b], drawn_points[1][:, b], everyone, c.levels[b], prices[b])
         for b in d]
    )  # fmt: skip
    out: list[Estimate | None] = []
    for j in range(k):
        kept = np.arange(k) != j
        one = value(without[0][:, j], without[1][:, j], kept, c.level, price)
        draws = np.array(
            [value(drawn_without[0][:, b, j], drawn_without[1][:, b, j], kept, c.levels[b],
                   prices[b]) for b in d]
        )  # fmt: skip
        lost = all_ - one
        ci = basic_interval(all_draws - draws, lost) if n >= TOO_FEW else None
        out.append(Estimate(lost, ci, n))
    return out


def _oracle_lost(c: Compared) -> list[Estimate | None]:
    """What the mean best score loses without each model. It takes luck for skill: a model that
    guesses right where all others fail counts as if that could be known beforehand."""
    n, k = c.score.shape
    if k < 2:
        return [None] * k
    order = np.sort(c.score, axis=1)
    first = np.argmax(c.score, axis=1)
    moved = np.zeros((n, k))
    moved[np.arange(n), first] = order[:, -1] - order[:, -2]
    draws = c.drawn.means(moved)
    return [estimate(float(moved[:, j].mean()), draws[:, j], n) for j in range(k)]

"""The labels that models can be compared on, and what a pool of some of them would achieve.

A pool is worth the area under the cost-quality hull that it achieves, over the costs from the
cheapest to the dearest compared model. Below a pool's own cheapest model part of the queries goes
unanswered, which costs nothing and scores 0; so pools with and without a cheap model compare.
Points of the hull: each model alone (between them queries are mixed at random), and what a router
makes of the pool, its predictions cross-fitted so that no query is judged by a fit that saw it.
Without costs a pool is worth the mean score of sending each query to the model predicted best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.splits import connected_groups, group_kfold
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.evaluate.frontier import hull_area, upper_hull
from suffice.lab.predictors.base import Batch
from suffice.lab.predictors.baselines import shrunken_means
from suffice.lab.predictors.linear import MIN_MULTI_MODEL_LABELS
from suffice.lab.predictors.registry import make_predictor
from suffice.lab.stats import ClusterBootstrap

FOLDS = 5
POOL_DRAWS = 200
LEAST = 20  # queries answered by every compared model; below, nothing is compared
_PAIR_LEAST = 50  # labels from which two models alone are routed: the head is safe there
_STEPS = 9  # trade-offs looked at for each pair of models in a pool
_MANY_STEPS = 25  # and for a pool of more than three


@dataclass(frozen=True)
class Compared:
    """rows: (n,) queries of the table on which all these models have a score. score, cost: (n, k)
    of them; cost None where unknown or the same for all. expected: (n, k) cross-fitted quality,
    None where labels are too few for a router. level: (k,) mean scores; levels: (draws, k) in each
    redraw. likely: (k,) the means that pools are ranked by, shrunken where labels are few. price:
    (k,) mean costs. graded: scores are not just right or wrong."""

    models: tuple[str, ...]
    rows: NDArray[np.intp]
    score: FloatArray
    cost: FloatArray | None
    expected: FloatArray | None
    level: FloatArray
    levels: FloatArray
    likely: FloatArray
    price: FloatArray | None
    prices: FloatArray | None
    drawn: ClusterBootstrap
    grouped: bool
    graded: bool

    @property
    def best(self) -> int:
        """The best single model; of equals the cheapest."""
        price = np.zeros(len(self.level)) if self.price is None else self.price
        return int(np.lexsort((price, -self.likely.round(9)))[0])

    def few(self, seed: int, most: int) -> Compared:
        """The same on at most `most` of the queries, for looking through many pools."""
        n = len(self.rows)
        if n <= most:
            return self
        at = np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
        # Singles and routed points from the same queries, or the difference between samples would
        # look like routing.
        level = self.level if self.expected is None else self.score[at].mean(axis=0)
        return replace(
            self,
            rows=self.rows[at],
            score=self.score[at],
            cost=None if self.cost is None else self.cost[at],
            expected=None if self.expected is None else self.expected[at],
            level=level,
            likely=self.likely if self.expected is None else level,
        )


def ground(score: FloatArray, keep_all: bool = False) -> tuple[list[int], NDArray[np.intp]]:
    """(models, queries that all of them have a score on). Models with few labels are left out
    where keeping them would leave too little in common: the models with most labels, as many as
    make queries x (models - 1) largest. keep_all: the operator named the models; none is left out
    unless LEAST queries in common cannot be had otherwise."""
    seen = ~np.isnan(score)
    order = np.argsort(-seen.sum(axis=0), kind="stable")
    order = order[seen.sum(axis=0)[order] > 0]
    common = np.logical_and.accumulate(seen[:, order], axis=1).sum(axis=0)
    if not len(order):
        return [], np.zeros(0, np.intp)
    take = len(order)
    if not (keep_all and common[-1] >= LEAST):
        take = int(np.argmax(common * np.arange(len(order)))) + 1
    models = sorted(order[:take].tolist())
    return models, np.flatnonzero(seen[:, models].all(axis=1))


def compare(
    table: Table,
    batch: Batch,
    cost: FloatArray | None,
    models: Sequence[int],
    rows: NDArray[np.intp],
    seed: int = 0,
) -> Compared:
    """cost: (len(table), all models) or None. models: columns; rows: as `ground` gave them."""
    part = table.select_models([table.models[j] for j in models]).take(rows)
    n, k = part.score.shape
    spent = None if cost is None else cost[rows][:, list(models)]
    price = None if spent is None else spent.mean(axis=0)
    if price is not None and price.max() - price.min() <= 1e-9 * price.max():
        spent = price = None
    known = np.full(k, np.nan) if price is None else price
    drawn = ClusterBootstrap(part.clusters, POOL_DRAWS, seed)
    level = likely = part.score.mean(axis=0)
    expected = None
    if n >= MIN_MULTI_MODEL_LABELS * FOLDS / (FOLDS - 1) or (k == 2 and n >= _PAIR_LEAST):
        expected = _cross_fitted(part, batch.take(rows), known, seed)
    else:
        likely = shrunken_means(part.score, known)
    return Compared(
        models=part.models,
        rows=rows,
        score=part.score,
        cost=spent,
        expected=expected,
        level=level,
        levels=drawn.means(part.score),
        likely=likely,
        price=price,
        prices=None if spent is None else drawn.means(spent),
        drawn=drawn,
        grouped=part.group is not None,
        graded=not bool(np.isin(part.score, (0.0, 1.0)).all()),
    )


def _cross_fitted(part: Table, batch: Batch, price: FloatArray, seed: int) -> FloatArray:
    """(n, k) quality predicted by `suffice train`'s own head, fitted without the query's fold."""
    fold = group_kfold(connected_groups(part), FOLDS, seed)
    out = np.empty(part.score.shape)
    for f in range(FOLDS):
        held = fold == f
        if held.any():
            head = make_predictor("trained").fit(
                batch.take(~held), part.score[~held], None, price, part.models
            )
            # A fold that did better than the others was fitted on less good ones, and would be
            # predicted lower than they are: each fold's own mean is taken out.
            apart = part.score.mean(axis=0) - part.score[~held].mean(axis=0)
            out[held] = head.predict(batch.take(held))[0] + apart
    return out


class PoolValue(NamedTuple):
    """A pool's worth: value, its redraws (draws,), value of random mixing alone, and the points of
    its hull: cost, quality (p,) and in each redraw (draws, p); without costs the costs are 0.
    rank: what pools are ordered by, the value of shrunken means where labels are few."""

    rank: float
    value: float
    values: FloatArray
    mixed: float
    cost: FloatArray
    quality: FloatArray
    costs: FloatArray
    qualities: FloatArray


def worth(
    c: Compared, pool: Sequence[int], with_draws: bool = True, lambdas: FloatArray | None = None
) -> PoolValue:
    """pool: columns of `c`. with_draws: False leaves the redraws empty, for a quick look. lambdas:
    trade-offs instead of the pool's own."""
    cols = list(pool)
    if c.price is not None:
        cols.sort(key=lambda j: c.price[j])  # type: ignore[index]
    quality, qualities = c.level[cols], c.levels[:, cols]
    cost = np.zeros(len(cols)) if c.price is None else c.price[cols]
    costs = np.zeros_like(qualities) if c.prices is None else c.prices[:, cols]
    single, mixed = len(cols), 0.0
    if c.expected is not None and len(cols) > 1:
        chosen = choices(c, cols, lambdas)
        got = np.take_along_axis(c.score, chosen, axis=1)
        quality = np.concatenate([quality, got.mean(axis=0)])
        spent = None if c.cost is None else np.take_along_axis(c.cost, chosen, axis=1)
        cost = np.concatenate([cost, np.zeros(got.shape[1]) if spent is None else spent.mean(0)])
        if with_draws:
            qualities = np.concatenate([qualities, c.drawn.means(got)], axis=1)
            more = np.zeros((len(costs), got.shape[1])) if spent is None else c.drawn.means(spent)
            costs = np.concatenate([costs, more], axis=1)
    if c.price is None:
        # The router's one point where there is one: the best of several would be luck.
        at = slice(single, None) if len(quality) > single else slice(None)
        value, mixed = float(quality[at].max()), float(quality[:single].max())
        values = qualities[:, at].max(axis=1) if with_draws else np.zeros(0)
        rank = value if c.expected is not None else float(c.likely[cols].max())
    else:
        low, high = float(c.price.min()), float(c.price.max())
        value = reach(cost, quality, low, high)
        mixed = reach(cost[:single], quality[:single], low, high)
        rank = value if c.expected is not None else reach(cost, c.likely[cols], low, high)
        values = np.zeros(0)
        if with_draws:
            values = np.array(
                [reach(x, y, low, high) for x, y in zip(costs, qualities, strict=True)]
            )
    return PoolValue(rank, value, values, mixed, cost, quality, costs, qualities)


def reach(cost: FloatArray, quality: FloatArray, low: float, high: float) -> float:
    """Mean height over [low, high] of the upper hull of points and of answering nothing."""
    points = np.column_stack([cost, quality])
    return hull_area(np.vstack([points, [0.0, 0.0]]), np.array([[low, 0.0], [high, 0.0]]))


def choices(
    c: Compared, cols: Sequence[int], lambdas: FloatArray | None = None
) -> NDArray[np.intp]:
    """(n, t) the model of largest predicted quality - lambda x mean cost, for t trade-offs lambda:
    quantiles of what each of two models adds in quality for each unit of cost."""
    assert c.expected is not None
    q = c.expected[:, cols]
    at = np.array(cols)
    if c.price is None:
        return np.asarray(at[np.argmax(q, axis=1)])[:, None]
    price = c.price[at]
    steps = trade_offs(q, price) if lambdas is None else lambdas
    return np.stack([at[np.argmax(q - x * price, axis=1)] for x in steps], axis=1)


def both(c: Compared, more: Sequence[int], less: Sequence[int]) -> tuple[PoolValue, PoolValue]:
    """Two pools' worth on the same trade-offs: a hull over more points is a little higher by luck
    alone, which must not count for the larger pool."""
    if c.price is None or c.expected is None:
        return worth(c, more), worth(c, less)
    found = [
        trade_offs(c.expected[:, list(p)], c.price[list(p)]) for p in (more, less) if len(p) > 1
    ]
    lambdas = np.unique(np.concatenate(found)) if found else None
    return worth(c, more, lambdas=lambdas), worth(c, less, lambdas=lambdas)


def trade_offs(q: FloatArray, price: FloatArray) -> FloatArray:
    """Lambdas, ascending. q: (n, m) predicted quality; price: (m,) mean costs."""
    k = len(price)
    sample = q[np.linspace(0, len(q) - 1, min(len(q), 2000)).astype(int)]
    slopes = [
        (sample[:, b] - sample[:, a]) / (price[b] - price[a])
        for a in range(k)
        for b in range(a + 1, k)
        if price[b] != price[a]
    ]
    if not slopes:
        return np.zeros(1)
    grid = np.linspace(0.03, 0.97, _STEPS if k <= 3 else _MANY_STEPS)
    if k <= 3:
        found = np.concatenate([np.quantile(s, grid) for s in slopes])
    else:
        found = np.quantile(np.concatenate(slopes), grid)
    if k > 2:
        found = found[found > 0]  # of a pair all, so that its whole curve is seen
    return np.unique(np.append(found, 0.0))


def hull_of(c: Compared, level: FloatArray, price: FloatArray | None) -> set[int]:
    """Models on the hull of single models; without costs only the best."""
    if price is None:
        return {int(np.argmax(level))}
    hull = upper_hull(np.column_stack([price, level]))
    corners = {(float(x), float(y)) for x, y in hull}
    return {j for j in range(len(level)) if (float(price[j]), float(level[j])) in corners}

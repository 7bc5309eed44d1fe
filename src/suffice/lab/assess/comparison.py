"""The labels on which models can be compared, and the value of a pool of some of them.

The value of a pool is the area under its cost-quality hull, over the costs from the cheapest to the
most expensive compared model. Below the cost of a pool's own cheapest model, part of the queries is
not answered, which costs nothing and scores 0; so pools with and without a cheap model are
comparable. Points of the hull are each model alone (queries are mixed at random between them) and
what a router reaches on the pool, with cross-fitted predictions, so that no query is predicted by a
fit that used it. Without costs, the value is the mean score of sending each query to the model with
the best prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from suffice.lab.data.splits import connected_groups, group_kfold
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.evaluate import frontier
from suffice.lab.evaluate.frontier import upper_hull
from suffice.lab.predictors.base import Batch
from suffice.lab.predictors.baselines import shrunken_means
from suffice.lab.predictors.linear import MIN_MULTI_MODEL_LABELS
from suffice.lab.predictors.registry import make_predictor
from suffice.lab.stats import ClusterBootstrap

FOLDS = 5
POOL_DRAWS = 200
MIN_QUERIES = 20  # answered by every compared model; below, models are not compared
_MIN_PAIR_LABELS = 50  # from which a pair is routed: the head is safe there
_SMALL_POOL_STEPS = 9  # trade-offs per pair of models in a pool of at most three
_LARGE_POOL_STEPS = 25  # and in a larger pool


@dataclass(frozen=True)
class Comparison:
    """Scores and costs of k models on the n queries that all of them answered."""

    models: tuple[str, ...]
    rows: NDArray[np.intp]
    """(n,) rows of the table."""
    score: FloatArray
    """(n, k)."""
    cost: FloatArray | None
    """(n, k); None if unknown or the same for all models."""
    predicted: FloatArray | None
    """(n, k) cross-fitted quality; None if there are too few labels for a router."""
    mean_score: FloatArray
    """(k,)."""
    mean_score_draws: FloatArray
    """(draws, k) in each bootstrap sample."""
    rank_score: FloatArray
    """(k,) the means that pools are ranked by; shrunken if there are few labels."""
    price: FloatArray | None
    """(k,) mean costs."""
    price_draws: FloatArray | None
    """(draws, k)."""
    draws: ClusterBootstrap
    grouped: bool
    graded: bool
    """Whether scores are other than 0 and 1."""

    @property
    def best(self) -> int:
        """The best single model; the cheapest of equals."""
        price = np.zeros(len(self.mean_score)) if self.price is None else self.price
        return int(np.lexsort((price, -self.rank_score.round(9)))[0])

    def subsample(self, seed: int, most: int) -> Comparison:
        """The same on at most `most` of the queries, for a quick search over many pools."""
        n = len(self.rows)
        if n <= most:
            return self
        index = np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
        # Single models and routed points must use the same queries, or the difference between
        # samples would look like a gain of routing.
        routed = self.predicted is not None
        mean_score = self.score[index].mean(axis=0) if routed else self.mean_score
        return replace(
            self,
            rows=self.rows[index],
            score=self.score[index],
            cost=None if self.cost is None else self.cost[index],
            predicted=None if self.predicted is None else self.predicted[index],
            mean_score=mean_score,
            rank_score=mean_score if routed else self.rank_score,
        )


def common_queries(score: FloatArray, keep_all: bool = False) -> tuple[list[int], NDArray[np.intp]]:
    """The models to compare, and the queries on which all of them have a score.

    Models with few labels are left out if keeping them would leave too few queries in common: the
    models with most labels stay, as many as maximise queries x (models - 1).

    Args:
        score: (n, k), NaN = unknown.
        keep_all: Keep every model if they have MIN_QUERIES in common, because the operator named
            them.

    Returns:
        Columns, rows.
    """
    seen = ~np.isnan(score)
    order = np.argsort(-seen.sum(axis=0), kind="stable")
    order = order[seen.sum(axis=0)[order] > 0]
    if not len(order):
        return [], np.zeros(0, np.intp)
    common = np.logical_and.accumulate(seen[:, order], axis=1).sum(axis=0)
    number = len(order)
    if not (keep_all and common[-1] >= MIN_QUERIES):
        number = int(np.argmax(common * np.arange(len(order)))) + 1
    models = sorted(order[:number].tolist())
    return models, np.flatnonzero(seen[:, models].all(axis=1))


def compare(
    table: Table,
    batch: Batch,
    cost: FloatArray | None,
    models: Sequence[int],
    rows: NDArray[np.intp],
    seed: int = 0,
) -> Comparison:
    """Compare models on the queries they have in common.

    Args:
        table: The table.
        batch: Features of its queries.
        cost: (len(table), all models), or None.
        models: Columns, as `common_queries` returns them.
        rows: Rows, as `common_queries` returns them.
        seed: Seed of the folds and bootstrap samples.

    Returns:
        The comparison.
    """
    part = table.select_models([table.models[j] for j in models]).take(rows)
    n, k = part.score.shape
    spent = None if cost is None else cost[rows][:, list(models)]
    price = None if spent is None else spent.mean(axis=0)
    if price is not None and price.max() - price.min() <= 1e-9 * price.max():
        spent = price = None
    known_price = np.full(k, np.nan) if price is None else price
    draws = ClusterBootstrap(part.clusters, POOL_DRAWS, seed)
    mean_score = rank_score = part.score.mean(axis=0)
    predicted = None
    if n >= MIN_MULTI_MODEL_LABELS * FOLDS / (FOLDS - 1) or (k == 2 and n >= _MIN_PAIR_LABELS):
        predicted = _cross_fit(part, batch.take(rows), known_price, seed)
    else:
        rank_score = shrunken_means(part.score, known_price)
    return Comparison(
        models=part.models,
        rows=rows,
        score=part.score,
        cost=spent,
        predicted=predicted,
        mean_score=mean_score,
        mean_score_draws=draws.means(part.score),
        rank_score=rank_score,
        price=price,
        price_draws=None if spent is None else draws.means(spent),
        draws=draws,
        grouped=part.group is not None,
        graded=not bool(np.isin(part.score, (0.0, 1.0)).all()),
    )


def _cross_fit(part: Table, batch: Batch, price: FloatArray, seed: int) -> FloatArray:
    """(n, k) quality predicted by the head of `suffice train`, fitted without the query's fold."""
    fold = group_kfold(connected_groups(part), FOLDS, seed)
    predicted = np.empty(part.score.shape)
    for f in range(FOLDS):
        test = fold == f
        if test.any():
            train = ~test
            head = make_predictor("trained").fit(
                batch.take(train), part.score[train], None, price, part.models
            )
            # A fold with higher scores than the others was fitted on lower ones and would be
            # predicted too low, so the difference of the means is added.
            shift = part.score.mean(axis=0) - part.score[train].mean(axis=0)
            predicted[test] = head.predict(batch.take(test))[0] + shift
    return predicted


class PoolValue(NamedTuple):
    """The value of a pool and the points of its hull; without costs all costs are 0."""

    rank: float
    """What pools are ordered by: the value, of shrunken means if there are few labels."""
    value: float
    value_draws: FloatArray
    """(draws,)."""
    mixed: float
    """Value of random mixing alone."""
    cost: FloatArray
    """(p,) of each point."""
    quality: FloatArray
    """(p,) of each point."""
    cost_draws: FloatArray
    """(draws, p)."""
    quality_draws: FloatArray
    """(draws, p)."""


def pool_value(
    comparison: Comparison,
    pool: Sequence[int],
    with_draws: bool = True,
    lambdas: FloatArray | None = None,
) -> PoolValue:
    """The value of a pool.

    Args:
        comparison: The comparison.
        pool: Columns of the comparison.
        with_draws: False leaves the bootstrap values empty, for a quick search.
        lambdas: Trade-offs to use instead of the pool's own.

    Returns:
        The value.
    """
    c = comparison
    columns = list(pool)
    if c.price is not None:
        price = c.price
        columns.sort(key=lambda j: price[j])
    quality, quality_draws = c.mean_score[columns], c.mean_score_draws[:, columns]
    cost = np.zeros(len(columns)) if c.price is None else c.price[columns]
    cost_draws = (
        np.zeros_like(quality_draws) if c.price_draws is None else c.price_draws[:, columns]
    )
    if c.predicted is not None and len(columns) > 1:
        chosen = choices(c, columns, lambdas)
        score = np.take_along_axis(c.score, chosen, axis=1)
        spent = np.zeros_like(score)
        if c.cost is not None:
            spent = np.take_along_axis(c.cost, chosen, axis=1)
        quality = np.concatenate([quality, score.mean(axis=0)])
        cost = np.concatenate([cost, spent.mean(axis=0)])
        if with_draws:
            quality_draws = np.concatenate([quality_draws, c.draws.means(score)], axis=1)
            cost_draws = np.concatenate([cost_draws, c.draws.means(spent)], axis=1)
    summarise = _best_point if c.price is None else _area
    return summarise(c, columns, (cost, quality), (cost_draws, quality_draws), with_draws)


_Points = tuple[FloatArray, FloatArray]  # costs and qualities


def _best_point(
    c: Comparison, columns: list[int], points: _Points, draws: _Points, with_draws: bool
) -> PoolValue:
    """The value without costs: the router's one point if there is one, else the best model."""
    cost, quality = points
    cost_draws, quality_draws = draws
    single = len(columns)
    # The best of several points would be partly luck.
    index = slice(single, None) if len(quality) > single else slice(None)
    value = float(quality[index].max())
    value_draws = quality_draws[:, index].max(axis=1) if with_draws else np.zeros(0)
    rank = value if c.predicted is not None else float(c.rank_score[columns].max())
    mixed = float(quality[:single].max())
    return PoolValue(rank, value, value_draws, mixed, cost, quality, cost_draws, quality_draws)


def _area(
    c: Comparison, columns: list[int], points: _Points, draws: _Points, with_draws: bool
) -> PoolValue:
    """The value with costs: the area under the hull."""
    cost, quality = points
    cost_draws, quality_draws = draws
    assert c.price is not None
    low, high, single = float(c.price.min()), float(c.price.max()), len(columns)
    value = hull_area(cost, quality, low, high)
    mixed = hull_area(cost[:single], quality[:single], low, high)
    rank = value
    if c.predicted is None:
        rank = hull_area(cost, c.rank_score[columns], low, high)
    value_draws = np.zeros(0)
    if with_draws:
        pairs = zip(cost_draws, quality_draws, strict=True)
        value_draws = np.array([hull_area(x, y, low, high) for x, y in pairs])
    return PoolValue(rank, value, value_draws, mixed, cost, quality, cost_draws, quality_draws)


def hull_area(cost: FloatArray, quality: FloatArray, low: float, high: float) -> float:
    """Mean height over [low, high] of the upper hull of the points and of answering nothing."""
    points = np.column_stack([cost, quality])
    return frontier.hull_area(np.vstack([points, [0.0, 0.0]]), np.array([[low, 0.0], [high, 0.0]]))


def choices(
    comparison: Comparison, columns: Sequence[int], lambdas: FloatArray | None = None
) -> NDArray[np.intp]:
    """(n, t) the column with the largest predicted quality - lambda x mean cost, per trade-off."""
    assert comparison.predicted is not None
    predicted = comparison.predicted[:, columns]
    index = np.array(columns)
    if comparison.price is None:
        return np.asarray(index[np.argmax(predicted, axis=1)])[:, None]
    price = comparison.price[index]
    steps = trade_offs(predicted, price) if lambdas is None else lambdas
    return np.stack([index[np.argmax(predicted - x * price, axis=1)] for x in steps], axis=1)


def paired_values(
    comparison: Comparison, larger: Sequence[int], smaller: Sequence[int]
) -> tuple[PoolValue, PoolValue]:
    """Returns two pools' values on the same trade-offs.

    A hull over more points is slightly higher by chance alone, which must not count for the larger
    pool.
    """
    c = comparison
    if c.price is None or c.predicted is None:
        return pool_value(c, larger), pool_value(c, smaller)
    steps = [
        trade_offs(c.predicted[:, list(pool)], c.price[list(pool)])
        for pool in (larger, smaller)
        if len(pool) > 1
    ]
    lambdas = np.unique(np.concatenate(steps)) if steps else None
    return pool_value(c, larger, lambdas=lambdas), pool_value(c, smaller, lambdas=lambdas)


def trade_offs(predicted: FloatArray, price: FloatArray) -> FloatArray:
    """Trade-offs lambda, ascending: quantiles of the quality that one of two models adds per cost.

    Args:
        predicted: (n, m) predicted quality.
        price: (m,) mean costs.

    Returns:
        (t,) lambdas, quality per unit of cost.
    """
    k = len(price)
    sample = predicted[np.linspace(0, len(predicted) - 1, min(len(predicted), 2000)).astype(int)]
    slopes = [
        (sample[:, b] - sample[:, a]) / (price[b] - price[a])
        for a in range(k)
        for b in range(a + 1, k)
        if price[b] != price[a]
    ]
    if not slopes:
        return np.zeros(1)
    grid = np.linspace(0.03, 0.97, _SMALL_POOL_STEPS if k <= 3 else _LARGE_POOL_STEPS)
    if k <= 3:
        lambdas = np.concatenate([np.quantile(s, grid) for s in slopes])
    else:
        lambdas = np.quantile(np.concatenate(slopes), grid)
    if k > 2:
        lambdas = lambdas[lambdas > 0]  # a pair keeps all of them: its whole curve is used
    return np.unique(np.append(lambdas, 0.0))


def hull_models(mean_score: FloatArray, price: FloatArray | None) -> set[int]:
    """Models on the hull of single models; without costs only the best."""
    if price is None:
        return {int(np.argmax(mean_score))}
    hull = upper_hull(np.column_stack([price, mean_score]))
    corners = {(float(x), float(y)) for x, y in hull}
    return {j for j in range(len(mean_score)) if (float(price[j]), float(mean_score[j])) in corners}

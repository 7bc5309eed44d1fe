"""Which models to run: the best single model, pair and triple."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from suffice.lab.assess.adjusted_means import MIN_LABELS, estimate, proportion
from suffice.lab.assess.comparison import (
    FOLDS,
    Comparison,
    PoolValue,
    hull_area,
    hull_models,
    paired_values,
    pool_value,
)
from suffice.lab.assess.results import Estimate, PoolReport, PoolSummary
from suffice.lab.data.table import FloatArray
from suffice.lab.evaluate.frontier import upper_hull
from suffice.lab.stats import basic_interval, percentile_interval

MIN_GAIN = 0.002  # of quality: what random scores gain from a hull chosen on the same queries
CLEAR_DIFFERENCE = 0.2  # of a graded score, between two answers
_SEARCH_QUERIES = 2000  # on which all pools are searched
_PAIR_MODELS = 40  # whose pairs are searched
_TRIPLE_MODELS = 14  # from the best pairs, whose triples are searched
_FINALISTS = 6  # pools of each size that are then measured on all queries
_SHOWN = 5
KEEP = (0.9, 0.95, 1.0)

# Folds share training data, so a cross-fitted gain varies more than its bootstrap shows: by
# sqrt((1/J + 1/(J-1)) / (1/J)) for J folds (Nadeau and Bengio 2003, "Inference for the
# generalization error", section 3). Without signal, on synthetic labels, the bootstrap intervals
# were too short by 1.15 to 1.5. Differences of hulls need no correction: their basic intervals
# covered 0 in every run.
_CROSS_FIT_FACTOR = ((1 / FOLDS + 1 / (FOLDS - 1)) * FOLDS) ** 0.5

Verdict = Literal["adds", "nothing measurable", "too few labels to say"]


class PoolResult(NamedTuple):
    """A pool as columns, with its value."""

    columns: tuple[int, ...]
    value: PoolValue


def value_gain(comparison: Comparison, larger: Sequence[int], smaller: Sequence[int]) -> Estimate:
    """Returns how much more one pool is worth than another, per bootstrap sample.

    It uses plain means, because what shrinking adds is not evidence.
    """
    c = comparison
    x, y = paired_values(c, larger, smaller)
    value, draws, n = x.value - y.value, x.value_draws - y.value_draws, len(c.rows)
    if c.price is None and c.predicted is not None:
        return _widen(estimate(value, draws, n))
    return Estimate(value, basic_interval(draws, value) if n >= MIN_LABELS else None, n)


def _widen(e: Estimate) -> Estimate:
    """A cross-fitted gain with its interval widened by _CROSS_FIT_FACTOR."""
    if e.ci is None:
        return e
    low, high = (e.value + _CROSS_FIT_FACTOR * (end - e.value) for end in e.ci)
    return Estimate(e.value, (low, high), e.n)


def significance(gain: Estimate | None) -> Verdict:
    """Whether a gain is measurable: its interval is above 0 and it is at least MIN_GAIN."""
    if gain is None or gain.ci is None:
        return "too few labels to say"
    if gain.ci[0] > 0 and gain.value >= MIN_GAIN:
        return "adds"
    return "nothing measurable" if gain.ci[1] <= MIN_GAIN else "too few labels to say"


def best_pools(
    comparison: Comparison, size: int, models: Sequence[int], seed: int
) -> list[PoolResult]:
    """The best pools of a size among `models`, best first, measured on all queries."""
    sample = comparison.subsample(seed, _SEARCH_QUERIES)
    ranked = sorted(
        (-pool_value(sample, pool, with_draws=False).rank, pool)
        for pool in combinations(models, size)
    )
    results = [PoolResult(pool, pool_value(comparison, pool)) for _, pool in ranked[:_FINALISTS]]
    return sorted(results, key=lambda x: -x.value.rank)


def shortlist(comparison: Comparison, most: int) -> list[int]:
    """Models worth trying in pools: those on the hull, then the best at some price of quality."""
    c = comparison
    k = len(c.mean_score)
    if k <= most:
        return list(range(k))
    first = sorted(hull_models(c.mean_score, c.price))
    price = np.zeros(k) if c.price is None else c.price / c.price.max()
    rankings = [
        np.argsort(-(c.mean_score - x * price), kind="stable")
        for x in (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
    ]
    order = [*first, *(int(ranking[i]) for i in range(k) for ranking in rankings)]
    return sorted(list(dict.fromkeys(order))[:most])


class _Search(NamedTuple):
    """The best pools of each size, best first."""

    singles: list[PoolResult]
    pairs: list[PoolResult]
    triples: list[PoolResult]


def _search(c: Comparison, seed: int) -> _Search:
    k = len(c.models)
    singles = sorted(
        (PoolResult((j,), pool_value(c, (j,))) for j in range(k)), key=lambda x: -x.value.rank
    )
    pairs: list[PoolResult] = []
    triples: list[PoolResult] = []
    if k >= 2 and not (c.price is None and c.predicted is None):
        pairs = best_pools(c, 2, shortlist(c, _PAIR_MODELS), seed)
    if k >= 3 and pairs:
        good = list(dict.fromkeys(j for pair in pairs for j in pair.columns))
        models = sorted({*good, *shortlist(c, max(3, _TRIPLE_MODELS - len(good)))})
        triples = best_pools(c, 3, models, seed)
    return _Search(singles, pairs, triples)


def choose_pool(comparison: Comparison, seed: int = 0) -> tuple[PoolReport, tuple[int, ...]]:
    """Find the pool to recommend.

    Args:
        comparison: The comparison.
        seed: Seed of the search.

    Returns:
        The report, and the columns of the recommended pool.
    """
    c = comparison
    singles, pairs, triples = _search(c, seed)
    start = (c.best,) if c.price is None else singles[0].columns
    pick, triple_gain = start, None
    if pairs and significance(value_gain(c, pairs[0].columns, start)) == "adds":
        pick = pairs[0].columns
    if triples:
        triple_gain = value_gain(c, triples[0].columns, pairs[0].columns)
        if (
            pick == pairs[0].columns
            and significance(triple_gain) == "adds"
            and c.predicted is not None
        ):
            pick = triples[0].columns
    pair_lead = None
    if len(pairs) > 1:
        pair_lead = value_gain(c, pairs[0].columns, pairs[1].columns)
    everyone = tuple(range(len(c.models)))
    everything = None
    if len(everyone) > 3:
        everything = pool_summary(c, PoolResult(everyone, pool_value(c, everyone)))
    cheap = _cheap_models(c, c.best)
    report = PoolReport(
        n_compared=len(c.rows),
        identical=bool((c.score == c.score[:, :1]).all()),
        basis="routed" if c.predicted is not None else "shrunken means",
        strong=c.models[c.best],
        cheap=tuple(c.models[j] for j in cheap),
        ties=tuple(c.models[j] for j in _ties(c, c.best)),
        hull=tuple(c.models[j] for j in by_price(c, hull_models(c.mean_score, c.price))),
        singles=tuple(pool_summary(c, x) for x in singles[:_SHOWN]),
        pairs=tuple(pool_summary(c, x) for x in pairs[:_SHOWN]),
        triples=tuple(pool_summary(c, x) for x in triples[:_SHOWN]),
        pair_lead=pair_lead,
        triple_gain=triple_gain,
        everything=everything,
        recommended=tuple(c.models[j] for j in by_price(c, pick)),
        needs_strong=_strong_only_share(c, c.best, cheap),
    )
    return report, pick


def by_price(comparison: Comparison, columns: Sequence[int] | set[int]) -> list[int]:
    """Columns, cheapest first; without costs best first."""
    key = -comparison.mean_score if comparison.price is None else comparison.price
    return sorted(columns, key=lambda j: float(key[j]))


def _ties(c: Comparison, best: int) -> list[int]:
    """Models whose distance from the best could be chance, best first."""
    ties = []
    for j in np.argsort(-c.mean_score, kind="stable").tolist():
        if j != best:
            ci = percentile_interval(c.mean_score_draws[:, best] - c.mean_score_draws[:, j])
            if len(c.rows) < MIN_LABELS or ci is None or ci[0] <= 0:
                ties.append(j)
    return ties


# ── what only a strong model answers well ────────────────────────────────────────────────────────


def _cheap_models(c: Comparison, strong: int) -> list[int]:
    """What the strong model is compared with: the cheapest model; without costs the weaker half."""
    others = [j for j in range(len(c.models)) if j != strong]
    if not others:
        return []
    if c.price is not None:
        cheapest = int(np.argmin(c.price))
        return [] if cheapest == strong else [cheapest]
    order = sorted(others, key=lambda j: float(c.mean_score[j]))
    return order[: (len(order) + 1) // 2]


def strong_only(comparison: Comparison, strong: int, cheap: Sequence[int]) -> FloatArray:
    """Which queries only the strong model answers well.

    A score of at least 0.5 is an answer that suffices. The cheap models fail if most of them do. For
    graded scores the strong model must also be better than the cheap ones' mean by CLEAR_DIFFERENCE.

    Args:
        comparison: The comparison.
        strong: Column of the strong model.
        cheap: Columns of the cheap models.

    Returns:
        (n,) 1 for such a query, else 0.
    """
    score, others = comparison.score[:, strong], comparison.score[:, list(cheap)]
    if comparison.graded:
        clear = score - others.mean(axis=1) >= CLEAR_DIFFERENCE
        return np.asarray((score >= 0.5) & clear, float)
    return np.asarray((score >= 0.5) & ((others >= 0.5).mean(axis=1) < 0.5), float)


def _strong_only_share(c: Comparison, strong: int, cheap: Sequence[int]) -> Estimate | None:
    return proportion(strong_only(c, strong, cheap), c.draws, c.grouped) if cheap else None


# ── one pool ─────────────────────────────────────────────────────────────────────────────────────


def pool_summary(comparison: Comparison, result: PoolResult) -> PoolSummary:
    """The summary of one pool."""
    c = comparison
    columns, value = list(result.columns), result.value
    n = len(c.rows)
    top = c.score[:, columns].max(axis=1, keepdims=True)
    ci = basic_interval(value.value_draws, value.value) if n >= MIN_LABELS else None
    return PoolSummary(
        models=tuple(c.models[j] for j in by_price(c, columns)),
        value=Estimate(value.value, ci, n),
        mixed=value.mixed,
        oracle=estimate(float(top.mean()), c.draws.means(top)[:, 0], n),
        routing_gain=None if c.predicted is None else _routing_gain(c, value, len(columns)),
        cost_to_keep=_cost_to_keep(c, value),
    )


def _routing_gain(c: Comparison, w: PoolValue, size: int) -> Estimate | None:
    """Mean distance of the router's curve from random mixing, over the pool's own costs."""
    n = len(c.rows)
    if size < 2:
        return None
    if c.price is None:
        value = float(w.quality[size] - w.quality[:size].max())
        draws = w.quality_draws[:, size] - w.quality_draws[:, :size].max(axis=1)
        return _widen(estimate(value, draws, n))
    above = _above_chord if size == 2 else _above_hull
    value = above(w.cost, w.quality, size)
    pairs = zip(w.cost_draws, w.quality_draws, strict=True)
    draws = np.array([above(x, y, size) for x, y in pairs])
    if size == 2:
        return _widen(estimate(value, draws, n))
    return Estimate(value, basic_interval(draws, value) if n >= MIN_LABELS else None, n)


def _above_hull(cost: FloatArray, quality: FloatArray, size: int) -> float:
    """Returns the area of the router above that of the first `size` points, which are single models.

    The router's hull is chosen on the queries it is evaluated on; the basic interval corrects for
    that.
    """
    low, high = float(cost[:size].min()), float(cost[:size].max())
    singles = hull_area(cost[:size], quality[:size], low, high)
    return hull_area(cost, quality, low, high) - singles


def _above_chord(cost: FloatArray, quality: FloatArray, size: int = 2) -> float:
    """Returns the area of the router above the line between two models, points 0 (cheaper) and 1.

    No hull is taken, so that a useless score gains nothing on average.
    """
    low, high = cost[0], cost[1]
    if high <= low:
        return 0.0
    inside = (cost[size:] > low) & (cost[size:] < high)
    x, y = cost[size:][inside], quality[size:][inside]
    order = np.argsort(x, kind="stable")
    x = np.concatenate([[low], x[order], [high]])
    y = np.concatenate([[quality[0]], y[order], [quality[1]]])
    chord = quality[0] + (quality[1] - quality[0]) * (x - low) / (high - low)
    return float(np.trapezoid(y - chord, x) / (high - low))


def _cost_to_keep(c: Comparison, w: PoolValue) -> dict[str, Estimate]:
    best = c.best
    if c.price is None or c.price_draws is None or c.price[best] <= 0 or c.mean_score[best] <= 0:
        return {}
    costs = {}
    for part in KEEP:
        value = _relative_cost(w.cost, w.quality, c.mean_score[best] * part, c.price[best])
        if value is None:
            continue
        samples = zip(
            w.cost_draws, w.quality_draws, c.mean_score_draws[:, best], c.price_draws[:, best],
            strict=True,
        )  # fmt: skip
        draws = [_relative_cost(x, y, quality * part, price) for x, y, quality, price in samples]
        numbers = np.array([np.nan if d is None else d for d in draws])
        if np.isnan(numbers).mean() <= 0.01:  # else whether it can be kept at all is chance
            costs[f"{part:g}"] = estimate(value, numbers, len(c.rows))
    return costs


def _relative_cost(
    cost: FloatArray, quality: FloatArray, target: float, unit: float
) -> float | None:
    """The cost, in units, at which the hull reaches the target quality; None if it does not."""
    hull = upper_hull(np.column_stack([cost, quality]))
    if hull[-1, 1] < target - 1e-12 or unit <= 0:
        return None
    return float(np.interp(target, hull[:, 1], hull[:, 0]) / unit)

"""Which models to run: the best single, pair and triple, and what each model adds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from suffice.lab.assess.adjusted_means import TOO_FEW, estimate, share
from suffice.lab.assess.comparison import FOLDS, Compared, PoolValue, both, hull_of, reach, worth
from suffice.lab.assess.results import Estimate, Pool, PoolLine
from suffice.lab.data.table import FloatArray
from suffice.lab.stats import basic_interval, percentile_interval

NOTICE = 0.002  # of quality: what random scores gain from a hull picked on the same queries
CLEARLY = 0.2  # of a graded score: a clear difference between two answers
_LOOK = 2000  # queries on which all pools are looked through
_PAIRS_OF = 40  # models whose pairs, and of the best pairs ...
_TRIPLES_OF = 14  # ... whose triples are looked through
_FINAL = 6  # pools of each size that are then measured on all queries
_SHOWN = 5
KEEP = (0.9, 0.95, 1.0)

# Folds share what they were fitted on, so that a cross-fitted gain varies more than redraws of it
# show: by sqrt((1/J + 1/(J-1)) / (1/J)) for J folds (Nadeau and Bengio 2003, "Inference for the
# generalization error", section 3). Without signal on made-up labels the redraws were short by 1.15
# to 1.5. Differences of hulls need no more: their basic intervals covered 0 every time.
_CROSS = ((1 / FOLDS + 1 / (FOLDS - 1)) * FOLDS) ** 0.5

Verdict = Literal["in the pool", "adds", "nothing measurable", "too few labels to say"]


class PoolResult(NamedTuple):
    """A pool as columns, with its worth."""

    cols: tuple[int, ...]
    worth: PoolValue


def gain(c: Compared, more: Sequence[int], less: Sequence[int]) -> Estimate:
    """How much more one pool is worth than another, redraw by redraw; in plain means, since what
    shrinking adds is a guess and no evidence."""
    x, y = both(c, more, less)
    value, n = x.value - y.value, len(c.rows)
    if c.price is None and c.expected is not None:
        return _crossed(estimate(value, x.values - y.values, n))
    return Estimate(value, basic_interval(x.values - y.values, value) if n >= TOO_FEW else None, n)


def _crossed(e: Estimate) -> Estimate:
    """A cross-fitted gain with its interval widened by _CROSS."""
    if e.ci is None:
        return e
    low, high = (e.value + _CROSS * (end - e.value) for end in e.ci)
    return Estimate(e.value, (low, high), e.n)


def measurable(e: Estimate | None) -> Verdict:
    """Whether a gain is there: its interval lies above 0 and it is worth notice."""
    if e is None or e.ci is None:
        return "too few labels to say"
    if e.ci[0] > 0 and e.value >= NOTICE:
        return "adds"
    return "nothing measurable" if e.ci[1] <= NOTICE else "too few labels to say"


def search(c: Compared, size: int, models: Sequence[int], seed: int) -> list[PoolResult]:
    """The best pools of a size among `models`, best first, measured on all queries."""
    quick = c.few(seed, _LOOK)
    seen = sorted(
        (-worth(quick, pool, with_draws=False).rank, pool) for pool in combinations(models, size)
    )
    lines = [PoolResult(pool, worth(c, pool)) for _, pool in seen[:_FINAL]]
    return sorted(lines, key=lambda x: -x.worth.rank)


def promising(c: Compared, most: int) -> list[int]:
    """Models worth trying in pools: the hull's, then those best at some price of quality."""
    k = len(c.level)
    if k <= most:
        return list(range(k))
    first = sorted(hull_of(c, c.level, c.price))
    price = np.zeros(k) if c.price is None else c.price / c.price.max()
    ranked = [
        np.argsort(-(c.level - x * price), kind="stable") for x in (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
    ]
    order = [*first, *(int(r[i]) for i in range(k) for r in ranked)]
    return sorted(list(dict.fromkeys(order))[:most])


def choose(c: Compared, seed: int = 0) -> tuple[Pool, tuple[int, ...]]:
    """(the pools, columns of the recommended one)."""
    k = len(c.models)
    singles = sorted(
        (PoolResult((j,), worth(c, (j,))) for j in range(k)), key=lambda x: -x.worth.rank
    )
    pairs: list[PoolResult] = []
    triples: list[PoolResult] = []
    if k >= 2 and not (c.price is None and c.expected is None):
        pairs = search(c, 2, promising(c, _PAIRS_OF), seed)
    if k >= 3 and pairs:
        good = list(dict.fromkeys(j for p in pairs for j in p.cols))
        few = sorted({*good, *promising(c, max(3, _TRIPLES_OF - len(good)))})
        triples = search(c, 3, few, seed)
    start = singles[0] if c.price is not None else PoolResult((c.best,), worth(c, (c.best,)))
    pick, over_pair = start, None
    if pairs and measurable(gain(c, pairs[0].cols, start.cols)) == "adds":
        pick = pairs[0]
    if triples:
        over_pair = gain(c, triples[0].cols, pairs[0].cols)
        if pick is pairs[0] and measurable(over_pair) == "adds" and c.expected is not None:
            pick = triples[0]
    strong = c.best
    cheap = _cheap(c, strong)
    needs = needs_strong(c, strong, cheap)
    lead = None
    if k >= 2:
        second = int(np.argsort(-np.where(np.arange(k) == strong, -np.inf, c.likely))[0])
        lead = estimate(
            c.level[strong] - c.level[second],
            c.levels[:, strong] - c.levels[:, second],
            len(c.rows),
        )
    pool = Pool(
        n_compared=len(c.rows),
        identical=bool((c.score == c.score[:, :1]).all()),
        basis="routed" if c.expected is not None else "shrunken means",
        strong=c.models[strong],
        cheap=tuple(c.models[j] for j in cheap),
        ties=tuple(c.models[j] for j in _ties(c, strong)),
        lead_of_best=lead,
        hull=tuple(c.models[j] for j in by_price(c, hull_of(c, c.level, c.price))),
        singles=tuple(line_of(c, x) for x in singles[:_SHOWN]),
        pairs=tuple(line_of(c, x) for x in pairs[:_SHOWN]),
        triples=tuple(line_of(c, x) for x in triples[:_SHOWN]),
        pair_lead=gain(c, pairs[0].cols, pairs[1].cols) if len(pairs) > 1 else None,
        triple_gain=over_pair,
        everything=line_of(c, PoolResult(tuple(range(k)), worth(c, range(k)))) if k > 3 else None,
        recommended=tuple(c.models[j] for j in by_price(c, pick.cols)),
        needs_strong=needs,
    )
    return pool, pick.cols


def by_price(c: Compared, cols: Sequence[int] | set[int]) -> list[int]:
    """Cheapest first; without costs best first."""
    key = -c.level if c.price is None else c.price
    return sorted(cols, key=lambda j: float(key[j]))


def _ties(c: Compared, best: int) -> list[int]:
    """Models whose distance from the best could be chance, best first."""
    out = []
    for j in np.argsort(-c.level, kind="stable").tolist():
        if j != best:
            ci = percentile_interval(c.levels[:, best] - c.levels[:, j])
            if len(c.rows) < TOO_FEW or ci is None or ci[0] <= 0:
                out.append(j)
    return out


# ── what only a strong model gets right ──────────────────────────────────────────────────────────


def _cheap(c: Compared, strong: int) -> list[int]:
    """What the strong model is held against: the cheapest model; without costs the weaker half."""
    others = [j for j in range(len(c.models)) if j != strong]
    if not others:
        return []
    if c.price is not None:
        cheapest = int(np.argmin(c.price))
        return [] if cheapest == strong else [cheapest]
    order = sorted(others, key=lambda j: float(c.level[j]))
    return order[: (len(order) + 1) // 2]


def only_strong(c: Compared, strong: int, cheap: Sequence[int]) -> FloatArray:
    """(n,) 1 where the strong model gets a query right and the cheap ones do not (most of them,
    where there are several). Right: a score of at least 0.5. Graded scores: the strong model is
    right and better than the cheap ones' mean by CLEARLY."""
    s, other = c.score[:, strong], c.score[:, list(cheap)]
    if c.graded:
        return np.asarray((s >= 0.5) & (s - other.mean(axis=1) >= CLEARLY), float)
    return np.asarray((s >= 0.5) & ((other >= 0.5).mean(axis=1) < 0.5), float)


def needs_strong(c: Compared, strong: int, cheap: Sequence[int]) -> Estimate | None:
    return share(only_strong(c, strong, cheap), c.drawn, c.grouped) if cheap else None


# ── one pool ─────────────────────────────────────────────────────────────────────────────────────


def line_of(c: Compared, line: PoolResult) -> PoolLine:
    cols, w = list(line.cols), line.worth
    n = len(c.rows)
    top = c.score[:, cols].max(axis=1, keepdims=True)
    pair = len(cols) == 2
    return PoolLine(
        models=tuple(c.models[j] for j in by_price(c, cols)),
        value=Estimate(w.value, basic_interval(w.values, w.value) if n >= TOO_FEW else None, n),
        mixed=w.mixed,
        oracle=estimate(float(top.mean()), c.drawn.means(top)[:, 0], n),
        routing_gain=_routing_gain(c, w, len(cols)) if c.expected is not None else None,
        exactly_one_right=share(_one_right(c, cols), c.drawn, c.grouped) if pair else None,
        cost_to_keep=_cost_to_keep(c, w),
    )


def _one_right(c: Compared, cols: Sequence[int]) -> FloatArray:
    a, b = c.score[:, cols[0]], c.score[:, cols[1]]
    if c.graded:
        return np.asarray(np.abs(a - b) >= CLEARLY, float)
    return np.asarray((a >= 0.5) != (b >= 0.5), float)


def _routing_gain(c: Compared, w: PoolValue, size: int) -> Estimate | None:
    """Mean distance of the router's curve from random mixing, over the pool's own costs."""
    n = len(c.rows)
    if size < 2:
        return None
    if c.price is None:
        value = float(w.quality[size] - w.quality[:size].max())
        draws = w.qualities[:, size] - w.qualities[:, :size].max(axis=1)
        return _crossed(estimate(value, draws, n))
    above = _above_chord if size == 2 else _above_hull
    value = above(w.cost, w.quality, size)
    draws = np.array([above(x, y, size) for x, y in zip(w.costs, w.qualities, strict=True)])
    if size == 2:
        return _crossed(estimate(value, draws, n))
    return Estimate(value, basic_interval(draws, value) if n >= TOO_FEW else None, n)


def _above_hull(cost: FloatArray, quality: FloatArray, size: int) -> float:
    """The first `size` points are single models. The router's hull is picked on the queries it is
    judged on; the basic interval takes that luck off again."""
    low, high = float(cost[:size].min()), float(cost[:size].max())
    return reach(cost, quality, low, high) - reach(cost[:size], quality[:size], low, high)


def _above_chord(cost: FloatArray, quality: FloatArray, size: int = 2) -> float:
    """Points 0 and 1 are the two models, the cheaper first. No hull is taken, so that a useless
    score gains nothing on average."""
    low, high = cost[0], cost[1]
    if high <= low:
        return 0.0
    inside = (cost[2:] > low) & (cost[2:] < high)
    x, y = cost[2:][inside], quality[2:][inside]
    order = np.argsort(x, kind="stable")
    x = np.concatenate([[low], x[order], [high]])
    y = np.concatenate([[quality[0]], y[order], [quality[1]]])
    chord = quality[0] + (quality[1] - quality[0]) * (x - low) / (high - low)
    return float(np.trapezoid(y - chord, x) / (high - low))


def _cost_to_keep(c: Compared, w: PoolValue) -> dict[str, Estimate]:
    if c.price is None or c.prices is None or c.price[c.best] <= 0 or c.level[c.best] <= 0:
        return {}
    out = {}
    for part in KEEP:
        value = _relative_cost(w.cost, w.quality, c.level[c.best] * part, c.price[c.best])
        if value is None:
            continue
        draws = [
            _relative_cost(x, y, q * part, p)
            for x, y, q, p in zip(
                w.costs, w.qualities, c.levels[:, c.best], c.prices[:, c.best], strict=True
            )
        ]
        numbers = np.array([np.nan if d is None else d for d in draws])
        if np.isnan(numbers).mean() <= 0.01:  # else whether it can be kept at all is chance
            out[f"{part:g}"] = estimate(value, numbers, len(c.rows))
    return out


def _relative_cost(
    cost: FloatArray, quality: FloatArray, target: float, unit: float
) -> float | None:
    from suffice.lab.evaluate.frontier import upper_hull

    hull = upper_hull(np.column_stack([cost, quality]))
    if hull[-1, 1] < target - 1e-12 or unit <= 0:
        return None
    return float(np.interp(target, hull[:, 1], hull[:, 0]) / unit)

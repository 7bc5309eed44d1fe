"""The multiplier of quality - lambda * cost with which the money left lasts for the requests left.

Everett 1963: for any lambda the argmax of quality - lambda * cost is the best that its own spend can
buy; a mixture of two lambdas of neighbouring spends is the best of the relaxed problem between them
(the dual of the fractional knapsack). A request steps up to a dearer model where lambda falls below
what the step gains for its cost, so the steps of all requests in order are the whole curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_TINY_USD = 1e-15
_SMALL = 0.003  # of the money: an end of it that is smaller is no stage of its own


class Multiplier(NamedTuple):
    """Two neighbouring multipliers, the probability of the lower, and what a request then costs on
    average, USD. Both 0 where the money pays for all of the best; infinite where it does not pay for
    all of the cheapest."""

    low: float
    high: float
    mix: float
    usd_each: float


class _Curve(NamedTuple):
    """steps: (m,) descending. spend: (m + 1,) a request's mean cost where lambda is below the first
    0, 1, ... steps."""

    steps: FloatArray
    spend: FloatArray


def solve(quality: FloatArray, cost: FloatArray, usd_each: float) -> Multiplier:
    """The multiplier with which requests like those given spend `usd_each` on average.

    quality, cost: (n, k), NaN where a model was no candidate.
    """
    return plan(quality, cost, usd_each, 1.0)


def plan(
    quality: FloatArray,
    cost: FloatArray,
    usd: float,
    requests: float,
    worst_usd: Sequence[float] = (),
    spare_usd: float = 0.0,
    most_late: float = inf,
) -> Multiplier:
    """The multiplier with which `requests` like those given spend `usd`.

    worst_usd: (k,) what must be free for a call of each model; spare_usd: what is free beyond `usd`.
    So the last of the money cannot be spent on a model whose worst cost is large against it. The
    money is taken in stages, each with the models that can still be called, and lambda is where the
    requests of all stages are as many as expected: what only cheap models can spend is left for as
    many requests as it pays for, and the rest is spent before. A stage is given at most
    `most_late` requests more than if all models could be called; what these do not need is left over.
    """
    if usd <= 0.0:
        return Multiplier(inf, inf, 1.0, 0.0)
    stages = _stages(quality, cost, usd, worst_usd, spare_usd)
    if not stages:
        return Multiplier(0.0, 0.0, 1.0, usd / requests)
    part, curve = stages[0]
    steps, spend = curve.steps, np.maximum(curve.spend, _TINY_USD)
    later = np.zeros(len(spend))
    for usd_then, then in stages[1:]:
        at = np.searchsorted(-then.steps, -steps, side="right")
        costs = np.maximum(then.spend[np.concatenate(([0], at))], _TINY_USD)
        later += np.minimum(usd_then / costs, usd_then / spend + most_late)
    takes = part / spend + later
    if takes[-1] >= requests:
        return Multiplier(0.0, 0.0, 1.0, usd / requests)
    if takes[0] <= requests:
        return Multiplier(inf, inf, 1.0, usd / requests)
    first = int(np.searchsorted(-takes, -requests))
    return _between(curve, first, part / (requests - float(later[first])))


def _stages(
    quality: FloatArray, cost: FloatArray, usd: float, worst_usd: Sequence[float], spare_usd: float
) -> list[tuple[float, _Curve]]:
    """(USD, curve of the models that can be called while they are spent), in order."""
    usable = np.isfinite(quality) & np.isfinite(cost)
    q, c = np.where(usable, quality, np.nan), np.where(usable, cost, np.nan)
    if not worst_usd:
        curve = _curve(q, c)
        return [] if curve is None else [(usd, curve)]
    # The money at which a model can no longer be called.
    ends = np.maximum(0.0, np.asarray(worst_usd, float) - spare_usd)
    ends[ends < _SMALL * usd] = 0.0
    found = []
    for end in sorted(set(ends[ends < usd].tolist()), reverse=True):
        curve = _curve(q[:, ends <= end], c[:, ends <= end])
        if curve is not None:
            found.append((usd - end, curve))
        usd = end
    return found


def _curve(q: FloatArray, c: FloatArray) -> _Curve | None:
    """Over the upper hull of each request's (cost, quality), from its cheapest model on."""
    rows = np.isfinite(c).any(axis=1)
    n = int(rows.sum())
    if not n:
        return None
    q, c = q[rows], c[rows]
    now_c = np.nanmin(c, axis=1)
    now_q = np.where(c == now_c[:, None], q, -inf).max(axis=1)
    least = float(now_c.mean())
    slopes, dearer = [], []
    for _ in range(q.shape[1] - 1):
        gain, more = q - now_q[:, None], c - now_c[:, None]
        up = (gain > 0.0) & (more > _TINY_USD)
        slope = np.divide(gain, more, out=np.zeros_like(q), where=up)
        at = slope.argmax(axis=1)[:, None]
        best = np.take_along_axis(slope, at, 1)[:, 0]
        up = best > 0.0
        if not up.any():
            break
        q, c, at = q[up], c[up], at[up]
        next_c = np.take_along_axis(c, at, 1)[:, 0]
        slopes.append(best[up])
        dearer.append(next_c - now_c[up])
        now_c, now_q = next_c, np.take_along_axis(q, at, 1)[:, 0]
    if not slopes:
        return _Curve(np.zeros(0), np.array([least]))
    steps, more = np.concatenate(slopes), np.concatenate(dearer)
    order = np.argsort(-steps)
    return _Curve(steps[order], np.concatenate(([least], least + np.cumsum(more[order]) / n)))


def _between(curve: _Curve, at: int, each: float) -> Multiplier:
    """The mixture that spends `each`, between `at` steps and one less."""
    less, more = float(curve.spend[at - 1]), float(curve.spend[at])
    mix = 1.0 if more <= less else min(1.0, max(0.0, (each - less) / (more - less)))
    return Multiplier(_below(curve, at), _below(curve, at - 1), mix, each)


def _below(curve: _Curve, at: int) -> float:
    """A lambda with which the first `at` steps are taken and no more."""
    steps = curve.steps
    if at == 0:
        return 2.0 * float(steps[0])
    if at == len(steps):
        return 0.5 * float(steps[-1])
    return float(np.sqrt(steps[at - 1] * steps[at]))

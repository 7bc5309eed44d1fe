"""The multiplier of quality - lambda * cost that makes the remaining money last.

Everett 1963, "Generalized Lagrange multiplier method for solving problems of optimum allocation of
resources": for any lambda the argmax of quality - lambda * cost is the best that its own spend can buy. A
mixture of two lambdas of neighbouring spends is the best of the relaxed problem between them (the dual of
the fractional knapsack). A request steps up to a more expensive model once lambda falls below the step's
gain per cost, so the steps of all requests in order are the whole curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_TINY_USD = 1e-15
_MIN_STAGE = 0.003  # of the money: a smaller remainder is not a stage


class Multiplier(NamedTuple):
    """Two neighbouring multipliers and how to mix them.

    Both are 0 if the money pays for the best model of every request, and infinite if it does not pay for
    the cheapest.
    """

    low: float
    high: float
    mix: float
    """Probability of `low`."""
    usd_per_request: float
    """Mean cost of a request under the mixture."""


class _Curve(NamedTuple):
    """Mean cost of a request as lambda falls."""

    steps: FloatArray
    """(m,) lambdas at which a request steps up, descending."""
    spend: FloatArray
    """(m + 1,) mean cost below the first 0, 1, ... steps."""


def solve(quality: FloatArray, cost: FloatArray, usd_per_request: float) -> Multiplier:
    """Solve for the multiplier with which these requests spend `usd_per_request` on average.

    Args:
        quality: (n, k) predicted quality; NaN = not a candidate.
        cost: (n, k) predicted cost in USD.
        usd_per_request: The mean to spend.

    Returns:
        The mixture of multipliers.
    """
    return solve_remaining(quality, cost, usd_per_request, 1.0)


def solve_remaining(
    quality: FloatArray,
    cost: FloatArray,
    usd: float,
    requests: float,
    max_cost_usd: Sequence[float] = (),
    spare_usd: float = 0.0,
    max_late: float = inf,
) -> Multiplier:
    """Solve for the multiplier with which `requests` requests like these spend `usd`.

    The last of the money cannot be spent on a model whose maximum cost is large against it. So the money is
    spent in stages, each with the models that can still be called, and lambda is where the requests of all
    stages are as many as expected: what only cheap models can spend is left for as many requests as it
    pays for, and the rest is spent before.

    Args:
        quality: (n, k) predicted quality; NaN = not a candidate.
        cost: (n, k) predicted cost in USD.
        usd: The money to spend.
        requests: The requests to spend it on.
        max_cost_usd: (k,) what must be free for a call of each model; empty = no such condition.
        spare_usd: What is free beyond `usd`.
        max_late: The most requests that a stage gets beyond those it would get if all models could be
            called. Money that these do not need is left over.

    Returns:
        The mixture of multipliers.
    """
    if usd <= 0.0:
        return Multiplier(inf, inf, 1.0, 0.0)
    stages = _stages(quality, cost, usd, max_cost_usd, spare_usd)
    if not stages:
        return Multiplier(0.0, 0.0, 1.0, usd / requests)
    first_usd, curve = stages[0]
    spend = np.maximum(curve.spend, _TINY_USD)
    later = np.zeros(len(spend))
    for stage_usd, stage in stages[1:]:
        index = np.searchsorted(-stage.steps, -curve.steps, side="right")
        costs = np.maximum(stage.spend[np.concatenate(([0], index))], _TINY_USD)
        later += np.minimum(stage_usd / costs, stage_usd / spend + max_late)
    affordable = first_usd / spend + later  # requests, by the number of steps taken
    if affordable[-1] >= requests:
        return Multiplier(0.0, 0.0, 1.0, usd / requests)
    if affordable[0] <= requests:
        return Multiplier(inf, inf, 1.0, usd / requests)
    steps = int(np.searchsorted(-affordable, -requests))
    return _interpolate(curve, steps, first_usd / (requests - float(later[steps])))


def _stages(
    quality: FloatArray,
    cost: FloatArray,
    usd: float,
    max_cost_usd: Sequence[float],
    spare_usd: float,
) -> list[tuple[float, _Curve]]:
    """(USD, curve of the models that can be called while it is spent), in order."""
    usable = np.isfinite(quality) & np.isfinite(cost)
    q, c = np.where(usable, quality, np.nan), np.where(usable, cost, np.nan)
    if not max_cost_usd:
        curve = _build_curve(q, c)
        return [] if curve is None else [(usd, curve)]
    # The remaining money at which a model can no longer be called.
    ends = np.maximum(0.0, np.asarray(max_cost_usd, float) - spare_usd)
    ends[ends < _MIN_STAGE * usd] = 0.0
    stages = []
    for end in sorted(set(ends[ends < usd].tolist()), reverse=True):
        curve = _build_curve(q[:, ends <= end], c[:, ends <= end])
        if curve is not None:
            stages.append((usd - end, curve))
        usd = end
    return stages


def _build_curve(q: FloatArray, c: FloatArray) -> _Curve | None:
    """Walk the upper hull of each request's (cost, quality) from its cheapest model on."""
    rows = np.isfinite(c).any(axis=1)
    n = int(rows.sum())
    if not n:
        return None
    q, c = q[rows], c[rows]
    now_c = np.nanmin(c, axis=1)
    now_q = np.where(c == now_c[:, None], q, -inf).max(axis=1)
    least = float(now_c.mean())
    slopes, extra_costs = [], []
    for _ in range(q.shape[1] - 1):
        gain, extra = q - now_q[:, None], c - now_c[:, None]
        up = (gain > 0.0) & (extra > _TINY_USD)
        slope = np.divide(gain, extra, out=np.zeros_like(q), where=up)
        column = slope.argmax(axis=1)[:, None]
        best = np.take_along_axis(slope, column, 1)[:, 0]
        steps_up = best > 0.0
        if not steps_up.any():
            break
        q, c, column = q[steps_up], c[steps_up], column[steps_up]
        next_c = np.take_along_axis(c, column, 1)[:, 0]
        slopes.append(best[steps_up])
        extra_costs.append(next_c - now_c[steps_up])
        now_c, now_q = next_c, np.take_along_axis(q, column, 1)[:, 0]
    if not slopes:
        return _Curve(np.zeros(0), np.array([least]))
    steps, more = np.concatenate(slopes), np.concatenate(extra_costs)
    order = np.argsort(-steps)
    return _Curve(steps[order], np.concatenate(([least], least + np.cumsum(more[order]) / n)))


def _interpolate(curve: _Curve, steps: int, usd_per_request: float) -> Multiplier:
    """The mixture of `steps` steps and one less that spends `usd_per_request`."""
    less, more = float(curve.spend[steps - 1]), float(curve.spend[steps])
    mix = 1.0 if more <= less else min(1.0, max(0.0, (usd_per_request - less) / (more - less)))
    return Multiplier(
        _lambda_for(curve, steps), _lambda_for(curve, steps - 1), mix, usd_per_request
    )


def _lambda_for(curve: _Curve, taken: int) -> float:
    """A lambda with which the first `taken` steps are taken and no more."""
    steps = curve.steps
    if taken == 0:
        return 2.0 * float(steps[0])
    if taken == len(steps):
        return 0.5 * float(steps[-1])
    return float(np.sqrt(steps[taken - 1] * steps[taken]))

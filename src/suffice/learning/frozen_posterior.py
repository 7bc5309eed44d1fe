"""What a Thompson sampler knew at one moment, and sampling from it on the request path.

Exploring is bounded three ways: a share of the traffic, a share of the spend, and a gap in quality.
Wider exploration was measured to cost more than it gains (docs/concepts/learning.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_EXPLORE_SHARE = 0.03  # of the traffic
MAX_COST_SHARE = 0.01  # of the spend
NEW_VARIANCE = 0.04  # of the intercept of a model whose prediction is a guess: it errs by about 0.2

_FLOOR_PART = 0.5  # of both budgets is split evenly, the remaining_share by the posterior samples
_WIDTH = 8  # normals are prepared for so many candidates at a time
_WORD = 2**64 - 1
_MIN_USD = 1e-12  # a smaller cost counts as this

FloatArray = NDArray[np.float64]


class SampledAction(NamedTuple):
    """The model to take, and the probabilities with which each could have been taken."""

    action: int  # index of the candidate
    propensities: tuple[float, ...]  # (k,) summing to 1: log all of it
    explored: bool  # another candidate than the policy's choice


class SamplingLimits(NamedTuple):
    """The bounds on exploration; see `ThompsonSampler`."""

    explore_share: float
    max_cost_share: float
    max_quality_gap: float
    draws: int
    bound: float


class ModelPosterior(NamedTuple):
    """Of one model: reward = s + intercept + slope (s - centre), in units of rewards."""

    intercept: float
    slope: float
    centre: float
    intercept_var: float
    covariance: float
    slope_var: float


_NEW = ModelPosterior(0.0, 0.0, 0.0, NEW_VARIANCE, 0.0, 0.0)


class FrozenPosterior:
    """An immutable posterior per model.

    It is used by every request: plain numbers, and one pass of NumPy over prepared normals.
    """

    __slots__ = ("_known", "_limits")

    def __init__(self, known: Mapping[str, ModelPosterior], limits: SamplingLimits) -> None:
        self._known = known
        self._limits = limits
        _normals(limits.draws, _WIDTH)  # prepared here, so that no request waits for them

    def quality(
        self, models: Sequence[str], predicted_quality: Sequence[float]
    ) -> tuple[list[float], list[float]]:
        """Expected quality on one query: the predictions, corrected by recent feedback.

        Args:
            models: (k,) names.
            predicted_quality: (k,) what the policy predicts of each.

        Returns:
            Mean (k,) and standard deviation (k,).
        """
        means, deviations = [], []
        known = self._known
        for m, s in zip(models, predicted_quality, strict=True):
            intercept, slope, centre, intercept_var, covariance, slope_var = known.get(m, _NEW)
            distance = s - centre
            means.append(s + intercept + slope * distance)
            variance = intercept_var + distance * (2.0 * covariance + distance * slope_var)
            deviations.append(sqrt(variance) if variance > 0.0 else 0.0)
        return means, deviations

    def sample(
        self,
        models: Sequence[str],
        predicted_quality: Sequence[float],
        cost_usd: Sequence[float],
        chosen: int,
        *,
        seed: int,
        quality_per_usd: float = 0.0,
        spend_usd: float | None = None,
    ) -> SampledAction:
        """Sample the model to take.

        The expected cost of all models but the choice is at most max_cost_share * spend_usd, even
        if an explored model is cheaper than the choice.

        Args:
            models: (k,) names of the candidates.
            predicted_quality: (k,) what the policy predicts of each.
            cost_usd: (k,) predicted cost. A candidate of unknown cost (NaN) is never explored.
            chosen: Index of the policy's choice.
            seed: Of the sample.
            quality_per_usd: Lambda of the utility quality - lambda * cost.
            spend_usd: Mean cost per query of the route. None: the predicted cost of the choice.

        Returns:
            The action and all propensities.

        Raises:
            ValueError: `chosen` is out of range.
        """
        k = len(models)
        if not 0 <= chosen < k:
            raise ValueError(f"chosen: expected 0 to {k - 1}, got {chosen}")
        greedy = SampledAction(chosen, tuple([float(i == chosen) for i in range(k)]), False)
        limits = self._limits
        if k == 1 or limits.explore_share == 0.0:
            return greedy
        mean, deviation = self.quality(models, predicted_quality)
        floor = mean[chosen] - limits.max_quality_gap
        explorable = [
            i
            for i in range(k)
            if i != chosen
            and mean[i] + limits.bound * deviation[i] >= floor
            and 0.0 <= cost_usd[i] < inf  # false for NaN
        ]
        spend = cost_usd[chosen] if spend_usd is None else spend_usd
        budget_usd = limits.max_cost_share * spend if 0.0 < spend < inf else 0.0
        if not explorable or budget_usd == 0.0:
            return greedy
        best = self._best_shares(mean, deviation, cost_usd, quality_per_usd, [chosen, *explorable])
        propensities = self._propensities(chosen, explorable, best, cost_usd, budget_usd, k)
        # The choice comes first, so that the same seed explores less if less is worth exploring.
        u = _uniform(seed) - propensities[chosen]
        for i in explorable:
            if 0.0 <= u < propensities[i]:
                return SampledAction(i, tuple(propensities), True)
            u -= propensities[i]
        return SampledAction(chosen, tuple(propensities), False)

    def _propensities(
        self,
        chosen: int,
        explorable: list[int],
        best: list[float],
        cost_usd: Sequence[float],
        budget_usd: float,
        k: int,
    ) -> list[float]:
        """Split the share and the budget: one part evenly, the remaining_share by who is best how often."""
        share = self._limits.explore_share
        n = len(explorable)
        floor, floor_usd = _FLOOR_PART * share / n, _FLOOR_PART * budget_usd / n
        remaining_share, remaining_usd = (
            (1.0 - _FLOOR_PART) * share,
            (1.0 - _FLOOR_PART) * budget_usd,
        )
        total = max(sum(best), 1e-12)
        propensities, remaining = [0.0] * k, 1.0
        for i, part in zip(explorable, best, strict=True):
            usd = max(cost_usd[i], _MIN_USD)
            propensities[i] = min(floor, floor_usd / usd) + min(
                remaining_share * part, remaining_usd * part / (total * usd)
            )
            remaining -= propensities[i]
        propensities[chosen] = remaining
        return propensities

    def _best_shares(
        self,
        mean: list[float],
        deviation: list[float],
        cost: Sequence[float],
        quality_per_usd: float,
        candidates: list[int],
    ) -> list[float]:
        """Share of posterior samples in which each candidate but the first has most utility.

        On one query a sample of (intercept, slope) is a sample of the quality.

        Returns:
            (n_candidates - 1,).
        """
        draws = self._limits.draws
        normals = _normals(draws, -(-len(candidates) // _WIDTH) * _WIDTH)
        centre = [mean[i] for i in candidates]
        if quality_per_usd:
            # Only the choice may be of unknown cost; its utility is then minus infinity.
            usd = [cost[i] if cost[i] < inf else inf for i in candidates]
            centre = [m - quality_per_usd * c for m, c in zip(centre, usd, strict=True)]
        width = [deviation[i] for i in candidates]
        utility = normals[:, : len(candidates)] * width + centre
        wins: list[int] = np.bincount(utility.argmax(axis=1), minlength=len(candidates)).tolist()
        return [n / draws for n in wins[1:]]


@lru_cache(maxsize=64)
def _normals(draws: int, width: int) -> FloatArray:
    """(draws, width) standard normals, the same in each call.

    So propensities depend on the query alone. They are stratified: each column holds the same
    quantiles in another order.

    Returns:
        An array that callers must not change.
    """
    from statistics import NormalDist  # takes 5 ms to import

    quantiles = [NormalDist().inv_cdf((i + 0.5) / draws) for i in range(draws)]
    rng = np.random.default_rng(0)
    return np.ascontiguousarray(np.array([rng.permutation(quantiles) for _ in range(width)]).T)


def _uniform(seed: int) -> float:
    """In [0, 1), by splitmix64 (Steele, Lea and Flood 2014). A NumPy generator takes longer."""
    z = (seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53

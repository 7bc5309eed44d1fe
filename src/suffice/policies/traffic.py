"""A route's traffic as a policy sees it, and objectives that are solved over it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from math import nan
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import msgspec
import numpy as np

from suffice.types import Decision, FloatArray

STEPS = 100  # a table has STEPS + 1 entries: the 0 %, 1 %, ..., 100 % quantiles
_BISECTIONS = 60  # of the multiplier's interval: to about the last bit
Row = TypeVar("Row")


class _QuantilesFile(msgspec.Struct):
    quantiles: tuple[float, ...]


@cache
def default_quantiles() -> tuple[float, ...]:
    """The shipped quantiles of the default policy's score, (STEPS + 1,), ascending.

    Of a mixed chat workload (scripts/build_quantiles.py). A route's own traffic replaces it.

    Returns:
        The 0 %, 1 %, ..., 100 % quantiles.
    """
    raw = Path(__file__).with_name("quantiles.json").read_bytes()
    return msgspec.json.decode(raw, type=_QuantilesFile).quantiles


def quantile_rank(table: Sequence[float], score: float) -> float:
    """The share of traffic below `score`, in [0, 1], linear between the table's entries."""
    i = bisect_left(table, score)
    if i <= 0:
        return 0.0
    if i >= len(table):
        return 1.0
    low, high = table[i - 1], table[i]
    part = (score - low) / (high - low) if high > low else 1.0
    return (i - 1 + part) / (len(table) - 1)


def quantile_table(scores: Sequence[float]) -> tuple[float, ...]:
    """Compute the quantiles of a sample, linear between order statistics.

    Returns:
        (STEPS + 1,), ascending.

    Raises:
        ValueError: the sample is empty.
    """
    ordered = sorted(scores)
    if not ordered:
        raise ValueError("scores: expected at least one")
    table = []
    for step in range(STEPS + 1):
        position = step / STEPS * (len(ordered) - 1)
        i = int(position)
        low, high = ordered[i], ordered[min(i + 1, len(ordered) - 1)]
        table.append(low + (high - low) * (position - i))
    return tuple(table)


class _Window(Generic[Row]):
    """The last rows of a route's traffic: a ring of at most `size`.

    Args:
        size: rows to keep.
        every: rows between two updates of the policy.
    """

    def __init__(self, size: int, every: int) -> None:
        self._size = size
        self._every = every
        self._rows: list[Row] = []
        self._count = 0

    def _append(self, row: Row) -> bool:
        """Keep a row. Returns whether an update of the policy is due."""
        if len(self._rows) < self._size:
            self._rows.append(row)
        else:
            self._rows[self._count % self._size] = row
        self._count += 1
        return self._count % self._every == 0

    def _clear(self) -> None:
        self._rows.clear()
        self._count = 0


class ScoreWindow(_Window[float]):
    """Recent difficulty scores of one route. The shipped quantiles count as `prior` of them.

    Args:
        size: scores to keep.
        prior: scores that the shipped quantiles count for.
        every: scores between two updates of the policy.
    """

    def __init__(self, size: int = 2048, prior: int = 256, every: int = 256) -> None:
        super().__init__(size, every)
        self._prior = prior

    def add(self, decision: Decision) -> bool:
        """Record a decision. Returns whether the policy is due for `with_traffic`."""
        return decision.score is not None and self._append(decision.score)

    def quantiles(self) -> tuple[float, ...]:
        """The quantiles of the shipped scores and of those seen, (STEPS + 1,)."""
        base = default_quantiles()
        prior = [base[round(i / max(1, self._prior - 1) * STEPS)] for i in range(self._prior)]
        return quantile_table(prior + self._rows)


class PredictionSample(NamedTuple):
    """Predictions for each model on a sample of queries.

    Attributes:
        names: (k,) the models.
        quality: (m, k) predicted.
        cost: (m, k) predicted, USD; NaN = unknown.
    """

    names: tuple[str, ...]
    quality: FloatArray
    cost: FloatArray


class LagrangianSolution(NamedTuple):
    """The solution of `min_cost_for_quality`: a mixture of two argmax rules.

    Attributes:
        low: the rule argmax quality - low * cost, which meets the target.
        high: the rule argmax quality - high * cost, which misses it.
        share: the probability of the first rule.
        kept_quality: predicted mean quality over the reference's.
    """

    low: float
    high: float
    share: float
    kept_quality: float

    def choose(
        self, quality: Sequence[float], cost: Sequence[float]
    ) -> tuple[int, int, list[float]]:
        """The models that both rules take, and the utilities of the first rule."""
        utility = [q - self.low * c for q, c in zip(quality, cost, strict=True)]
        first = second = _argmax(utility, cost)
        if self.high != self.low:
            second = _argmax([q - self.high * c for q, c in zip(quality, cost, strict=True)], cost)
        return first, second, utility


def _argmax(utility: Sequence[float], cost: Sequence[float]) -> int:
    """The index of the largest utility; the cheapest of equals."""
    best = max(utility)
    if utility.count(best) > 1:
        return min((i for i, u in enumerate(utility) if u == best), key=cost.__getitem__)
    return utility.index(best)


def min_cost_for_quality(
    quality: FloatArray, cost: FloatArray, keep: float, reference: int
) -> LagrangianSolution:
    """Find the cheapest policy that keeps a share of the reference's mean predicted quality.

    For a multiplier, argmax of quality - multiplier * cost is optimal at its own quality (Everett
    1963). Quality falls with the multiplier in steps, so the exact solution mixes two rules.

    Args:
        quality: (m, k), finite.
        cost: (m, k), finite.
        keep: the share of the reference's mean quality.
        reference: its column.

    Returns:
        The mixture. Its two rules are the same if one of them is enough.
    """
    rows = np.arange(len(quality))
    # argmax takes the first of equals: the cheaper on average comes first.
    order = np.argsort(cost.mean(axis=0), kind="stable")
    reference_quality = float(quality[:, reference].mean())
    quality, cost = quality[:, order], cost[:, order]
    target = keep * reference_quality
    unit = max(float(cost.mean(axis=0).max()), 1e-12)  # USD: the most expensive model's mean cost

    def mean_quality(multiplier: float) -> float:
        chosen = np.argmax(quality - (multiplier / unit) * cost, axis=1)
        return float(quality[rows, chosen].mean())

    def solution(low: float, high: float, share: float, kept_quality: float) -> LagrangianSolution:
        kept_share = kept_quality / max(reference_quality, 1e-12)
        return LagrangianSolution(low / unit, high / unit, share, kept_share)

    low, high = 0.0, 1e9
    at_low, at_high = mean_quality(low), mean_quality(high)
    if at_high >= target:
        return solution(high, high, 1.0, at_high)
    if at_low <= target:  # only if the reference is not the best of every query
        return solution(0.0, 0.0, 1.0, at_low)
    for _ in range(_BISECTIONS):  # of the logarithm: the multiplier may be tiny
        middle = (high * max(low, 1e-9)) ** 0.5
        at_middle = mean_quality(middle)
        if at_middle >= target:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
        if high - low <= 1e-11 * high:
            break
    share = (target - at_high) / (at_low - at_high) if at_low > at_high else 1.0
    return solution(low, high, min(1.0, max(0.0, share)), target)


class PredictionWindow(_Window[tuple[tuple[float, ...], tuple[float, ...]]]):
    """Recent predictions of one route over its whole pool.

    Decisions over part of the pool are left out: they do not show the other models.

    Args:
        size: decisions to keep.
        every: decisions between two updates of the policy.
    """

    def __init__(self, size: int = 1024, every: int = 256) -> None:
        super().__init__(size, every)
        self.names: tuple[str, ...] = ()

    def add(self, decision: Decision) -> bool:
        """Record a decision. Returns whether the policy is due for `with_traffic`."""
        names = tuple([p.model for p in decision.predictions])
        if names != self.names:
            if len(names) < len(self.names):
                return False
            self.names = names
            self._clear()
        quality, cost = [], []
        for p in decision.predictions:
            if p.quality is None:
                return False
            quality.append(p.quality)
            cost.append(nan if p.cost_usd is None else p.cost_usd)
        return self._append((tuple(quality), tuple(cost)))

    def sample(self) -> PredictionSample:
        """The predictions seen, (m, k)."""
        shape = (-1, len(self.names))
        return PredictionSample(
            self.names,
            np.array([quality for quality, _ in self._rows]).reshape(shape),
            np.array([cost for _, cost in self._rows]).reshape(shape),
        )

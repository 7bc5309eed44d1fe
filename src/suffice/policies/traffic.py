"""A route's traffic as a policy sees it, and objectives that are solved over it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.types import Decision

FloatArray = NDArray[np.float64]
_BISECTIONS = 60  # halvings of the multiplier's interval: to about the last bit

STEPS = 100  # a table has STEPS + 1 entries: the 0 %, 1 %, ..., 100 % quantiles


@cache
def default_quantiles() -> tuple[float, ...]:
    """The shipped quantiles of the default policy's score, (STEPS + 1,), ascending."""
    raw = files(__package__).joinpath("quantiles.json").read_bytes()
    return tuple(msgspec.json.decode(raw)["quantiles"])


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
    """Quantiles (STEPS + 1,) of a sample, linear between order statistics."""
    s = sorted(scores)
    if not s:
        raise ValueError("scores: expected at least one")
    out = []
    for k in range(STEPS + 1):
        at = k / STEPS * (len(s) - 1)
        i = int(at)
        j = min(i + 1, len(s) - 1)
        out.append(s[i] + (s[j] - s[i]) * (at - i))
    return tuple(out)


class ScoreWindow:
    """Recent scores of one route: the shipped table counts as `prior` of them, the rest is traffic.

    Bounded: the last `keep` scores. `add` says when a fresh table is due.
    """

    def __init__(self, keep: int = 2048, prior: int = 256, every: int = 256) -> None:
        self._keep = keep
        self._prior = prior
        self._every = every
        self._recent: list[float] = []
        self._count = 0

    def add(self, decision: Decision) -> bool:
        score = decision.score
        if score is None:
            return False
        recent = self._recent
        if len(recent) < self._keep:
            recent.append(score)
        else:
            recent[self._count % self._keep] = score
        self._count += 1
        return self._count % self._every == 0

    def quantiles(self) -> tuple[float, ...]:
        base = default_quantiles()
        prior = [base[round(i / max(1, self._prior - 1) * STEPS)] for i in range(self._prior)]
        return quantile_table(prior + self._recent)


@dataclass(frozen=True)
class PredictionSample:
    """Predicted quality and cost (USD, NaN = unknown) of each model on a sample of queries.

    names: (k,). quality, cost: (m, k).
    """

    names: tuple[str, ...]
    quality: FloatArray
    cost: FloatArray


class LagrangianSolution(NamedTuple):
    """Solution of `min_cost_for_quality`: take argmax quality - low * cost a `share` of the time, else
    argmax quality - high * cost. kept: predicted mean quality over the reference's."""

    low: float
    high: float
    share: float
    kept: float

    def choose(self, quality: list[float], cost: list[float]) -> tuple[int, int]:
        """Indices under both multipliers; ties go to the cheaper model."""
        return _best(quality, cost, self.low), _best(quality, cost, self.high)


def _best(quality: list[float], cost: list[float], lam: float) -> int:
    best, most = 0, -np.inf
    for i, q in enumerate(quality):
        merit = q - lam * cost[i]
        if merit > most or (merit == most and cost[i] < cost[best]):
            best, most = i, merit
    return best


def min_cost_for_quality(
    quality: FloatArray, cost: FloatArray, keep: float, reference: int
) -> LagrangianSolution:
    """The cheapest policy whose mean predicted quality over a sample is at least `keep` x that of
    column `reference`.

    quality, cost: (m, k), finite. For a multiplier, argmax of quality - multiplier * cost is
    optimal at its own quality (Everett 1963, "Generalized Lagrange multiplier method"); quality
    falls with the multiplier in steps, so the exact solution mixes the two adjacent ones.
    """
    rows = np.arange(len(quality))
    # argmax takes the first of equals: the cheaper on average comes first.
    order = np.argsort(cost.mean(axis=0), kind="stable")
    reference = int(np.flatnonzero(order == reference)[0])
    quality, cost = quality[:, order], cost[:, order]
    target = keep * float(quality[:, reference].mean())
    # A cost unit of its own keeps the multiplier's scale sane: 1 = the mean cost of the dearest.
    unit = max(float(cost.mean(axis=0).max()), 1e-12)

    def mean(lam: float) -> float:
        pick = np.argmax(quality - (lam / unit) * cost, axis=1)
        return float(quality[rows, pick].mean())

    def done(low: float, high: float, share: float, kept: float) -> LagrangianSolution:
        scale = max(float(quality[:, reference].mean()), 1e-12)
        return LagrangianSolution(low / unit, high / unit, share, kept / scale)

    low, high = 0.0, 1e9
    at_low, at_high = mean(low), mean(high)
    if at_high >= target:
        return done(high, high, 1.0, at_high)
    if at_low <= target:  # only where the reference is not the best of every query
        return done(0.0, 0.0, 1.0, at_low)
    for _ in range(_BISECTIONS):
        # By halves of the logarithm once both ends are positive: the answer may be tiny.
        mid = (high * max(low, 1e-9)) ** 0.5
        at = mean(mid)
        if at >= target:
            low, at_low = mid, at
        else:
            high, at_high = mid, at
        if high - low <= 1e-11 * high:
            break
    share = (target - at_high) / (at_low - at_high) if at_low > at_high else 1.0
    return done(low, high, min(1.0, max(0.0, share)), target)


class PredictionWindow:
    """Recent predictions of one route: the last `keep` decisions over its whole pool. `add` says
    when a fresh picture is due. Decisions over part of the pool say nothing about the rest."""

    def __init__(self, keep: int = 1024, every: int = 256) -> None:
        self.names: tuple[str, ...] = ()
        self._keep = keep
        self._every = every
        self._recent: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
        self._count = 0

    def add(self, decision: Decision) -> bool:
        names = tuple([p.model for p in decision.predictions])
        if names != self.names:
            if len(names) < len(self.names):
                return False
            self.names = names
            self._recent.clear()
            self._count = 0
        quality, cost = [], []
        for p in decision.predictions:
            if p.quality is None:
                return False
            quality.append(p.quality)
            cost.append(np.nan if p.cost_usd is None else p.cost_usd)
        row = (tuple(quality), tuple(cost))
        if len(self._recent) < self._keep:
            self._recent.append(row)
        else:
            self._recent[self._count % self._keep] = row
        self._count += 1
        return self._count % self._every == 0

    def sample(self) -> PredictionSample:
        """What was seen, (m, k)."""
        return PredictionSample(
            self.names,
            np.array([q for q, _ in self._recent]).reshape(-1, len(self.names)),
            np.array([c for _, c in self._recent]).reshape(-1, len(self.names)),
        )

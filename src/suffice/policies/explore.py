"""Narrow exploration: Thompson sampling over [1, offline score], with propensities one can log.

Each model's mean reward is intercept + slope x what the trained policy predicts (the offline
score); the slope is known to be near 1. So what is explored is only by how much the policy is wrong
about a model, not what it knows about queries: two numbers a model, learned from a few dozen labels.
The intercept is taken at the mean of the scores that were labelled, so that what is not known of the
slope does not loosen the level: else a handful of unlucky labels shut out a good model for good.

Exploring is bounded three ways: a share of the traffic, a share of the spend, and a gate on quality.
Wide exploration was measured to cost more than it brings (docs/concepts/learning.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from .state import misfit, pack, unpack

SCHEMA = "explorer-1"
MAX_SHARE = 0.03  # of the traffic
MAX_COST_SHARE = 0.01  # of the spend

_SLOPE_MEAN, _SLOPE_VARIANCE = 1.0, 0.01
_KNOWN_VARIANCE = 0.0009  # of the level: an offline score that was learned errs by about 0.03
_NEW_VARIANCE = 0.04  # one that is a guess errs by about 0.2
_NOISE, _NOISE_LABELS = 0.06, 10.0  # prior variance of a reward around its mean, and its weight
_MOST_STALE = 0.005  # of its evidence is what an arm keeps however long it was not taken
_FLOOR_PART = 0.5  # of both budgets goes to the floors, the rest by the posterior draws

Floats = NDArray[np.float64]


class Draw(NamedTuple):
    """action: index of the candidate to take. propensities: (k,) the probability with which each
    was going to be taken, summing to 1: log all of it. explored: another than the policy's choice."""

    action: int
    propensities: tuple[float, ...]
    explored: bool


@dataclass
class _Arm:
    """Statistics of one model. gram: sums of w, w s, w s^2; moment: sums of w r, w s r."""

    variance: float  # prior variance of the level
    updated: int = 0  # the count of all updates when this arm had its last
    labels: float = 0.0  # what its labels count for now
    w: float = 0.0
    ws: float = 0.0
    wss: float = 0.0
    wr: float = 0.0
    wsr: float = 0.0


class Explorer:
    """Learns each model's intercept and slope over the offline score; draws narrow explorations.

    models: those whose offline score was learned; any other is new and starts wide around its
    offline score. share: of the traffic that may be explored, at most 0.03. cost_share: of the
    spend that exploring may cost, at most 0.01. gate: how far below the choice's expected quality a
    candidate's upper bound may lie. draws: from the posterior, 16 to 64. forget: what a label is
    worth after each further label of the same model. stale: what a model's evidence is worth after
    each label of any other. bound: deviations of the upper bound (1.645: one-sided 95 %).

    Raises ValueError that names the argument. Pure: the seed is an argument, `draw` changes nothing.
    """

    def __init__(
        self,
        models: Iterable[str] = (),
        *,
        share: float = 0.02,
        cost_share: float = MAX_COST_SHARE,
        gate: float = 0.05,
        draws: int = 32,
        forget: float = 0.997,
        stale: float = 0.9995,
        bound: float = 1.645,
    ) -> None:
        _within("share", share, 0.0, MAX_SHARE)
        _within("cost_share", cost_share, 0.0, MAX_COST_SHARE)
        _within("gate", gate, 0.0, 1.0)
        _within("draws", draws, 16, 64)
        _within("forget", forget, 0.5, 1.0)
        _within("stale", stale, 0.5, 1.0)
        _within("bound", bound, 0.0, 10.0)
        self.share = share
        self.cost_share = cost_share
        self.gate = gate
        self.draws = int(draws)
        self.forget = forget
        self.stale = stale
        self.bound = bound
        self._arms = {m: _Arm(_KNOWN_VARIANCE) for m in models}
        self._updates = 0
        self._squares = 0.0  # forgotten sum of squared residuals, and of their weights
        self._weight = 0.0

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._arms)

    def labels(self, model: str) -> float:
        """What the model's labels count for after forgetting; 0 for one never seen."""
        arm = self._arms.get(model)
        return 0.0 if arm is None else arm.w

    def update(self, model: str, offline: float, reward: float, weight: float = 1.0) -> None:
        """One label: what the policy had predicted at decision time, and what came of it.

        offline: predicted quality. reward: score in [0, 1]. weight: in [0, 1], what the label's
        source counts for. Raises ValueError where a number is out of range; nothing is then learned.
        """
        _within("offline", offline, -10.0, 10.0)
        _within("reward", reward, 0.0, 1.0)
        _within("weight", weight, 0.0, 1.0)
        if weight == 0.0:
            return
        offline, reward, weight = float(offline), float(reward), float(weight)
        arm = self._arms.setdefault(model, _Arm(_NEW_VARIANCE, self._updates))
        mean, _ = self._expect(arm, offline)
        keep = self.forget**weight
        self._squares = self._squares * keep + weight * (reward - mean) ** 2
        self._weight = self._weight * keep + weight
        # What had gone stale by now stays so; evidence only comes back by labels.
        keep *= self._fresh(arm)
        arm.w = arm.w * keep + weight
        arm.ws = arm.ws * keep + weight * offline
        arm.wss = arm.wss * keep + weight * offline * offline
        arm.wr = arm.wr * keep + weight * reward
        arm.wsr = arm.wsr * keep + weight * offline * reward
        arm.labels += weight
        self._updates += 1
        arm.updated = self._updates

    def retain(self, models: Iterable[str]) -> None:
        """Forget every model that is not among these: it was removed from the route."""
        kept = set(models)
        self._arms = {m: a for m, a in self._arms.items() if m in kept}

    def quality(self, models: Sequence[str], offline: Sequence[float]) -> tuple[Floats, Floats]:
        """(mean (k,), deviation (k,)) of each model's quality on a query whose offline scores these
        are: the policy's predictions, corrected by what feedback has shown lately."""
        pairs = [self._expect(self._arm(m), s) for m, s in zip(models, offline, strict=True)]
        return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])

    def draw(
        self,
        models: Sequence[str],
        offline: Sequence[float],
        cost_usd: Sequence[float],
        chosen: int,
        *,
        seed: int,
        quality_per_usd: float = 0.0,
        spend_usd: float | None = None,
        start: bool = True,
        bypass: bool = False,
    ) -> Draw:
        """Which candidate to take, and the probability with which each could have been.

        offline, cost_usd: (k,) predicted quality and USD of each candidate on this query; one whose
        cost is not known (NaN) is never explored. chosen: index of the policy's own choice.
        quality_per_usd: lambda of quality - lambda * cost. spend_usd: the route's mean USD a query,
        of which exploring costs at most `cost_share`; None: the choice's own cost. start: this is
        the start of a conversation; elsewhere, and on `bypass`, the choice is certain.

        The expected cost of all that is not the choice is at most cost_share x spend_usd, also where
        the explored model is cheaper.
        """
        k = len(models)
        if not 0 <= chosen < k:
            raise ValueError(f"chosen: expected 0 to {k - 1}, got {chosen}")
        certain = Draw(chosen, tuple(float(i == chosen) for i in range(k)), False)
        if bypass or not start or k == 1 or self.share == 0.0:
            return certain
        mean, deviation = self.quality(models, offline)
        cost = np.asarray(cost_usd, float)
        able = mean + self.bound * deviation >= mean[chosen] - self.gate
        able &= np.isfinite(cost) & (cost >= 0.0)
        able[chosen] = False
        n = int(able.sum())
        if not n:
            return certain
        rng = np.random.default_rng(seed)
        u = float(rng.random())
        spend = float(cost[chosen]) if spend_usd is None else spend_usd
        budget = self.cost_share * spend if np.isfinite(spend) and spend > 0.0 else 0.0
        # Floors: an equal part of both budgets each, so a dearer model has the lower floor.
        unit = np.maximum(cost, 1e-12)
        floor = np.minimum(_FLOOR_PART * self.share / n, _FLOOR_PART * budget / (n * unit))
        best = self._best(mean, deviation, cost, quality_per_usd, able, chosen, rng)
        rest = 1.0 - _FLOOR_PART
        part = best / max(float(best[able].sum()), 1e-12)
        drawn = np.minimum(rest * self.share * best, rest * budget * part / unit)
        p = np.where(able, floor + drawn, 0.0)
        p[chosen] = 1.0 - float(p.sum())
        # The choice first, so that the same seed explores less as less is worth exploring.
        order = [chosen, *(i for i in range(k) if i != chosen)]
        at = int(np.searchsorted(np.cumsum(p[order]), u, side="right"))
        action = order[min(at, k - 1)]
        if p[action] == 0.0:  # u fell on the rounding of the sum
            action = chosen
        return Draw(action, tuple(p.tolist()), action != chosen)

    def _best(
        self,
        mean: Floats,
        deviation: Floats,
        cost: Floats,
        quality_per_usd: float,
        able: NDArray[np.bool_],
        chosen: int,
        rng: np.random.Generator,
    ) -> Floats:
        """(k,) share of the posterior draws in which each candidate is worth most. On one query a
        draw of (level, slope) is a draw of their sum at its score."""
        value = mean + deviation * rng.standard_normal((self.draws, len(mean)))
        if quality_per_usd:
            value = value - quality_per_usd * np.where(np.isfinite(cost), cost, np.inf)
        here = able.copy()
        here[chosen] = True
        value = np.where(here, value, -np.inf)
        winner = np.argmax(value, axis=1)
        # Where even the choice is worth -inf (its cost is unknown), the draw is the choice's.
        winner[~np.isfinite(value.max(axis=1))] = chosen
        return np.bincount(winner, minlength=len(mean)) / self.draws

    def _arm(self, model: str) -> _Arm:
        arm = self._arms.get(model)
        return _Arm(_NEW_VARIANCE, self._updates) if arm is None else arm

    def _fresh(self, arm: _Arm) -> float:
        """What the arm's evidence is still worth: less, the longer it was not taken."""
        return float(max(self.stale ** (self._updates - arm.updated), _MOST_STALE))

    def _expect(self, arm: _Arm, s: float) -> tuple[float, float]:
        """(mean, deviation) of the reward's mean at the offline score s.

        Bayesian regression on [1, s - c] about the mean c of the labelled scores, where the two are
        independent: level ~ N(c, variance), slope ~ N(1, 0.01), and the data's cross term is 0.
        """
        if arm.w <= 0.0:
            return s, sqrt(arm.variance)
        noise = (self._squares + _NOISE * _NOISE_LABELS) / (self._weight + _NOISE_LABELS)
        f = self._fresh(arm) / noise
        c = arm.ws / arm.w
        spread = max(arm.wss - c * arm.ws, 0.0)
        level_p = 1.0 / arm.variance + f * arm.w
        slope_p = 1.0 / _SLOPE_VARIANCE + f * spread
        level = (c / arm.variance + f * arm.wr) / level_p
        slope = (_SLOPE_MEAN / _SLOPE_VARIANCE + f * (arm.wsr - c * arm.wr)) / slope_p
        far = s - c
        return level + slope * far, sqrt(1.0 / level_p + far * far / slope_p)

    def state(self) -> bytes:
        """All of it, for a snapshot; the same state gives the same bytes."""
        card = _Card(
            tuple(self._arms), self.share, self.cost_share, self.gate, self.draws,
            self.forget, self.stale, self.bound, self._updates, self._squares, self._weight,
        )  # fmt: skip
        rows = [
            (a.variance, a.updated, a.labels, a.w, a.ws, a.wss, a.wr, a.wsr)
            for a in self._arms.values()
        ]
        return pack(SCHEMA, card, {"arms": np.array(rows, float).reshape(-1, 8)})

    @classmethod
    def from_state(cls, raw: bytes) -> Explorer:
        """Raises ArtifactError: cut, changed, of another schema."""
        card, arrays = unpack(raw, SCHEMA, _Card)
        arms = arrays.get("arms")
        if arms is None or arms.shape != (len(card.models), 8):
            raise misfit(SCHEMA, f"{len(card.models)} models")
        try:
            out = cls(
                share=card.share, cost_share=card.cost_share, gate=card.gate, draws=card.draws,
                forget=card.forget, stale=card.stale, bound=card.bound,
            )  # fmt: skip
        except ValueError as error:
            raise misfit(SCHEMA, str(error)) from None
        for model, row in zip(card.models, arms.tolist(), strict=True):
            out._arms[model] = _Arm(row[0], int(row[1]), *row[2:])
        out._updates, out._squares, out._weight = card.updates, card.squares, card.weight
        return out


class _Card(msgspec.Struct, frozen=True):
    models: tuple[str, ...]
    share: float
    cost_share: float
    gate: float
    draws: int
    forget: float
    stale: float
    bound: float
    updates: int
    squares: float
    weight: float


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value!r}")

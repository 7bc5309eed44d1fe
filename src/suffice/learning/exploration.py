"""Narrow exploration: Thompson sampling over [1, offline score], with propensities one can log.

Each model's mean reward is intercept + slope x what the trained policy predicts (the offline
score); the slope is known to be near 1. So what is explored is only by how much the policy is wrong
about a model, not what it knows about queries: two numbers a model, learned from a few dozen labels.
The intercept is taken at the mean of the scores that were labelled, so that what is not known of the
slope does not loosen the level: else a handful of unlucky labels shut out a good model for good.

Forgetting widens what is believed and does not move it (recursive least squares with exponential
forgetting; Haykin, "Adaptive Filter Theory", ch. 10): a model that was found worse stays worse until
labels say otherwise, but a few of them are enough after a while, since it is uncertain again.

Exploring is bounded three ways: a share of the traffic, a share of the spend, and a gate on quality.
Wide exploration was measured to cost more than it brings (docs/concepts/online-learning.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, sqrt
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.artifacts.npz import mismatch_error, pack_state, unpack_state

SCHEMA = "explorer-2"
MAX_SHARE = 0.03  # of the traffic
MAX_COST_SHARE = 0.01  # of the spend

_SLOPE_VARIANCE = 0.01  # around 1
_KNOWN_VARIANCE = 0.0009  # of the level: an offline score that was learned errs by about 0.03
_NEW_VARIANCE = 0.04  # one that is a guess errs by about 0.2
_NOISE, _NOISE_LABELS = 0.06, 10.0  # prior variance of a reward around its mean, and its weight
_FLOOR_PART = 0.5  # of both budgets goes to the floors, the rest by the posterior draws
_WIDTH = 8  # prepared normals are for so many candidates at a time
_WORD = 2**64 - 1

FloatArray = NDArray[np.float64]


class SampledAction(NamedTuple):
    """action: index of the candidate to take. propensities: (k,) the probability with which each
    was going to be taken, summing to 1: log all of it. explored: another than the policy's choice."""

    action: int
    propensities: tuple[float, ...]
    explored: bool


@dataclass
class _Arm:
    """One model: reward = s + level + slope (s - centre) at offline score s, both about 0."""

    # Variances and covariance; in units of the rewards' noise as soon as there are labels, so that a
    # noise that turns out larger does not leave old labels with more say than new ones.
    p_level: float
    p_both: float = 0.0
    p_slope: float = _SLOPE_VARIANCE
    level: float = 0.0
    slope: float = 0.0
    centre: float = 0.0  # mean of the labelled offline scores
    w: float = 0.0  # what the labels count for after forgetting
    updated: int = 0  # the count of all updates when this arm had its last


class _Line(NamedTuple):
    """What is believed of one model, in units of rewards: reward = s + level + slope (s - centre),
    with the variances of both and their covariance."""

    level: float
    slope: float
    centre: float
    p_level: float
    p_both: float
    p_slope: float


_NEW = _Line(0.0, 0.0, 0.0, _NEW_VARIANCE, 0.0, 0.0)


class FrozenPosterior:
    """What an `ThompsonSampler` believed at one moment, and the draws from it. Nothing in it changes.

    This is on the path of requests: plain numbers, and one pass of NumPy over prepared draws.
    """

    __slots__ = ("_bound", "_cost_share", "_draws", "_gate", "_lines", "_share")

    def __init__(
        self,
        lines: Mapping[str, _Line],
        *,
        share: float,
        cost_share: float,
        gate: float,
        draws: int,
        bound: float,
    ) -> None:
        self._lines = lines
        self._share = share
        self._cost_share = cost_share
        self._gate = gate
        self._draws = draws
        self._bound = bound
        _normals(draws, _WIDTH)  # so that no request has to wait for them

    def quality(
        self, models: Sequence[str], offline: Sequence[float]
    ) -> tuple[list[float], list[float]]:
        """(mean (k,), deviation (k,)), see `ThompsonSampler.quality`."""
        means, deviations = [], []
        lines = self._lines
        for m, s in zip(models, offline, strict=True):
            level, slope, centre, p_level, p_both, p_slope = lines.get(m, _NEW)
            far = s - centre
            means.append(s + level + slope * far)
            variance = p_level + far * (2.0 * p_both + far * p_slope)
            deviations.append(sqrt(variance) if variance > 0.0 else 0.0)
        return means, deviations

    def certain(self, k: int, chosen: int) -> SampledAction:
        """The choice, for sure."""
        if not 0 <= chosen < k:
            raise ValueError(f"chosen: expected 0 to {k - 1}, got {chosen}")
        return SampledAction(chosen, tuple([float(i == chosen) for i in range(k)]), False)

    def sample(
        self,
        models: Sequence[str],
        offline: Sequence[float],
        cost_usd: Sequence[float],
        chosen: int,
        *,
        seed: int,
        quality_per_usd: float = 0.0,
        spend_usd: float | None = None,
    ) -> SampledAction:
        """Which candidate to take, and the probability with which each could have been.

        offline, cost_usd: (k,) predicted quality and USD of each candidate on this query; one whose
        cost is not known (NaN) is never explored. chosen: index of the policy's own choice.
        quality_per_usd: lambda of quality - lambda * cost. spend_usd: the route's mean USD a query,
        of which exploring costs at most `cost_share`; None: the choice's own cost.

        The expected cost of all that is not the choice is at most cost_share x spend_usd, also where
        the explored model is cheaper.
        """
        k, share = len(models), self._share
        certain = self.certain(k, chosen)
        if k == 1 or share == 0.0:
            return certain
        mean, deviation = self.quality(models, offline)
        bar, bound = mean[chosen] - self._gate, self._bound
        able = [
            i
            for i in range(k)
            if i != chosen
            and mean[i] + bound * deviation[i] >= bar
            and 0.0 <= cost_usd[i] < inf  # false for NaN
        ]
        if not able:
            return certain
        spend = cost_usd[chosen] if spend_usd is None else spend_usd
        budget = self._cost_share * spend if 0.0 < spend < inf else 0.0
        if budget == 0.0:
            return certain
        best = self._best(mean, deviation, cost_usd, quality_per_usd, [chosen, *able])
        # Floors: an equal part of both budgets each, so a dearer model has the lower floor.
        floor, floor_usd = _FLOOR_PART * share / len(able), _FLOOR_PART * budget / len(able)
        rest, rest_usd = (1.0 - _FLOOR_PART) * share, (1.0 - _FLOOR_PART) * budget
        won = max(sum(best), 1e-12)
        p, left = [0.0] * k, 1.0
        for i, part in zip(able, best, strict=True):
            unit = max(cost_usd[i], 1e-12)
            p[i] = min(floor, floor_usd / unit) + min(rest * part, rest_usd * part / (won * unit))
            left -= p[i]
        p[chosen] = left
        # The choice first, so that the same seed explores less as less is worth exploring.
        u = _uniform(seed) - left
        for i in able:
            if 0.0 <= u < p[i]:
                return SampledAction(i, tuple(p), True)
            u -= p[i]
        return SampledAction(chosen, tuple(p), False)

    def _best(
        self,
        mean: list[float],
        deviation: list[float],
        cost: Sequence[float],
        quality_per_usd: float,
        here: list[int],
    ) -> list[float]:
        """Share of the posterior draws in which each candidate of `here`, but the first, is worth
        most. On one query a draw of (level, slope) is a draw of their sum at its score."""
        drawn = _normals(self._draws, -(-len(here) // _WIDTH) * _WIDTH)
        centre = [mean[i] for i in here]
        if quality_per_usd:
            # Only the choice may be of unknown cost: it is then worth nothing.
            usd = [cost[i] if cost[i] < inf else inf for i in here]
            centre = [m - quality_per_usd * c for m, c in zip(centre, usd, strict=True)]
        value = drawn[:, : len(here)] * [deviation[i] for i in here] + centre
        won: list[int] = np.bincount(value.argmax(axis=1), minlength=len(here)).tolist()
        return [n / self._draws for n in won[1:]]


@lru_cache(maxsize=64)
def _normals(draws: int, width: int) -> FloatArray:
    """(draws, width) of a standard normal, the same each time: how likely a candidate is to be taken
    is then up to the query alone, and no request waits for fresh ones. Stratified: each column is
    the same quantiles, in an order of its own."""
    from statistics import NormalDist  # 5 ms to import

    quantiles = [NormalDist().inv_cdf((i + 0.5) / draws) for i in range(draws)]
    rng = np.random.default_rng(0)
    return np.ascontiguousarray(np.array([rng.permutation(quantiles) for _ in range(width)]).T)


def _uniform(seed: int) -> float:
    """In [0, 1), by splitmix64 (Steele, Lea and Flood 2014): setting up a generator takes longer."""
    z = (seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


class ThompsonSampler:
    """Learns each model's intercept and slope over the offline score; draws narrow explorations.

    models: those whose offline score was learned; any other is new and starts wide around its
    offline score. share: of the traffic that may be explored, at most 0.03. cost_share: of the
    spend that exploring may cost, at most 0.01. gate: how far below the choice's expected quality a
    candidate's upper bound may lie. draws: from the posterior, 16 to 64. forget: what a label is
    worth after each further label of the same model. stale: what a model's evidence is worth after
    each label of another. bound: deviations of the upper bound (1.645: one-sided 95 %).

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
        stale: float = 0.995,
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
        self._posterior: FrozenPosterior | None = None  # until something is learned or forgotten

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
        self._posterior = None
        offline, reward, weight = float(offline), float(reward), float(weight)
        arm = self._arms.setdefault(model, _Arm(_NEW_VARIANCE, updated=self._updates))
        keep = self.forget**weight
        if arm.w > 0.0:
            arm.p_level, arm.p_both, arm.p_slope = self._grown(arm, self._stale_by(arm) / keep)
        else:
            arm.p_level, arm.p_slope = arm.p_level / self._noise(), arm.p_slope / self._noise()
            arm.centre = offline
        mean = offline + arm.level + arm.slope * (offline - arm.centre)
        self._squares = self._squares * keep + weight * (reward - mean) ** 2
        self._weight = self._weight * keep + weight
        # The centre moves to the new mean; level and its variance are those at the new one.
        arm.w = arm.w * keep + weight
        step = (offline - arm.centre) * weight / arm.w
        arm.centre += step
        arm.level += arm.slope * step
        arm.p_level += 2.0 * step * arm.p_both + step * step * arm.p_slope
        arm.p_both += step * arm.p_slope
        # One step of recursive least squares; a label of weight w has 1 / w of the noise.
        far = offline - arm.centre
        row_level = arm.p_level + far * arm.p_both
        row_slope = arm.p_both + far * arm.p_slope
        total = row_level + far * row_slope + 1.0 / weight
        error = reward - offline - arm.level - arm.slope * far
        arm.level += row_level / total * error
        arm.slope += row_slope / total * error
        arm.p_level = max(arm.p_level - row_level * row_level / total, 1e-12)
        arm.p_both -= row_level * row_slope / total
        arm.p_slope = max(arm.p_slope - row_slope * row_slope / total, 1e-12)
        self._updates += 1
        arm.updated = self._updates

    def retain(self, models: Iterable[str]) -> None:
        """Forget every model that is not among these: it was removed from the route."""
        kept = set(models)
        self._posterior = None
        self._arms = {m: a for m, a in self._arms.items() if m in kept}

    def posterior(self) -> FrozenPosterior:
        """What is believed now. It stays as it is while the explorer goes on learning, so requests
        may draw from it on another thread."""
        if self._posterior is None:
            known = {m: self._line(arm) for m, arm in self._arms.items()}
            self._posterior = FrozenPosterior(
                known, share=self.share, cost_share=self.cost_share, gate=self.gate,
                draws=self.draws, bound=self.bound,
            )  # fmt: skip
        return self._posterior

    def quality(
        self, models: Sequence[str], offline: Sequence[float]
    ) -> tuple[FloatArray, FloatArray]:
        """(mean (k,), deviation (k,)) of each model's quality on a query whose offline scores these
        are: the policy's predictions, corrected by what feedback has shown lately."""
        mean, deviation = self.posterior().quality(models, offline)
        return np.array(mean), np.array(deviation)

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
    ) -> SampledAction:
        """`FrozenPosterior.draw` from what is believed now. start: this is the start of a conversation;
        elsewhere, and on `bypass`, the choice is certain."""
        belief = self.posterior()
        if bypass or not start:
            return belief.certain(len(models), chosen)
        return belief.sample(
            models, offline, cost_usd, chosen,
            seed=seed, quality_per_usd=quality_per_usd, spend_usd=spend_usd,
        )  # fmt: skip

    def _noise(self) -> float:
        """Variance of a reward around its mean."""
        return (self._squares + _NOISE * _NOISE_LABELS) / (self._weight + _NOISE_LABELS)

    def _stale_by(self, arm: _Arm) -> float:
        """By how much the arm's variances have grown since its last label."""
        return float(min(self.stale ** (arm.updated - self._updates), 1e9))

    def _grown(self, arm: _Arm, by: float) -> tuple[float, float, float]:
        """The variances times `by`, never above those of a model that nobody has labelled."""
        noise = self._noise()
        level = min(arm.p_level * by, max(_NEW_VARIANCE / noise, arm.p_level))
        slope = min(arm.p_slope * by, max(_SLOPE_VARIANCE / noise, arm.p_slope))
        both = arm.p_both * sqrt((level / arm.p_level) * (slope / arm.p_slope))
        return level, both, slope

    def _line(self, arm: _Arm) -> _Line:
        if arm.w <= 0.0:
            return _Line(0.0, 0.0, 0.0, arm.p_level, 0.0, 0.0)
        level, both, slope = self._grown(arm, self._stale_by(arm))
        noise = self._noise()
        return _Line(arm.level, arm.slope, arm.centre, level * noise, both * noise, slope * noise)

    def state(self) -> bytes:
        """All of it, for a snapshot; the same state gives the same bytes."""
        card = _Card(
            tuple(self._arms), self.share, self.cost_share, self.gate, self.draws,
            self.forget, self.stale, self.bound, self._updates, self._squares, self._weight,
        )  # fmt: skip
        rows = [
            (a.p_level, a.p_both, a.p_slope, a.level, a.slope, a.centre, a.w, a.updated)
            for a in self._arms.values()
        ]
        return pack_state(SCHEMA, card, {"arms": np.array(rows, float).reshape(-1, 8)})

    @classmethod
    def from_state(cls, raw: bytes, *, share: float | None = None) -> ThompsonSampler:
        """share: of now; None = that of the state. Raises ArtifactError: cut, changed, of another
        schema."""
        card, arrays = unpack_state(raw, SCHEMA, _Card)
        arms = arrays.get("arms")
        if arms is None or arms.shape != (len(card.models), 8):
            raise mismatch_error(SCHEMA, f"{len(card.models)} models")
        try:
            out = cls(
                share=card.share if share is None else share,
                cost_share=card.cost_share, gate=card.gate, draws=card.draws,
                forget=card.forget, stale=card.stale, bound=card.bound,
            )  # fmt: skip
        except ValueError as error:
            raise mismatch_error(SCHEMA, str(error)) from None
        for model, row in zip(card.models, arms.tolist(), strict=True):
            p_level, p_both, p_slope, level, slope, centre, w, updated = row
            out._arms[model] = _Arm(p_level, p_both, p_slope, level, slope, centre, w, int(updated))
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

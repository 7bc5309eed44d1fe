"""Thompson sampling over what a policy predicts, with propensities that can be logged.

The reward of model m is modelled as intercept + slope * s, where s is the quality that the policy
predicts and the slope is known to be near 1. So exploration learns by how much the policy is wrong
about a model: two numbers per model, from a few dozen labels. The intercept is taken at the mean
of the labelled predictions, so that uncertainty of the slope does not widen it there.

Forgetting widens the posterior and does not move it (recursive least squares with exponential
forgetting; Haykin, "Adaptive Filter Theory", chapter 10). A model that was found worse stays worse
until labels say otherwise; a few of them suffice after a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

import msgspec
import numpy as np

from suffice.artifacts.npz import mismatch_error, pack_state, unpack_state
from suffice.learning.frozen_posterior import (
    MAX_COST_SHARE,
    MAX_EXPLORE_SHARE,
    NEW_VARIANCE,
    FrozenPosterior,
    ModelPosterior,
    SamplingLimits,
)

SCHEMA = "explorer-2"

_SLOPE_VARIANCE = 0.01  # around 1
_KNOWN_VARIANCE = 0.0009  # of the intercept: a learned prediction errs by about 0.03
_NOISE, _NOISE_LABELS = 0.06, 10.0  # prior variance of a reward around its mean, and its weight
_MIN_VARIANCE = 1e-12
_MAX_STALENESS = 1e9  # factor by which variances may grow
_ARM_COLUMNS = 8


@dataclass
class _Arm:
    """One model: reward = s + intercept + slope (s - centre), both about 0.

    The variances are in units of the rewards' noise once there are labels, so that a noise that
    turns out larger does not give old labels more weight than new ones.
    """

    intercept_var: float
    covariance: float = 0.0
    slope_var: float = _SLOPE_VARIANCE
    intercept: float = 0.0
    slope: float = 0.0
    centre: float = 0.0  # mean of the labelled predictions
    weight: float = 0.0  # of the labels, after forgetting
    updated: int = 0  # number of all updates at the last one of this model


class ThompsonSampler:
    """Learns each model's intercept and slope over the predicted quality.

    Pure: no clock and no randomness. Requests sample from `posterior()`.

    Args:
        models: Those whose predictions were learned. Any other model is new and starts with a wide
            posterior around its predicted quality.
        explore_share: Of the traffic that may be explored, at most 0.03.
        max_cost_share: Of the spend that exploring may cost, at most 0.01.
        max_quality_gap: How far below the choice's expected quality the upper bound of an explored
            model may be.
        draws: Samples of the posterior, 16 to 64.
        forget: Weight of a label after each further label of the same model.
        stale: Factor on a model's evidence after each label of another model.
        bound: Standard deviations of the upper bound; 1.645 is the one-sided 95 % bound.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        models: Iterable[str] = (),
        *,
        explore_share: float = 0.02,
        max_cost_share: float = MAX_COST_SHARE,
        max_quality_gap: float = 0.05,
        draws: int = 32,
        forget: float = 0.997,
        stale: float = 0.995,
        bound: float = 1.645,
    ) -> None:
        _check_range("explore_share", explore_share, 0.0, MAX_EXPLORE_SHARE)
        _check_range("max_cost_share", max_cost_share, 0.0, MAX_COST_SHARE)
        _check_range("max_quality_gap", max_quality_gap, 0.0, 1.0)
        _check_range("draws", draws, 16, 64)
        _check_range("forget", forget, 0.5, 1.0)
        _check_range("stale", stale, 0.5, 1.0)
        _check_range("bound", bound, 0.0, 10.0)
        self.limits = SamplingLimits(
            explore_share, max_cost_share, max_quality_gap, int(draws), bound
        )
        self.forget = forget
        self.stale = stale
        self._arms = {m: _Arm(_KNOWN_VARIANCE) for m in models}
        self._updates = 0
        self._squares = 0.0  # decayed sum of squared residuals
        self._weight = 0.0  # and of their weights
        self._posterior: FrozenPosterior | None = None  # valid until the next update

    @property
    def models(self) -> tuple[str, ...]:
        """The models that were labelled or learned."""
        return tuple(self._arms)

    def labels(self, model: str) -> float:
        """The weight of a model's labels, after forgetting; 0 for an unknown model."""
        arm = self._arms.get(model)
        return 0.0 if arm is None else arm.weight

    def update(
        self, model: str, predicted_quality: float, reward: float, weight: float = 1.0
    ) -> None:
        """Learn from one label.

        Args:
            model: The model that answered.
            predicted_quality: What the policy predicted at decision time.
            reward: The score, in [0, 1].
            weight: What the label counts for, in [0, 1].

        Raises:
            ValueError: A number is out of range. Nothing is learned then.
        """
        _check_range("predicted_quality", predicted_quality, -10.0, 10.0)
        _check_range("reward", reward, 0.0, 1.0)
        _check_range("weight", weight, 0.0, 1.0)
        if weight == 0.0:
            return
        self._posterior = None
        s, reward, weight = float(predicted_quality), float(reward), float(weight)
        arm = self._arms.setdefault(model, _Arm(NEW_VARIANCE, updated=self._updates))
        keep = self.forget**weight
        if arm.weight > 0.0:
            factor = self._staleness(arm) / keep
            arm.intercept_var, arm.covariance, arm.slope_var = self._grown(arm, factor)
        else:
            noise = self._noise()
            arm.intercept_var, arm.slope_var = arm.intercept_var / noise, arm.slope_var / noise
            arm.centre = s
        mean = s + arm.intercept + arm.slope * (s - arm.centre)
        self._squares = self._squares * keep + weight * (reward - mean) ** 2
        self._weight = self._weight * keep + weight
        _move_centre(arm, s, weight, keep)
        _least_squares_step(arm, s, reward, weight)
        self._updates += 1
        arm.updated = self._updates

    def retain(self, models: Iterable[str]) -> None:
        """Forget every model that is not among these."""
        served = set(models)
        self._posterior = None
        self._arms = {m: arm for m, arm in self._arms.items() if m in served}

    def posterior(self) -> FrozenPosterior:
        """The posterior now, as an immutable value that requests on other threads may sample."""
        if self._posterior is None:
            known = {m: self._model_posterior(arm) for m, arm in self._arms.items()}
            self._posterior = FrozenPosterior(known, self.limits)
        return self._posterior

    def _noise(self) -> float:
        """Variance of a reward around its mean."""
        return (self._squares + _NOISE * _NOISE_LABELS) / (self._weight + _NOISE_LABELS)

    def _staleness(self, arm: _Arm) -> float:
        """Factor by which the model's variances have grown since its last label."""
        return float(min(self.stale ** (arm.updated - self._updates), _MAX_STALENESS))

    def _grown(self, arm: _Arm, factor: float) -> tuple[float, float, float]:
        """The variances times `factor`, never above those of a model without labels."""
        noise = self._noise()
        intercept = min(arm.intercept_var * factor, max(NEW_VARIANCE / noise, arm.intercept_var))
        slope = min(arm.slope_var * factor, max(_SLOPE_VARIANCE / noise, arm.slope_var))
        growth = sqrt((intercept / arm.intercept_var) * (slope / arm.slope_var))
        return intercept, arm.covariance * growth, slope

    def _model_posterior(self, arm: _Arm) -> ModelPosterior:
        if arm.weight <= 0.0:
            return ModelPosterior(0.0, 0.0, 0.0, arm.intercept_var, 0.0, 0.0)
        intercept, covariance, slope = self._grown(arm, self._staleness(arm))
        noise = self._noise()
        return ModelPosterior(
            arm.intercept, arm.slope, arm.centre,
            intercept * noise, covariance * noise, slope * noise,
        )  # fmt: skip

    def state(self) -> bytes:
        """Everything. The same state gives the same bytes."""
        limits = self.limits
        header = _StateHeader(
            models=tuple(self._arms),
            explore_share=limits.explore_share,
            max_cost_share=limits.max_cost_share,
            max_quality_gap=limits.max_quality_gap,
            draws=limits.draws,
            forget=self.forget,
            stale=self.stale,
            bound=limits.bound,
            updates=self._updates,
            squares=self._squares,
            weight=self._weight,
        )
        rows = [
            (a.intercept_var, a.covariance, a.slope_var, a.intercept, a.slope, a.centre,
             a.weight, a.updated)
            for a in self._arms.values()
        ]  # fmt: skip
        arms = np.array(rows, float).reshape(-1, _ARM_COLUMNS)
        return pack_state(SCHEMA, header, {"arms": arms})

    @classmethod
    def from_state(cls, raw: bytes, *, explore_share: float | None = None) -> ThompsonSampler:
        """Restore a state, with another share if given. Raises ArtifactError if it is damaged."""
        header, arrays = unpack_state(raw, SCHEMA, _StateHeader)
        arms = arrays.get("arms")
        if arms is None or arms.shape != (len(header.models), _ARM_COLUMNS):
            raise mismatch_error(SCHEMA, f"{len(header.models)} models")
        try:
            sampler = cls(
                explore_share=header.explore_share if explore_share is None else explore_share,
                max_cost_share=header.max_cost_share,
                max_quality_gap=header.max_quality_gap,
                draws=header.draws,
                forget=header.forget,
                stale=header.stale,
                bound=header.bound,
            )
        except ValueError as error:
            raise mismatch_error(SCHEMA, str(error)) from None
        for model, row in zip(header.models, arms.tolist(), strict=True):
            arm = sampler._arms[model] = _Arm(*row)
            arm.updated = int(arm.updated)
        sampler._updates = header.updates
        sampler._squares, sampler._weight = header.squares, header.weight
        return sampler


def _move_centre(arm: _Arm, s: float, weight: float, keep: float) -> None:
    """Move the centre to the new mean of predictions, and the intercept's posterior with it."""
    arm.weight = arm.weight * keep + weight
    step = (s - arm.centre) * weight / arm.weight
    arm.centre += step
    arm.intercept += arm.slope * step
    arm.intercept_var += 2.0 * step * arm.covariance + step * step * arm.slope_var
    arm.covariance += step * arm.slope_var


def _least_squares_step(arm: _Arm, s: float, reward: float, weight: float) -> None:
    """One step of recursive least squares; a label of weight w has 1 / w of the noise."""
    distance = s - arm.centre
    gain_intercept = arm.intercept_var + distance * arm.covariance
    gain_slope = arm.covariance + distance * arm.slope_var
    total = gain_intercept + distance * gain_slope + 1.0 / weight
    error = reward - s - arm.intercept - arm.slope * distance
    arm.intercept += gain_intercept / total * error
    arm.slope += gain_slope / total * error
    arm.intercept_var = max(
        arm.intercept_var - gain_intercept * gain_intercept / total, _MIN_VARIANCE
    )
    arm.covariance -= gain_intercept * gain_slope / total
    arm.slope_var = max(arm.slope_var - gain_slope * gain_slope / total, _MIN_VARIANCE)


class _StateHeader(msgspec.Struct, frozen=True):
    models: tuple[str, ...]
    explore_share: float = msgspec.field(name="share")
    max_cost_share: float = msgspec.field(name="cost_share")
    max_quality_gap: float = msgspec.field(name="gate")
    draws: int
    forget: float
    stale: float
    bound: float
    updates: int
    squares: float
    weight: float


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low:g} to {high:g}, got {value!r}")

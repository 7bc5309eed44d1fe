"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from suffice import features
from suffice.artifacts import estimators
from suffice.artifacts.estimators import Estimator
from suffice.lab.data.table import FloatArray
from suffice.lab.predictors.base import Batch
from suffice.lab.predictors.bayes import (
    PSEUDO_LABELS,
)
from suffice.policies.priors import GRID, DifficultyScorer, price_priors, quality_curves


def shrunken_means(score: FloatArray, price: FloatArray) -> FloatArray:
    """(k,) mean scores, each with PSEUDO_LABELS labels of a prior: the mean of all models, moved by
    the rank of its price."""
    known = ~np.isnan(score)
    n = known.sum(axis=0)
    total = np.where(known, score, 0.0).sum(axis=0)
    prior = np.array(price_priors([None if np.isnan(p) else float(p) for p in price]))
    if n.sum():
        prior = float(total.sum() / n.sum()) + prior - prior.mean()
    return np.asarray((total + PSEUDO_LABELS * prior) / (n + PSEUDO_LABELS))


def mean_costs(cost_usd: FloatArray | None, price: FloatArray) -> FloatArray:
    """(k,) mean cost of each model where labelled, else its price."""
    if cost_usd is None or not len(cost_usd):
        return price
    known = ~np.isnan(cost_usd)
    mean = np.where(known, cost_usd, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known.any(axis=0), mean, price)


class DefaultPredictor:
    """The base install's default policy: length and model priors, no labels."""

    name = "default"

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
    ) -> Self:
        prior = price_priors([None if np.isnan(p) else float(p) for p in price])
        self.curves_ = np.array(quality_curves(tuple(prior)))
        self.cost_ = price
        return self

    def _score(self, x: Batch) -> FloatArray:
        scorer = DifficultyScorer(features.SIGNAL_NAMES)
        return np.array([scorer.score(s) for s in x.signals.tolist()])

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        order = np.argsort(np.argsort(self._score(x), kind="stable"), kind="stable")
        u = (order + 0.5) / max(1, len(x))
        quality = self.curves_[:, np.rint(u * GRID).astype(int)].T
        return quality, np.broadcast_to(self.cost_, quality.shape)

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        return self._score(x)


class LengthPredictor(DefaultPredictor):
    """The plainest baseline: the log length of the last human ask."""

    name = "length"

    def _score(self, x: Batch) -> FloatArray:
        return x.signals[:, 0].astype(float)


class ConstantPredictor:
    """Best constant: shrunken means, the same for every query. Random mixing of what it says is the
    zero router."""

    name = "constant"

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
    ) -> Self:
        self.mean_ = shrunken_means(score, price)
        self.cost_ = mean_costs(cost_usd, price)
        return self

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        shape = (len(x), len(self.mean_))
        return np.broadcast_to(self.mean_, shape), np.broadcast_to(self.cost_, shape)

    def estimator(self, models: Sequence[str]) -> Estimator:
        """What was learned, as an artifact holds it."""
        unknown = np.full(len(self.mean_), np.nan)
        return estimators.ConstantEstimator(
            tuple(models), self.mean_, np.asarray(self.cost_), unknown
        )

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        return np.zeros(len(x))

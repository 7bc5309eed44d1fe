"""Baselines: the default policy without labels, prompt length, and the best constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from suffice import features
from suffice.artifacts import estimators
from suffice.artifacts.estimators import Estimator
from suffice.lab.data.table import FloatArray
from suffice.lab.predictors.base import Batch, Predictor
from suffice.lab.predictors.bayes import PSEUDO_LABELS
from suffice.policies.priors import GRID, DifficultyScorer, price_priors, quality_curves


def shrunken_means(
    score: FloatArray, price: FloatArray, sample_weight: FloatArray | None = None
) -> FloatArray:
    """Mean score of each model, shrunk towards a prior worth `PSEUDO_LABELS` labels.

    The prior is the mean of all models, moved by the rank of the model's price.

    Args:
        score: (n, k), NaN if unknown.
        price: (k,), NaN if unknown.
        sample_weight: (n,) how many labels each query counts as.

    Returns:
        (k,).
    """
    weight = np.where(np.isnan(score), 0.0, _column(sample_weight))
    labels = weight.sum(axis=0)
    total = (np.nan_to_num(score) * weight).sum(axis=0)
    prior = np.array(price_priors([None if np.isnan(p) else float(p) for p in price]))
    if labels.sum():
        prior = float(total.sum() / labels.sum()) + prior - prior.mean()
    return np.asarray((total + PSEUDO_LABELS * prior) / (labels + PSEUDO_LABELS))


def mean_costs(
    cost_usd: FloatArray | None, price: FloatArray, sample_weight: FloatArray | None = None
) -> FloatArray:
    """(k,) mean cost of each model if labelled, else its price."""
    if cost_usd is None or not len(cost_usd):
        return price
    weight = np.where(np.isnan(cost_usd), 0.0, _column(sample_weight))
    labels = weight.sum(axis=0)
    mean = (np.nan_to_num(cost_usd) * weight).sum(axis=0) / np.where(labels > 0, labels, 1.0)
    return np.where(labels > 0, mean, price)


def _column(sample_weight: FloatArray | None) -> FloatArray:
    return np.ones((1, 1)) if sample_weight is None else sample_weight[:, None]


class DefaultPredictor(Predictor):
    """The default policy of the base install: length and model priors, no labels."""

    name = "default"

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
        sample_weight: FloatArray | None = None,
    ) -> Self:
        """Read the prices; labels are ignored."""
        prior = price_priors([None if np.isnan(p) else float(p) for p in price])
        self.curves_ = np.array(quality_curves(tuple(prior)))
        self.cost_ = price
        return self

    def _difficulty(self, x: Batch) -> FloatArray:
        scorer = DifficultyScorer(features.SIGNAL_NAMES)
        return np.array([scorer.score(s) for s in x.signals.tolist()])

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        """Read the quality curves at each query's rank of difficulty among all of `x`."""
        rank = np.argsort(np.argsort(self._difficulty(x), kind="stable"), kind="stable")
        quantile = (rank + 0.5) / max(1, len(x))
        quality = self.curves_[:, np.rint(quantile * GRID).astype(int)].T
        return quality, np.broadcast_to(self.cost_, quality.shape)

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        """The difficulty of each query."""
        return self._difficulty(x)


class LengthPredictor(DefaultPredictor):
    """Baseline: the log length of the last user message."""

    name = "length"

    def _difficulty(self, x: Batch) -> FloatArray:
        return x.signals[:, 0].astype(float)


class ConstantPredictor(Predictor):
    """Best constant: shrunken means, the same for every query.

    Random mixing of its choices is the zero router.
    """

    name = "constant"

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
        sample_weight: FloatArray | None = None,
    ) -> Self:
        """Average the labels."""
        self.mean_ = shrunken_means(score, price, sample_weight)
        self.cost_ = mean_costs(cost_usd, price, sample_weight)
        return self

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        """The means, for every query."""
        shape = (len(x), len(self.mean_))
        return np.broadcast_to(self.mean_, shape), np.broadcast_to(self.cost_, shape)

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        """The same score for every query."""
        return np.zeros(len(x))

    def estimator(self, models: Sequence[str]) -> Estimator:
        """The means as an artifact stores them."""
        unknown = np.full(len(self.mean_), np.nan)
        return estimators.ConstantEstimator(
            tuple(models), self.mean_, np.asarray(self.cost_), unknown
        )

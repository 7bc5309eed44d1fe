"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import log
from typing import Self

import numpy as np

from suffice import features
from suffice.artifacts import estimators
from suffice.artifacts.estimators import Estimator
from suffice.lab.data.table import FloatArray
from suffice.lab.predictors.base import Batch, design_matrix
from suffice.lab.predictors.baselines import mean_costs, shrunken_means
from suffice.lab.predictors.bayes import (
    NULL_LOG_ODDS,
    BayesianModelAveragingRegression,
)
from suffice.learning.regression import CLIP, VECTOR_SCALE
from suffice.policies.priors import SLOPE, length_slope

FULL_NULL_PRIOR_LABELS = (
    100  # labels up to which a pair's head doubts in full that anything but length matters
)


MIN_MULTI_MODEL_LABELS = 300  # labelled queries below which three or more models get constants only


_VARIANCE = 0.3  # of a right/wrong gap between two models: the unit in which priors are stated


@cache
def prior_spectrum() -> FloatArray:
    """(n_dimensions,): prior variance of each dimension's weight as a multiple of the width.

    The token table is half whitened, which suits looking neighbours up. A regression on few labels
    does better to expect most of the directions in which prompts differ most: the variance of each
    dimension over training prompts, scaled so that the width keeps its meaning.
    """
    variance = features.vector_variance()
    return np.asarray(variance * variance.sum() / (variance**2).sum())


class LinearHead:
    """The safe head: gaps of quality to a reference model, and log cost, each a Bayesian linear
    regression with evidence-averaged prior widths. With no labels it ranks exactly by length.

    Learned: `mean_` (k,) shrunken means; `reference_`, a column; `weights_` (p, 2k + 1) and
    `intercept_` (2k + 1,) over `design`: k gaps to the reference, the reference's own level, k log
    costs; `has_cost_`; `constant_`, whether labels were too few for more than means.
    """

    name = "trained"

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
    ) -> Self:
        k = score.shape[1]
        self.mean_ = shrunken_means(score, price)
        self.reference_ = self._reference(score, price)
        ref = self.reference_
        labelled = int(((~np.isnan(score)).sum(axis=1) >= 2).sum())
        self.constant_ = k >= 3 and labelled < MIN_MULTI_MODEL_LABELS
        d = design_matrix(x)
        s = x.signals.shape[1]
        p = d.shape[1]
        self.weights_ = np.zeros((p, 2 * k + 1))
        self.intercept_ = np.zeros(2 * k + 1)
        self.intercept_[:k] = self.mean_ - self.mean_[ref]
        self.intercept_[k] = self.mean_[ref]
        if not self.constant_:
            gap = score - score[:, [ref]]
            slope = self._slopes(price)
            others = [j for j in range(k) if j != ref]
            targets = np.concatenate([gap[:, others], score[:, [ref]]], axis=1)
            means = np.append((self.mean_ - self.mean_[ref])[others], self.mean_[ref])
            slopes = np.append(slope[others], 0.0)
            w, b = self._regress(d, s, targets, means, slopes, doubt=k == 2)
            self.weights_[:, [*others, k]] = w
            self.intercept_[[*others, k]] = b
        base = mean_costs(cost_usd, price)
        self.cost_ = base
        self.has_cost_ = cost_usd is not None and bool((base > 0).all()) and labelled >= 50
        if cost_usd is not None and self.has_cost_:
            positive = np.where(cost_usd > 0, cost_usd, np.nan)
            # A model without costs of its own has only its price to go by, and so then have all.
            self.has_cost_ = bool(((~np.isnan(positive)).sum(axis=0) >= 10).all())
            if self.has_cost_:
                self.weights_[:, k + 1 :], self.intercept_[k + 1 :] = fit_log_heads(x, positive)
        return self

    def _reference(self, score: FloatArray, price: FloatArray) -> int:
        if len(price) == 2 and not np.isnan(price).any() and price[0] != price[1]:
            return int(np.argmax(price))  # of a pair, the dear model is what the other is held to
        # The best, of those with labels enough to hold the others to.
        labels = (~np.isnan(score)).sum(axis=0)
        return int(np.argmax(np.where(labels >= labels.max() / 2, self.mean_, -np.inf)))

    def _slopes(self, price: FloatArray) -> FloatArray:
        """(k,) prior slopes of each gap on log length: what a weaker model lacks grows with it."""
        gap = self.mean_ - self.mean_[self.reference_]
        if len(gap) == 2:
            return np.array([0.0 if j == self.reference_ else -SLOPE for j in range(2)])
        return np.array([length_slope(g) for g in gap.tolist()])

    @staticmethod
    def _regress(
        d: FloatArray,
        n_signals: int,
        targets: FloatArray,
        mean: FloatArray,
        slope: FloatArray,
        doubt: bool = False,
    ) -> tuple[FloatArray, FloatArray]:
        """Weights (p, h) and intercepts (h,). Each target is brought to the variance in whose unit
        the priors are stated, so that graded scores and dollars are treated alike.

        doubt: nothing but length is likely at first. For pairs, which learn from the first label;
        more models have FEW for that, and costs are known to differ.
        """
        unit = np.ones(targets.shape[1])
        told = (~np.isnan(targets)).sum(axis=0) >= 10
        variance = np.nanvar(targets[:, told], axis=0)
        unit[told] = np.sqrt(np.where(variance > 1e-8, variance, _VARIANCE) / _VARIANCE)
        # The doubt is one of few labels: from DOUBT on its odds fall as labels grow. Chosen on pairs
        # of the training tables: never more than .005 below length, and no brake beyond 300 labels.
        odds = (
            NULL_LOG_ODDS - log(max(1.0, len(targets) / FULL_NULL_PRIOR_LABELS))
            if doubt
            else -np.inf
        )
        head = BayesianModelAveragingRegression(n_signals - 1, prior_spectrum(), odds).fit(
            d, targets / unit, mean / unit, slope, np.full(len(unit), _VARIANCE)
        )
        return head.weights_ * unit, head.intercept_ * unit

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        k = len(self.mean_)
        y = self.intercept_ + design_matrix(x) @ self.weights_
        quality = y[:, :k] + y[:, [k]]
        cost = np.exp(y[:, k + 1 :]) if self.has_cost_ else np.broadcast_to(self.cost_, (len(x), k))
        return quality, cost

    def estimator(self, models: Sequence[str]) -> Estimator:
        """What was learned, as an artifact holds it: qualities instead of gaps and a level."""
        k = len(self.mean_)
        mean, deviation = features.feature_scaler()
        weights = self.weights_[:, :k] + self.weights_[:, [k]]
        intercept = self.intercept_[:k] + self.intercept_[k]
        if self.has_cost_:
            weights = np.concatenate([weights, self.weights_[:, k + 1 :]], axis=1)
            intercept = np.append(intercept, self.intercept_[k + 1 :])
        s = len(mean)
        return estimators.LinearEstimator(
            tuple(models), mean, deviation, CLIP, weights[:s], weights[s:] * VECTOR_SCALE,
            intercept, np.asarray(self.cost_, float), self.has_cost_,
        )  # fmt: skip

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        quality, _ = self.predict(x)
        return np.asarray(quality[:, strong] - quality[:, weak])


def fit_gap_head(
    x: Batch, target: FloatArray, mean: float, slope: float
) -> tuple[FloatArray, float]:
    """Weights (p,) over `design` and the intercept for one target (n,), with prior mean and prior
    slope on standardised log length."""
    w, b = LinearHead._regress(
        design_matrix(x), x.signals.shape[1], target[:, None], np.array([mean]), np.array([slope])
    )
    return w[:, 0], float(b[0])


def fit_log_heads(x: Batch, positive: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weights (p, k) and intercepts (k,) over `design` for the log of positive amounts (n, k), NaN
    where unknown, scaled so that the mean of their exponentials is right on what was given."""
    d = design_matrix(x)
    logs = np.log(positive)
    centre = np.nanmean(logs, axis=0)
    w, b = LinearHead._regress(d, x.signals.shape[1], logs, centre, np.zeros(logs.shape[1]))
    told = np.exp(b + d @ w)
    seen = ~np.isnan(positive)
    ratio = np.where(seen, positive, 0).sum(axis=0) / np.where(seen, told, 0).sum(axis=0)
    return w, b + np.log(ratio)

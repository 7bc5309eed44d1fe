"""The evidence-averaged linear head: quality and log cost by Bayesian linear regression."""

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
from suffice.lab.predictors.base import Batch, Predictor, design_matrix
from suffice.lab.predictors.baselines import mean_costs, shrunken_means
from suffice.lab.predictors.bayes import NULL_LOG_ODDS, BayesianModelAveragingRegression
from suffice.learning.regression import CLIP, VECTOR_SCALE
from suffice.policies.priors import SLOPE, length_slope

# Up to this many labels a pair's head has the full prior odds that only length matters.
FULL_NULL_PRIOR_LABELS = 100
# Below this many labelled queries three or more models get constants only.
MIN_MULTI_MODEL_LABELS = 300
_MIN_COST_LABELS = 50  # labelled queries below which cost is a constant
_MIN_HEAD_LABELS = 10  # values of a target below which it is not scaled or not learned
_GAP_VARIANCE = 0.3  # of a right/wrong gap between two models: the unit in which priors are stated


@cache
def prior_spectrum() -> FloatArray:
    """Prior variance of each dimension's weight as a multiple of the prior width.

    The embedding is half whitened, which suits nearest neighbours. A regression on few labels does
    better if it expects most of the directions in which prompts differ most. The spectrum is the
    variance of each dimension over training prompts, scaled so that the width keeps its meaning.

    Returns:
        (n_dimensions,).
    """
    variance = features.vector_variance()
    return np.asarray(variance * variance.sum() / (variance**2).sum())


class LinearHead(Predictor):
    """Gaps of quality to a reference model, and log costs, each by Bayesian linear regression.

    The prior widths are averaged by their evidence. Without labels queries are ranked by length.

    Attributes:
        mean_: (k,) shrunken means.
        reference_: Column of the reference model.
        weights_: (p, 2k + 1) over `design_matrix`: k gaps to the reference, the quality of the
            reference, k log costs.
        intercept_: (2k + 1,).
        has_cost_: Whether log costs were learned.
        constant_: Whether labels were too few for more than means.
    """

    name = "trained"

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
        sample_weight: FloatArray | None = None,
    ) -> Self:
        """Fit the heads."""
        k = score.shape[1]
        self.mean_ = shrunken_means(score, price, sample_weight)
        self.reference_ = self._choose_reference(score, price)
        ref = self.reference_
        labelled = int(((~np.isnan(score)).sum(axis=1) >= 2).sum())
        self.constant_ = k >= 3 and labelled < MIN_MULTI_MODEL_LABELS
        design = design_matrix(x)
        self.weights_ = np.zeros((design.shape[1], 2 * k + 1))
        self.intercept_ = np.zeros(2 * k + 1)
        self.intercept_[:k] = self.mean_ - self.mean_[ref]
        self.intercept_[k] = self.mean_[ref]
        if not self.constant_:
            others = [j for j in range(k) if j != ref]
            gaps = (score - score[:, [ref]])[:, others]
            weights, intercept = _regress(
                design,
                x.signals.shape[1],
                np.concatenate([gaps, score[:, [ref]]], axis=1),
                np.append((self.mean_ - self.mean_[ref])[others], self.mean_[ref]),
                np.append(self._prior_slopes()[others], 0.0),
                sample_weight,
                null_prior=k == 2,
            )
            self.weights_[:, [*others, k]] = weights
            self.intercept_[[*others, k]] = intercept
        self.cost_ = mean_costs(cost_usd, price, sample_weight)
        self.has_cost_ = False
        if cost_usd is not None and (self.cost_ > 0).all() and labelled >= _MIN_COST_LABELS:
            positive = np.where(cost_usd > 0, cost_usd, np.nan)
            # If one model has no costs, only its price is known, and then all models use prices.
            if ((~np.isnan(positive)).sum(axis=0) >= _MIN_HEAD_LABELS).all():
                self.has_cost_ = True
                self.weights_[:, k + 1 :], self.intercept_[k + 1 :] = fit_log_heads(
                    x, positive, sample_weight
                )
        return self

    def _choose_reference(self, score: FloatArray, price: FloatArray) -> int:
        if len(price) == 2 and not np.isnan(price).any() and price[0] != price[1]:
            return int(np.argmax(price))  # of a pair, the expensive model is the reference
        # Else the best model among those with enough labels to compare the others to.
        labels = (~np.isnan(score)).sum(axis=0)
        return int(np.argmax(np.where(labels >= labels.max() / 2, self.mean_, -np.inf)))

    def _prior_slopes(self) -> FloatArray:
        """(k,) prior slopes of each gap on log length: the deficit of a weaker model grows with it."""
        gap = self.mean_ - self.mean_[self.reference_]
        if len(gap) == 2:
            return np.array([0.0 if j == self.reference_ else -SLOPE for j in range(2)])
        return np.array([length_slope(g) for g in gap.tolist()])

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        """The linear heads."""
        k = len(self.mean_)
        y = self.intercept_ + design_matrix(x) @ self.weights_
        quality = y[:, :k] + y[:, [k]]
        cost = np.exp(y[:, k + 1 :]) if self.has_cost_ else np.broadcast_to(self.cost_, (len(x), k))
        return quality, cost

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        """The predicted gap."""
        quality, _ = self.predict(x)
        return np.asarray(quality[:, strong] - quality[:, weak])

    def estimator(self, models: Sequence[str]) -> Estimator:
        """The heads as an artifact stores them: qualities instead of gaps and a reference quality."""
        k = len(self.mean_)
        mean, std = features.feature_scaler()
        weights = self.weights_[:, :k] + self.weights_[:, [k]]
        intercept = self.intercept_[:k] + self.intercept_[k]
        if self.has_cost_:
            weights = np.concatenate([weights, self.weights_[:, k + 1 :]], axis=1)
            intercept = np.append(intercept, self.intercept_[k + 1 :])
        n_signals = len(mean)
        return estimators.LinearEstimator(
            tuple(models), mean, std, CLIP, weights[:n_signals], weights[n_signals:] * VECTOR_SCALE,
            intercept, np.asarray(self.cost_, float), self.has_cost_,
        )  # fmt: skip


def _regress(
    design: FloatArray,
    n_signals: int,
    targets: FloatArray,
    mean: FloatArray,
    slope: FloatArray,
    sample_weight: FloatArray | None,
    null_prior: bool = False,
) -> tuple[FloatArray, FloatArray]:
    """Fit h targets (n, h) with prior means and slopes (h,).

    Each target is scaled to the variance in whose unit the priors are stated, so that graded scores
    and dollars are treated alike. `null_prior`: at first it is likely that only length matters. Pairs
    need that, as they learn from the first label; more models have `MIN_MULTI_MODEL_LABELS` instead,
    and costs are known to differ.

    Returns:
        Weights (p, h) and intercepts (h,).
    """
    unit = np.ones(targets.shape[1])
    scaled = (~np.isnan(targets)).sum(axis=0) >= _MIN_HEAD_LABELS
    variance = np.nanvar(targets[:, scaled], axis=0)
    unit[scaled] = np.sqrt(np.where(variance > 1e-8, variance, _GAP_VARIANCE) / _GAP_VARIANCE)
    # The prior odds are for few labels: from FULL_NULL_PRIOR_LABELS on they fall as labels grow. They
    # were chosen on pairs of the training tables: never more than .005 below length, and no effect
    # beyond 300 labels.
    log_odds = -np.inf
    if null_prior:
        log_odds = NULL_LOG_ODDS - log(max(1.0, len(targets) / FULL_NULL_PRIOR_LABELS))
    head = BayesianModelAveragingRegression(n_signals - 1, prior_spectrum(), log_odds).fit(
        design, targets / unit, mean / unit, slope, np.full(len(unit), _GAP_VARIANCE), sample_weight
    )
    return head.weights_ * unit, head.intercept_ * unit


def fit_gap_head(
    x: Batch,
    gap: FloatArray,
    mean: float,
    slope: float,
    sample_weight: FloatArray | None = None,
) -> tuple[FloatArray, float]:
    """Fit one gap of quality.

    Args:
        x: Features of n queries.
        gap: (n,).
        mean: Its prior mean.
        slope: Its prior slope on standardised log length.
        sample_weight: (n,) how many labels each query counts as.

    Returns:
        Weights (p,) over `design_matrix`, and the intercept.
    """
    weights, intercept = _regress(
        design_matrix(x), x.signals.shape[1], gap[:, None], np.array([mean]), np.array([slope]),
        sample_weight,
    )  # fmt: skip
    return weights[:, 0], float(intercept[0])


def fit_log_heads(
    x: Batch, positive: FloatArray, sample_weight: FloatArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """Fit the logarithms of positive amounts.

    Args:
        x: Features of n queries.
        positive: (n, k), NaN if unknown.
        sample_weight: (n,) how many labels each query counts as.

    Returns:
        Weights (p, k) over `design_matrix` and intercepts (k,), scaled so that the mean of their
        exponentials is right on `positive`.
    """
    design = design_matrix(x)
    logs = np.log(positive)
    mean = np.nanmean(logs, axis=0)
    weights, intercept = _regress(
        design, x.signals.shape[1], logs, mean, np.zeros(logs.shape[1]), sample_weight
    )
    known = ~np.isnan(positive)
    if sample_weight is not None:
        known = known * sample_weight[:, None]
    predicted = np.exp(intercept + design @ weights)
    ratio = (np.nan_to_num(positive) * known).sum(axis=0) / (predicted * known).sum(axis=0)
    return weights, intercept + np.log(ratio)

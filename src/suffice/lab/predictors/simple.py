"""kNN, a table of clusters, and ridge regression: per-query quality, a constant cost per model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from suffice import features
from suffice.artifacts import estimators
from suffice.artifacts.estimators import Estimator
from suffice.lab.data.table import FloatArray
from suffice.lab.predictors.base import Batch, design_matrix
from suffice.lab.predictors.baselines import ConstantPredictor
from suffice.learning.regression import CLIP, VECTOR_SCALE

if TYPE_CHECKING:
    from sklearn.cluster import KMeans
    from sklearn.linear_model import RidgeCV

_PSEUDO_LABELS = 5.0  # what a model's mean counts as in a cell of the cluster table
_MIN_RIDGE_LABELS = 10


class ConstantCostPredictor(ConstantPredictor):
    """Base class: per-query quality, a constant cost per model."""

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        """The predicted quality and the mean costs."""
        quality = self._quality(x)
        return quality, np.broadcast_to(self.cost_, quality.shape)

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        """The predicted gap."""
        quality = self._quality(x)
        return np.asarray(quality[:, strong] - quality[:, weak])

    def _quality(self, x: Batch) -> FloatArray:
        """(n, k)."""
        return np.tile(self.mean_, (len(x), 1))


class KNNPredictor(ConstantCostPredictor):
    """Mean score of the nearest labelled queries by cosine of the static embedding.

    Sampling weights only change the overall mean: the neighbours of a query are alike.
    """

    name = "knn"

    def __init__(self, neighbours: int | None = None) -> None:
        self.neighbours = neighbours  # None: the square root of the labels, 10 to 100

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
        sample_weight: FloatArray | None = None,
    ) -> Self:
        """Store the labelled queries."""
        super().fit(x, score, cost_usd, price, models, sample_weight)
        self.points_ = estimators.unit_rows(x.vectors)
        self.score_ = score
        return self

    def _quality(self, x: Batch) -> FloatArray:
        return self.estimator([""] * len(self.mean_)).predict(x.signals, x.vectors)[0]

    def estimator(self, models: Sequence[str]) -> Estimator:
        """The labelled queries as an artifact stores them."""
        n = len(self.points_)
        if not n:
            return super().estimator(models)
        neighbours = min(n, self.neighbours or int(np.clip(np.sqrt(n), 10, 100)))
        return estimators.KNNEstimator(
            tuple(models), self.points_, self.score_, self.mean_, np.asarray(self.cost_), neighbours
        )


class ClusterPredictor(ConstantCostPredictor):
    """A table of means per k-means cluster of the static embedding."""

    name = "cluster"

    def __init__(self, clusters: int | None = None, seed: int = 0) -> None:
        self.clusters = clusters  # None: one per 25 labels, 2 to 64
        self.seed = seed

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
        sample_weight: FloatArray | None = None,
    ) -> Self:
        """Cluster the queries and average the labels of each cluster."""
        super().fit(x, score, cost_usd, price, models, sample_weight)
        k = min(len(x), self.clusters or int(np.clip(len(x) // 25, 2, 64)))
        self.kmeans_: KMeans | None = None
        if k < 2:
            return self
        from sklearn.cluster import KMeans

        self.kmeans_ = KMeans(k, n_init=1, random_state=self.seed).fit(
            x.vectors, sample_weight=sample_weight
        )
        weight = np.ones((len(x), 1)) if sample_weight is None else sample_weight[:, None]
        weight = np.where(np.isnan(score), 0.0, weight)
        self.table_ = np.empty((k, score.shape[1]))
        for c in range(k):
            inside = self.kmeans_.labels_ == c
            total = (np.nan_to_num(score[inside]) * weight[inside]).sum(axis=0)
            labels = weight[inside].sum(axis=0)
            self.table_[c] = (total + _PSEUDO_LABELS * self.mean_) / (labels + _PSEUDO_LABELS)
        return self

    def _quality(self, x: Batch) -> FloatArray:
        if self.kmeans_ is None or not len(x):
            return super()._quality(x)
        return np.asarray(self.table_[self.kmeans_.predict(x.vectors)])

    def estimator(self, models: Sequence[str]) -> Estimator:
        """The table as an artifact stores it."""
        if self.kmeans_ is None:
            return super().estimator(models)
        centres = self.kmeans_.cluster_centers_.astype(np.float32)
        return estimators.ClusterEstimator(
            tuple(models), centres, self.table_, np.asarray(self.cost_)
        )


class RidgePredictor(ConstantCostPredictor):
    """Ridge regression of each score on signals and embedding, penalty by cross-validation."""

    name = "ridge"

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
        sample_weight: FloatArray | None = None,
    ) -> Self:
        """Fit on the queries that have every score."""
        super().fit(x, score, cost_usd, price, models, sample_weight)
        complete = ~np.isnan(score).any(axis=1)
        self.ridge_: RidgeCV | None = None
        if complete.sum() >= _MIN_RIDGE_LABELS:
            from sklearn.linear_model import RidgeCV

            weight = None if sample_weight is None else sample_weight[complete]
            self.ridge_ = RidgeCV(np.logspace(0, 5, 11)).fit(
                design_matrix(x)[complete], score[complete], sample_weight=weight
            )
        return self

    def _quality(self, x: Batch) -> FloatArray:
        if self.ridge_ is None or not len(x):
            return super()._quality(x)
        return np.asarray(self.ridge_.predict(design_matrix(x))).reshape(len(x), -1)

    def estimator(self, models: Sequence[str]) -> Estimator:
        """The weights as an artifact stores them."""
        if self.ridge_ is None:
            return super().estimator(models)
        mean, std = features.feature_scaler()
        n_signals, weights = len(mean), self.ridge_.coef_.reshape(len(models), -1).T
        return estimators.LinearEstimator(
            tuple(models), mean, std, CLIP, weights[:n_signals], weights[n_signals:] * VECTOR_SCALE,
            np.asarray(self.ridge_.intercept_, float).reshape(-1), np.asarray(self.cost_, float),
        )  # fmt: skip

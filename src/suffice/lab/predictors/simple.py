"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from suffice import features
from suffice.artifacts import estimators
from suffice.artifacts.estimators import Estimator
from suffice.lab.data.table import FloatArray
from suffice.lab.predictors.base import Batch, design_matrix
from suffice.lab.predictors.baselines import ConstantPredictor
from suffice.learning.regression import CLIP, VECTOR_SCALE


class ConstantCostPredictor(ConstantPredictor):
    """What kNN, cluster table and ridge share: per-query quality, a constant cost per model."""

    def strong_score(self, x: Batch, strong: int, weak: int) -> FloatArray:
        quality, _ = self.predict(x)
        return np.asarray(quality[:, strong] - quality[:, weak])

    def _quality(self, x: Batch) -> FloatArray:
        raise NotImplementedError

    def predict(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        quality = self._quality(x)
        return quality, np.broadcast_to(self.cost_, quality.shape)


class KNNPredictor(ConstantCostPredictor):
    """kNN on the static embedding: mean score of the nearest labelled queries by cosine."""

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
    ) -> Self:
        super().fit(x, score, cost_usd, price, models)
        self.points_ = estimators.unit_rows(x.vectors)
        self.score_ = score
        return self

    def _quality(self, x: Batch) -> FloatArray:
        return self.estimator([""] * len(self.mean_)).predict(x.signals, x.vectors)[0]

    def estimator(self, models: Sequence[str]) -> Estimator:
        n = len(self.points_)
        if not n:
            return super().estimator(models)
        near = min(n, self.neighbours or int(np.clip(np.sqrt(n), 10, 100)))
        return estimators.KNNEstimator(
            tuple(models), self.points_, self.score_, self.mean_, np.asarray(self.cost_), near
        )


class ClusterPredictor(ConstantCostPredictor):
    """A table of means per k-means cluster of the static embedding."""

    name = "cluster"

    def __init__(self, clusters: int | None = None, seed: int = 0) -> None:
        self.clusters = clusters  # None: one for every 25 labels, 2 to 64
        self.seed = seed

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
    ) -> Self:
        super().fit(x, score, cost_usd, price, models)
        n = len(x)
        k = min(n, self.clusters or int(np.clip(n // 25, 2, 64)))
        self.kmeans_: Any = None
        if k < 2:
            return self
        from sklearn.cluster import KMeans

        self.kmeans_ = KMeans(k, n_init=1, random_state=self.seed).fit(x.vectors)
        self.table_ = np.empty((k, score.shape[1]))
        for c in range(k):
            inside = score[self.kmeans_.labels_ == c]
            seen = ~np.isnan(inside)
            total = np.where(seen, inside, 0.0).sum(axis=0)
            # Five labels of the model's overall mean keep an empty cell sane.
            self.table_[c] = (total + 5.0 * self.mean_) / (seen.sum(axis=0) + 5.0)
        return self

    def _quality(self, x: Batch) -> FloatArray:
        if self.kmeans_ is None or not len(x):
            return np.tile(self.mean_, (len(x), 1))
        return np.asarray(self.table_[self.kmeans_.predict(x.vectors)])

    def estimator(self, models: Sequence[str]) -> Estimator:
        if self.kmeans_ is None:
            return super().estimator(models)
        centres = self.kmeans_.cluster_centers_.astype(np.float32)
        return estimators.ClusterEstimator(
            tuple(models), centres, self.table_, np.asarray(self.cost_)
        )


class RidgePredictor(ConstantCostPredictor):
    """Plain ridge regression of each score on signals and embedding, penalty by cross-validation."""

    name = "ridge"

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
    ) -> Self:
        super().fit(x, score, cost_usd, price, models)
        whole = ~np.isnan(score).any(axis=1)
        self.ridge_: Any = None
        if whole.sum() >= 10:
            from sklearn.linear_model import RidgeCV

            self.ridge_ = RidgeCV(np.logspace(0, 5, 11)).fit(design_matrix(x)[whole], score[whole])
        return self

    def _quality(self, x: Batch) -> FloatArray:
        if self.ridge_ is None or not len(x):
            return np.tile(self.mean_, (len(x), 1))
        return np.asarray(self.ridge_.predict(design_matrix(x))).reshape(len(x), -1)

    def estimator(self, models: Sequence[str]) -> Estimator:
        if self.ridge_ is None:
            return super().estimator(models)
        mean, deviation = features.feature_scaler()
        s, weights = len(mean), self.ridge_.coef_.reshape(len(models), -1).T
        return estimators.LinearEstimator(
            tuple(models), mean, deviation, CLIP, weights[:s], weights[s:] * VECTOR_SCALE,
            np.asarray(self.ridge_.intercept_, float).reshape(-1), np.asarray(self.cost_, float),
        )  # fmt: skip

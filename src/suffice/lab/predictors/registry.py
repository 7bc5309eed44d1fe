"""Predictors of each model's quality and cost, all under one Protocol (`predictor.Predictor`).

A further one is an entry point of the group "suffice.predictors".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import log
from pathlib import Path
from typing import Any, Self

import numpy as np

from suffice import features
from suffice.artifacts import artifact, estimators
from suffice.artifacts.estimators import Estimator
from suffice.errors import UsageError, nearest
from suffice.lab.data.table import FloatArray
from suffice.lab.predictors.base import Batch, Predictor
from suffice.lab.predictors.bayes import (
    NOTHING_ODDS,
    PSEUDO_LABELS,
    BayesianModelAveragingRegression,
)
from suffice.learning import regression
from suffice.learning.regression import CLIP, VECTOR_SCALE
from suffice.names import match_model
from suffice.policies.priors import (
    GRID,
    SLOPE,
    DifficultyScorer,
    length_slope,
    price_priors,
    quality_curves,
)

DOUBT = 100  # labels up to which a pair's head doubts in full that anything but length matters
FEW = 300  # labelled queries below which three or more models get constants only
_VARIANCE = 0.3  # of a right/wrong gap between two models: the unit in which priors are stated


@cache
def spread() -> FloatArray:
    """(n_dimensions,): prior variance of each dimension's weight as a multiple of the width.

    The token table is half whitened, which suits looking neighbours up. A regression on few labels
    does better to expect most of the directions in which prompts differ most: the variance of each
    dimension over training prompts, scaled so that the width keeps its meaning.
    """
    variance = features.vector_variance()
    return np.asarray(variance * variance.sum() / (variance**2).sum())


def design(x: Batch) -> FloatArray:
    """float64 (n, n_signals + n_dimensions): standardised, clipped signals beside the vectors."""
    return regression.design(x.signals, x.vectors, *features.feature_scaler())


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


class Default:
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

    def expect(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        order = np.argsort(np.argsort(self._score(x), kind="stable"), kind="stable")
        u = (order + 0.5) / max(1, len(x))
        quality = self.curves_[:, np.rint(u * GRID).astype(int)].T
        return quality, np.broadcast_to(self.cost_, quality.shape)

    def rank(self, x: Batch, strong: int, weak: int) -> FloatArray:
        return self._score(x)


class Length(Default):
    """The plainest baseline: the log length of the last human ask."""

    name = "length"

    def _score(self, x: Batch) -> FloatArray:
        return x.signals[:, 0].astype(float)


class Constant:
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

    def expect(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        shape = (len(x), len(self.mean_))
        return np.broadcast_to(self.mean_, shape), np.broadcast_to(self.cost_, shape)

    def estimator(self, models: Sequence[str]) -> Estimator:
        """What was learned, as an artifact holds it."""
        unknown = np.full(len(self.mean_), np.nan)
        return estimators.ConstantEstimator(
            tuple(models), self.mean_, np.asarray(self.cost_), unknown
        )

    def rank(self, x: Batch, strong: int, weak: int) -> FloatArray:
        return np.zeros(len(x))


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
        self.constant_ = k >= 3 and labelled < FEW
        d = design(x)
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
                self.weights_[:, k + 1 :], self.intercept_[k + 1 :] = log_heads(x, positive)
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
        odds = NOTHING_ODDS - log(max(1.0, len(targets) / DOUBT)) if doubt else -np.inf
        head = BayesianModelAveragingRegression(n_signals - 1, spread(), odds).fit(
            d, targets / unit, mean / unit, slope, np.full(len(unit), _VARIANCE)
        )
        return head.weights_ * unit, head.intercept_ * unit

    def expect(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        k = len(self.mean_)
        y = self.intercept_ + design(x) @ self.weights_
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

    def rank(self, x: Batch, strong: int, weak: int) -> FloatArray:
        quality, _ = self.expect(x)
        return np.asarray(quality[:, strong] - quality[:, weak])


def one_head(x: Batch, target: FloatArray, mean: float, slope: float) -> tuple[FloatArray, float]:
    """Weights (p,) over `design` and the intercept for one target (n,), with prior mean and prior
    slope on standardised log length."""
    w, b = LinearHead._regress(
        design(x), x.signals.shape[1], target[:, None], np.array([mean]), np.array([slope])
    )
    return w[:, 0], float(b[0])


def log_heads(x: Batch, positive: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weights (p, k) and intercepts (k,) over `design` for the log of positive amounts (n, k), NaN
    where unknown, scaled so that the mean of their exponentials is right on what was given."""
    d = design(x)
    logs = np.log(positive)
    centre = np.nanmean(logs, axis=0)
    w, b = LinearHead._regress(d, x.signals.shape[1], logs, centre, np.zeros(logs.shape[1]))
    told = np.exp(b + d @ w)
    seen = ~np.isnan(positive)
    ratio = np.where(seen, positive, 0).sum(axis=0) / np.where(seen, told, 0).sum(axis=0)
    return w, b + np.log(ratio)


class ConstantCostMixin(Constant):
    """What kNN, cluster table and ridge share: per-query quality, a constant cost per model."""

    def rank(self, x: Batch, strong: int, weak: int) -> FloatArray:
        quality, _ = self.expect(x)
        return np.asarray(quality[:, strong] - quality[:, weak])

    def _quality(self, x: Batch) -> FloatArray:
        raise NotImplementedError

    def expect(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        quality = self._quality(x)
        return quality, np.broadcast_to(self.cost_, quality.shape)


class Neighbours(ConstantCostMixin):
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


class Clusters(ConstantCostMixin):
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


class Ridge(ConstantCostMixin):
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

            self.ridge_ = RidgeCV(np.logspace(0, 5, 11)).fit(design(x)[whole], score[whole])
        return self

    def _quality(self, x: Batch) -> FloatArray:
        if self.ridge_ is None or not len(x):
            return np.tile(self.mean_, (len(x), 1))
        return np.asarray(self.ridge_.predict(design(x))).reshape(len(x), -1)

    def estimator(self, models: Sequence[str]) -> Estimator:
        if self.ridge_ is None:
            return super().estimator(models)
        mean, deviation = features.feature_scaler()
        s, weights = len(mean), self.ridge_.coef_.reshape(len(models), -1).T
        return estimators.LinearEstimator(
            tuple(models), mean, deviation, CLIP, weights[:s], weights[s:] * VECTOR_SCALE,
            np.asarray(self.ridge_.intercept_, float).reshape(-1), np.asarray(self.cost_, float),
        )  # fmt: skip


BUILT_IN: dict[str, Callable[[], Predictor]] = {
    "default": Default,
    "length": Length,
    "constant": Constant,
    "trained": LinearHead,
    "knn": Neighbours,
    "cluster": Clusters,
    "ridge": Ridge,
}


class FromArtifact:
    """A trained artifact among the predictors: `fit` learns nothing, it only finds the table's
    models among the artifact's columns. A model that the artifact does not know has none: NaN.

    Learned before: `version_`, `training_keys_` (uint64 hashes of the prompts learned from).
    """

    def __init__(self, path: str) -> None:
        self.name = path
        self.artifact = artifact.load(path)
        artifact.check_versions(
            self.artifact.card, features.SCHEMA, features.embedding_version(), path
        )
        self.version_ = self.artifact.version
        self.training_keys_ = self.artifact.training_keys

    def fit(
        self,
        x: Batch,
        score: FloatArray,
        cost_usd: FloatArray | None,
        price: FloatArray,
        models: Sequence[str],
    ) -> Self:
        known = self.artifact.card.models
        self.columns_ = [match_model(m, known) for m in models]
        self.price_ = price
        missing = [m for m, c in zip(models, self.columns_, strict=True) if c is None]
        if missing:
            raise UsageError(
                f"{self.name} was not trained on {', '.join(map(repr, missing))}.",
                remedy=f"It knows: {', '.join(known)}. Choose among them with --models.",
            )
        return self

    def expect(self, x: Batch) -> tuple[FloatArray, FloatArray]:
        columns = [c for c in self.columns_ if c is not None]
        quality, cost = self.artifact.estimator.predict(x.signals, x.vectors)
        own = cost[:, columns]
        # Dollars of another table do not compare with these: known prices stand in for unknown.
        return quality[:, columns], np.where(np.isnan(own), self.price_, own)

    def rank(self, x: Batch, strong: int, weak: int) -> FloatArray:
        quality, _ = self.expect(x)
        return np.asarray(quality[:, strong] - quality[:, weak])


def make(name: str) -> Predictor:
    """The predictor called `name`: built in, an entry point, or the path of an artifact. Raises
    UsageError or ArtifactError."""
    if name not in BUILT_IN and (name.endswith(".npz") or Path(name).is_file()):
        return FromArtifact(name)
    factory = BUILT_IN.get(name)
    if factory is None:
        from importlib.metadata import entry_points

        offered = {e.name: e for e in entry_points(group="suffice.predictors")}
        if name not in offered:
            known = [*BUILT_IN, *offered]
            close = nearest(name, known, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UsageError(
                f"There is no policy {name!r}.{hint}",
                remedy=f"Known: {', '.join(known)}, or the path of an artifact.",
            )
        factory = offered[name].load()
    return factory()

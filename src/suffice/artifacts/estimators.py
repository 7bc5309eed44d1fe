"""What was learned, as arrays: the estimators of trained policies, for serving and the lab alike.

All take `signals`, float32 (n, n_signals), and `vectors`, float32 (n, n_dimensions), as
`suffice.features` makes them. They predict the quality, in about [0, 1], and the cost of each of k
models. NumPy only. A user's own estimator is a class with the same methods behind an entry point of
the group "suffice.predictors".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol, Self

import msgspec
import numpy as np

from suffice.artifacts.npz import Array, Arrays
from suffice.types import Float32Array, FloatArray


class Estimator(Protocol):
    """Predicts the quality and cost of k models.

    Attributes:
        kind: its name in an artifact.
    """

    kind: ClassVar[str]

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the columns, (k,)."""

    def predict(
        self, signals: Float32Array, vectors: Float32Array
    ) -> tuple[FloatArray, FloatArray]:
        """Quality (n, k), and cost (n, k) in USD per query of the training table, NaN = unknown."""

    def output_tokens(self, signals: Float32Array, vectors: Float32Array) -> FloatArray | None:
        """Tokens of the answers, (n, k); None if they were not in the table."""

    def arrays(self) -> Arrays:
        """The whole state, for the artifact."""

    @classmethod
    def from_arrays(cls, models: Sequence[str], arrays: Mapping[str, Array]) -> Self:
        """The inverse of `arrays`. Raises ValueError or KeyError if they do not fit together."""


_BATCH = 1024  # queries whose similarities are in memory at once


def _check(ok: bool, what: str) -> None:
    if not ok:
        raise ValueError(f"arrays do not fit together: {what}")


class LinearEstimator(msgspec.Struct, frozen=True, eq=False):
    """Linear in the clipped, standardised signals and the vector.

    It has h heads: k qualities, then k log costs if `has_cost`, then k log output tokens if
    `has_tokens`.

    Attributes:
        models: (k,) names.
        mean, std: (n_signals,) that the signals are standardised by.
        clip: the largest standardised signal.
        signals: (n_signals, h) weights.
        vectors: (n_dimensions, h) weights.
        intercept: (h,).
        cost: (k,) mean USD per query, if the cost has no heads; NaN = unknown.
        has_cost, has_tokens: which heads there are.
    """

    kind: ClassVar[str] = "linear"

    models: tuple[str, ...]
    mean: Float32Array
    std: Float32Array
    clip: float
    signals: FloatArray
    vectors: FloatArray
    intercept: FloatArray
    cost: FloatArray
    has_cost: bool = False
    has_tokens: bool = False

    def __post_init__(self) -> None:
        k = len(self.models)
        h = k * (1 + self.has_cost + self.has_tokens)
        _check(self.intercept.shape == (h,), f"{h} heads, intercept {self.intercept.shape}")
        _check(self.signals.shape == (len(self.mean), h), f"signals {self.signals.shape}")
        _check(self.vectors.ndim == 2 and self.vectors.shape[1] == h, "vectors")
        _check(self.std.shape == self.mean.shape, "deviation")
        _check(bool((self.std > 0).all()), "deviation above 0")
        _check(self.cost.shape == (k,), f"cost {self.cost.shape}")

    def standardise(self, signals: Float32Array) -> Float32Array:
        """Standardised, clipped signals, (n, n_signals) or one row."""
        z = (signals - self.mean) / self.std
        return np.asarray(np.clip(z, -self.clip, self.clip))

    def heads(self, signals: Float32Array, vectors: Float32Array) -> FloatArray:
        """The values of all heads, (n, h)."""
        y = self.intercept + self.standardise(signals) @ self.signals + vectors @ self.vectors
        return np.asarray(y, float)

    def predict(
        self, signals: Float32Array, vectors: Float32Array
    ) -> tuple[FloatArray, FloatArray]:
        """Quality and cost, (n, k) each."""
        k = len(self.models)
        y = self.heads(signals, vectors)
        if self.has_cost:
            return y[:, :k], np.exp(y[:, k : 2 * k])
        return y[:, :k], np.broadcast_to(self.cost, (len(y), k))

    def output_tokens(self, signals: Float32Array, vectors: Float32Array) -> FloatArray | None:
        """Tokens of the answers, (n, k); None = not learned."""
        if not self.has_tokens:
            return None
        return np.asarray(np.exp(self.heads(signals, vectors)[:, -len(self.models) :]))

    def concat(self, other: LinearEstimator) -> LinearEstimator:
        """The estimator of the models of both. Heads that only one of them has are dropped."""
        _check(np.array_equal(self.mean, other.mean), "standardised alike")
        _check(len(self.vectors) == len(other.vectors), "vectors of one length")
        has_cost = self.has_cost and other.has_cost
        has_tokens = self.has_tokens and other.has_tokens
        k, m = len(self.models), len(other.models)

        def columns(a: FloatArray, b: FloatArray) -> FloatArray:
            parts = [a[..., :k], b[..., :m]]
            if has_cost:
                parts += [a[..., k : 2 * k], b[..., m : 2 * m]]
            if has_tokens:
                parts += [a[..., -k:], b[..., -m:]]
            return np.concatenate(parts, axis=-1)

        return LinearEstimator(
            (*self.models, *other.models),
            self.mean,
            self.std,
            self.clip,
            columns(self.signals, other.signals),
            columns(self.vectors, other.vectors),
            columns(self.intercept, other.intercept),
            np.append(self.cost, other.cost),
            has_cost,
            has_tokens,
        )

    def arrays(self) -> Arrays:
        """The whole state, for the artifact."""
        return {
            "mean": self.mean,
            "deviation": self.std,
            "clip": np.array(self.clip),
            "signals": self.signals.astype(np.float32),
            "vectors": self.vectors.astype(np.float32),
            "intercept": self.intercept,
            "cost": self.cost,
            "has": np.array([self.has_cost, self.has_tokens]),
        }

    @classmethod
    def from_arrays(cls, models: Sequence[str], arrays: Mapping[str, Array]) -> Self:
        """The inverse of `arrays`."""
        has = arrays["has"]
        return cls(
            tuple(models),
            arrays["mean"].astype(np.float32),
            arrays["deviation"].astype(np.float32),
            float(arrays["clip"]),
            arrays["signals"].astype(float),
            arrays["vectors"].astype(float),
            arrays["intercept"].astype(float),
            arrays["cost"].astype(float),
            bool(has[0]),
            bool(has[1]),
        )


class ConstantEstimator(msgspec.Struct, frozen=True, eq=False):
    """Predicts the same for every query.

    Attributes:
        models: (k,) names.
        quality: (k,) mean.
        cost: (k,) mean USD per query; NaN = unknown.
        tokens: (k,) mean output tokens; NaN = unknown.
    """

    kind: ClassVar[str] = "constant"

    models: tuple[str, ...]
    quality: FloatArray
    cost: FloatArray
    tokens: FloatArray

    def __post_init__(self) -> None:
        k = len(self.models)
        for name, a in (("quality", self.quality), ("cost", self.cost), ("tokens", self.tokens)):
            _check(a.shape == (k,), f"{name} {a.shape} for {k} models")

    def predict(
        self, signals: Float32Array, vectors: Float32Array
    ) -> tuple[FloatArray, FloatArray]:
        """Quality and cost, (n, k) each."""
        shape = (len(signals), len(self.models))
        return np.broadcast_to(self.quality, shape), np.broadcast_to(self.cost, shape)

    def output_tokens(self, signals: Float32Array, vectors: Float32Array) -> FloatArray | None:
        """Tokens of the answers, (n, k); None = not learned."""
        if np.isnan(self.tokens).all():
            return None
        return np.broadcast_to(self.tokens, (len(signals), len(self.models)))

    def concat(self, other: ConstantEstimator) -> ConstantEstimator:
        """The estimator of the models of both, in order."""
        return ConstantEstimator(
            (*self.models, *other.models),
            np.append(self.quality, other.quality),
            np.append(self.cost, other.cost),
            np.append(self.tokens, other.tokens),
        )

    def arrays(self) -> Arrays:
        """The whole state, for the artifact."""
        return {"quality": self.quality, "cost": self.cost, "tokens": self.tokens}

    @classmethod
    def from_arrays(cls, models: Sequence[str], arrays: Mapping[str, Array]) -> Self:
        """The inverse of `arrays`."""
        a = {n: arrays[n].astype(float) for n in ("quality", "cost", "tokens")}
        return cls(tuple(models), a["quality"], a["cost"], a["tokens"])


class ClusterEstimator(msgspec.Struct, frozen=True, eq=False):
    """Predicts the mean quality of the cluster whose centre is nearest to the vector.

    Attributes:
        models: (k,) names.
        centres: (c, n_dimensions).
        table: (c, k) mean quality.
        cost: (k,) mean USD per query; NaN = unknown.
    """

    kind: ClassVar[str] = "cluster"

    models: tuple[str, ...]
    centres: Float32Array
    table: FloatArray
    cost: FloatArray

    def __post_init__(self) -> None:
        k = len(self.models)
        _check(self.table.shape == (len(self.centres), k), f"table {self.table.shape}")
        _check(len(self.centres) > 0, "at least one cluster")
        _check(self.cost.shape == (k,), f"cost {self.cost.shape}")

    def predict(
        self, signals: Float32Array, vectors: Float32Array
    ) -> tuple[FloatArray, FloatArray]:
        """Quality and cost, (n, k) each."""
        # |v - c|^2 without |v|^2, which is the same for all centres.
        distance = (self.centres**2).sum(axis=1) - 2.0 * (vectors @ self.centres.T)
        quality = self.table[np.argmin(distance, axis=1)]
        return quality, np.broadcast_to(self.cost, quality.shape)

    def output_tokens(self, signals: Float32Array, vectors: Float32Array) -> FloatArray | None:
        """Tokens of the answers, (n, k); None = not learned."""
        return None

    def arrays(self) -> Arrays:
        """The whole state, for the artifact."""
        return {"centres": self.centres, "table": self.table, "cost": self.cost}

    @classmethod
    def from_arrays(cls, models: Sequence[str], arrays: Mapping[str, Array]) -> Self:
        """The inverse of `arrays`."""
        return cls(
            tuple(models),
            arrays["centres"].astype(np.float32),
            arrays["table"].astype(float),
            arrays["cost"].astype(float),
        )


class KNNEstimator(msgspec.Struct, frozen=True, eq=False):
    """Predicts the mean score of the nearest labelled queries by cosine.

    Attributes:
        models: (k,) names.
        points: (n, n_dimensions) of length 1.
        score: (n, k); NaN = unknown.
        mean: (k,) mean score, if none of the neighbours has one.
        cost: (k,) mean USD per query; NaN = unknown.
        neighbours: how many.
    """

    kind: ClassVar[str] = "knn"

    models: tuple[str, ...]
    points: Float32Array
    score: FloatArray
    mean: FloatArray
    cost: FloatArray
    neighbours: int

    def __post_init__(self) -> None:
        k = len(self.models)
        _check(self.score.shape == (len(self.points), k), f"score {self.score.shape}")
        _check(1 <= self.neighbours <= len(self.points), f"{self.neighbours} neighbours")
        _check(self.mean.shape == self.cost.shape == (k,), "mean, cost")

    def predict(
        self, signals: Float32Array, vectors: Float32Array
    ) -> tuple[FloatArray, FloatArray]:
        """Quality and cost, (n, k) each."""
        quality = np.empty((len(vectors), len(self.models)))
        for start in range(0, len(vectors), _BATCH):
            similarity = unit_rows(vectors[start : start + _BATCH]) @ self.points.T
            nearest = np.argpartition(-similarity, self.neighbours - 1, axis=1)
            scores = self.score[nearest[:, : self.neighbours]]
            known = ~np.isnan(scores)
            total = np.where(known, scores, 0.0).sum(axis=1)
            count = known.sum(axis=1)
            mean = np.where(count > 0, total / np.maximum(count, 1), self.mean)
            quality[start : start + _BATCH] = mean
        return quality, np.broadcast_to(self.cost, quality.shape)

    def output_tokens(self, signals: Float32Array, vectors: Float32Array) -> FloatArray | None:
        """Tokens of the answers, (n, k); None = not learned."""
        return None

    def arrays(self) -> Arrays:
        """The whole state, for the artifact."""
        return {
            "points": self.points.astype(np.float16),
            "score": self.score.astype(np.float32),
            "mean": self.mean,
            "cost": self.cost,
            "neighbours": np.array(self.neighbours),
        }

    @classmethod
    def from_arrays(cls, models: Sequence[str], arrays: Mapping[str, Array]) -> Self:
        """The inverse of `arrays`."""
        return cls(
            tuple(models),
            arrays["points"].astype(np.float32),
            arrays["score"].astype(float),
            arrays["mean"].astype(float),
            arrays["cost"].astype(float),
            int(arrays["neighbours"]),
        )


def unit_rows(v: Float32Array) -> Float32Array:
    """Scale the rows to length 1; rows of zeros stay zeros."""
    length = np.sqrt((v * v).sum(axis=1, keepdims=True))
    return np.asarray(v / np.maximum(length, 1e-9))


EstimatorFactory = Callable[[Sequence[str], Mapping[str, Array]], Estimator]

ESTIMATORS: dict[str, EstimatorFactory] = {
    "linear": LinearEstimator.from_arrays,
    "constant": ConstantEstimator.from_arrays,
    "cluster": ClusterEstimator.from_arrays,
    "knn": KNNEstimator.from_arrays,
}

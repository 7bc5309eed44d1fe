"""What was learned, as arrays: the forms a trained policy may have, for serving and lab alike.

All take the same numbers, `signals` float32 (n, n_signals) and `vectors` float32 (n, n_dimensions)
as the features room makes them, and expect of each of k models a quality, in about [0, 1], and a
cost. NumPy only. A form of one's own is a class with these manners behind an entry point of the
group "suffice.predictors".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from suffice.types import Float32Array, FloatArray

Arrays = dict[str, NDArray[Any]]


class Estimator(Protocol):
    """kind: its name in an artifact. models: (k,) column names.

    predict: (quality (n, k), cost (n, k) in USD a query of the training table, NaN where unknown).
    output_tokens: (n, k) predicted tokens of the answers, or None where never labelled.
    arrays / from_arrays: all of its state, for the artifact. from_arrays raises ValueError or
    KeyError where the arrays do not fit together.
    """

    kind: ClassVar[str]

    @property
    def models(self) -> tuple[str, ...]: ...
    def predict(
        self, signals: Float32Array, vectors: Float32Array
    ) -> tuple[FloatArray, FloatArray]: ...
    def output_tokens(self, signals: Float32Array, vectors: Float32Array) -> FloatArray | None: ...
    def arrays(self) -> Arrays: ...
    @classmethod
    def from_arrays(cls, models: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> Self: ...


def _check(ok: bool, what: str) -> None:
    if not ok:
        raise ValueError(f"arrays do not fit together: {what}")


@dataclass(frozen=True)
class LinearEstimator:
    """Everything linear in the clipped, standardised signals and the vector.

    mean, std: (n_signals,). signals: (n_signals, h) and vectors: (n_dimensions, h) weights,
    intercept: (h,), for h heads: k qualities, then k log costs if `has_cost`, then k log output
    tokens if `has_tokens`. cost: (k,) mean USD a query, for tables whose costs are no head.
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
        """(n, n_signals), or one row."""
        z = (signals - self.mean) / self.std
        return np.asarray(np.clip(z, -self.clip, self.clip))

    def heads(self, signals: Float32Array, vectors: Float32Array) -> FloatArray:
        """(n, h)."""
        out = self.intercept + self.standardise(signals) @ self.signals + vectors @ self.vectors
        return np.asarray(out, float)

    def predict(
        self, signals: Float32Array, vectors: Float32Array
    ) -> tuple[FloatArray, FloatArray]:
        k = len(self.models)
        y = self.heads(signals, vectors)
        if self.has_cost:
            return y[:, :k], np.exp(y[:, k : 2 * k])
        return y[:, :k], np.broadcast_to(self.cost, (len(y), k))

    def output_tokens(self, signals: Float32Array, vectors: Float32Array) -> FloatArray | None:
        if not self.has_tokens:
            return None
        return np.asarray(np.exp(self.heads(signals, vectors)[:, -len(self.models) :]))

    def concat(self, other: LinearEstimator) -> LinearEstimator:
        """The models of both, in order; heads that only one of them has are dropped."""
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
    def from_arrays(cls, models: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> Self:
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


@dataclass(frozen=True)
class ConstantEstimator:
    """The same for every query: mean quality and mean cost of each model, (k,) each."""

    kind: ClassVar[str] = "constant"

    models: tuple[str, ...]
    quality: FloatArray
    cost: FloatArray
    tokens: FloatArray  # mean output tokens, NaN where unknown

    def __post_init__(self) -> None:
        k = len(self.models)
        for name, a in (("quality", self.quality), ("cost", self.cost), ("tokens", self.tokens)):
            _check(a.shape == (k,), f"{name} {a.shape} for {k} models")

    def predict(
        self, signals: Float32Array, vectors: Float32Array
    ) -> tuple[FloatArray, FloatArray]:
        shape = (len(signals), len(self.models))
        return np.broadcast_to(self.quality, shape), np.broadcast_to(self.cost, shape)

    def output_tokens(self, signals: Float32Array, vectors: Float32Array) -> FloatArray | None:
        if np.isnan(self.tokens).all():
            return None
        return np.broadcast_to(self.tokens, (len(signals), len(self.models)))

    def concat(self, other: ConstantEstimator) -> ConstantEstimator:
        """The models of both, in order."""
        return ConstantEstimator(
            (*self.models, *other.models),
            np.append(self.quality, other.quality),
            np.append(self.cost, other.cost),
            np.append(self.tokens, other.tokens),
        )

    def arrays(self) -> Arrays:
        return {"quality": self.quality, "cost": self.cost, "tokens": self.tokens}

    @classmethod
    def from_arrays(cls, models: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> Self:
        a = {n: arrays[n].astype(float) for n in ("quality", "cost", "tokens")}
        return cls(tuple(models), a["quality"], a["cost"], a["tokens"])


@dataclass(frozen=True)
class ClusterEstimator:
    """A table of mean qualities (c, k) for the c nearest-centre cells of the vector."""

    kind: ClassVar[str] = "cluster"

    models: tuple[str, ...]
    centres: Float32Array  # (c, n_dimensions)
    table: FloatArray  # (c, k)
    cost: FloatArray  # (k,)

    def __post_init__(self) -> None:
        k = len(self.models)
        _check(self.table.shape == (len(self.centres), k), f"table {self.table.shape}")
        _check(len(self.centres) > 0, "at least one cluster")
        _check(self.cost.shape == (k,), f"cost {self.cost.shape}")

    def predict(
        self, signals: Float32Array, vectors: Float32Array
    ) -> tuple[FloatArray, FloatArray]:
        # |v - c|^2 without |v|^2, which is the same for all centres.
        far = (self.centres**2).sum(axis=1) - 2.0 * (vectors @ self.centres.T)
        quality = self.table[np.argmin(far, axis=1)]
        return quality, np.broadcast_to(self.cost, quality.shape)

    def output_tokens(self, signals: Float32Array, vectors: Float32Array) -> FloatArray | None:
        return None

    def arrays(self) -> Arrays:
        return {"centres": self.centres, "table": self.table, "cost": self.cost}

    @classmethod
    def from_arrays(cls, models: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> Self:
        return cls(
            tuple(models),
            arrays["centres"].astype(np.float32),
            arrays["table"].astype(float),
            arrays["cost"].astype(float),
        )


@dataclass(frozen=True)
class KNNEstimator:
    """kNN: the mean score of the `neighbours` nearest labelled queries by cosine; the models' means
    where none of them has a score. points: (n, n_dimensions) of length 1; score: (n, k), NaN =
    unknown; mean, cost: (k,)."""

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
        out = np.empty((len(vectors), len(self.models)))
        for at in range(0, len(vectors), 1024):
            near = unit_rows(vectors[at : at + 1024]) @ self.points.T
            top = np.argpartition(-near, self.neighbours - 1, axis=1)[:, : self.neighbours]
            scores = self.score[top]
            seen = ~np.isnan(scores)
            total = np.where(seen, scores, 0.0).sum(axis=1)
            count = seen.sum(axis=1)
            out[at : at + 1024] = np.where(count > 0, total / np.maximum(count, 1), self.mean)
        return out, np.broadcast_to(self.cost, out.shape)

    def output_tokens(self, signals: Float32Array, vectors: Float32Array) -> FloatArray | None:
        return None

    def arrays(self) -> Arrays:
        return {
            "points": self.points.astype(np.float16),
            "score": self.score.astype(np.float32),
            "mean": self.mean,
            "cost": self.cost,
            "neighbours": np.array(self.neighbours),
        }

    @classmethod
    def from_arrays(cls, models: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> Self:
        return cls(
            tuple(models),
            arrays["points"].astype(np.float32),
            arrays["score"].astype(float),
            arrays["mean"].astype(float),
            arrays["cost"].astype(float),
            int(arrays["neighbours"]),
        )


def unit_rows(v: Float32Array) -> Float32Array:
    """The rows of v at length 1; a row of zeros stays one."""
    length = np.sqrt((v * v).sum(axis=1, keepdims=True))
    return np.asarray(v / np.maximum(length, 1e-9))


ESTIMATORS: dict[str, Callable[[Sequence[str], Mapping[str, NDArray[Any]]], Estimator]] = {
    "linear": LinearEstimator.from_arrays,
    "constant": ConstantEstimator.from_arrays,
    "cluster": ClusterEstimator.from_arrays,
    "knn": KNNEstimator.from_arrays,
}

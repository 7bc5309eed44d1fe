"""Online regression on feedback: scores of the models that answered, one per decision.

Feedback is partial: only the model that answered has a score. So every score is regressed on the
query's design row per model, starting from the artifact that is served; see `posterior`. The state
is a Gram matrix and a moment per model, for any number of labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.artifacts.npz import mismatch_error, pack_state, unpack_state
from suffice.learning.label_limits import SourceLimiter, SourceLimits
from suffice.learning.posterior import Posterior, Prior, Statistics, fit_posterior

SCHEMA = "learner-1"
VECTOR_SCALE = 4.0  # of the embedding relative to the standardised signals, as in the lab's design
CLIP = 4.0  # standard deviations at which a signal is clipped
PRIOR_LABELS = 20.0  # what a model's prior mean counts for
NEW_LABELS = 5.0  # the same for a model that no artifact was trained on
_DEFAULT_QUALITY = 0.75

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]


class LabelBatch(msgspec.Struct, frozen=True):
    """Labelled decisions, n of them, in the order of their feedback."""

    ids: NDArray[np.int64]  # (n,) ascending sequence numbers of the feedback
    signals: Float32Array  # (n, n_signals) at decision time
    vectors: Float32Array  # (n, n_dimensions) embeddings at decision time
    models: Sequence[str]  # (n,) the model that each score is about
    scores: FloatArray  # (n,) in [0, 1]
    sources: Sequence[str]  # (n,) who gave the score, for the limits
    times_s: FloatArray  # (n,) when it was received, unix time
    weights: FloatArray | None = None  # (n,) in [0, 1]; None: 1
    replaced: FloatArray | None = None  # (n,) the score that this one replaces; NaN: none
    replaced_weights: FloatArray | None = None  # (n,) its weight


class UpdateResult(NamedTuple):
    """What became of a batch."""

    learned: int  # rows that counted, in whole or in part
    known: int  # rows whose id was seen before
    refused: int  # rows out of range, not finite, or of a model that is not on the route
    limited: float  # weight that the limits of sources removed
    counted: FloatArray  # (n,) the weight that each row counted for


def design(
    signals: Float32Array, vectors: Float32Array, mean: Float32Array, std: Float32Array
) -> FloatArray:
    """The design matrix, float64 (n, n_signals + n_dimensions).

    Args:
        signals: (n, n_signals).
        vectors: (n, n_dimensions).
        mean: (n_signals,) over training prompts.
        std: (n_signals,) likewise.

    Returns:
        Standardised, clipped signals and scaled vectors.
    """
    z = np.clip((signals - mean) / std, -CLIP, CLIP)
    return np.concatenate([z, vectors * VECTOR_SCALE], axis=1).astype(float)


def uninformed_prior(models: Sequence[str], quality: Sequence[float], p: int) -> Prior:
    """A prior without a warm start: each model has its prior quality on every query."""
    k = len(models)
    return Prior(np.zeros((p, k)), np.array(quality, float), np.full(k, NEW_LABELS))


class OnlineRegression:
    """Learns the quality of each model from labels, one batch after the other.

    Pure: no clock and no I/O. `partial_fit` and `posterior` are for a background thread.

    Args:
        models: (k,) of the route.
        mean: (n_signals,) of the signals over training prompts.
        std: (n_signals,) likewise.
        n_dimensions: Of the vectors.
        prior: The warm start. None: quality 0.75 for all models.
        forget: Weight of a label after each further label of the same model; 0.9995 keeps about
            2,000 labels.
        limits: What the labels of one source may count for.

    Attributes:
        cursor: Id of the last label that was ingested.
        statistics: Sufficient statistics of the labels.
        limiter: What each source counted for lately.

    Raises:
        ValueError: Shapes do not match, or an argument is out of range.
    """

    def __init__(
        self,
        models: Sequence[str],
        mean: Float32Array,
        std: Float32Array,
        n_dimensions: int,
        *,
        prior: Prior | None = None,
        forget: float = 0.9995,
        limits: SourceLimits | None = None,
    ) -> None:
        if len(set(models)) != len(models) or not models:
            raise ValueError(f"models: expected at least one, each once, got {list(models)}")
        if mean.shape != std.shape or mean.ndim != 1 or not (std > 0).all():
            raise ValueError("mean, std: expected (n_signals,) each, std above 0")
        if not 0.9 <= forget <= 1.0:
            raise ValueError(f"forget: expected 0.9 to 1, got {forget!r}")
        self.models = tuple(models)
        self.mean = np.asarray(mean, np.float32)
        self.std = np.asarray(std, np.float32)
        self.n_dimensions = int(n_dimensions)
        self.forget = forget
        p, k = len(mean) + self.n_dimensions, len(models)
        if prior is None:
            prior = uninformed_prior(models, [_DEFAULT_QUALITY] * k, p)
        self.prior = prior
        _check_prior(prior, p, k)
        self.limiter = SourceLimiter(limits or SourceLimits())
        self.cursor = -1
        self.statistics = Statistics.zeros(k, p)

    @property
    def labels(self) -> FloatArray:
        """(k,) the weight of each model's labels, after forgetting."""
        return self.statistics.weight.copy()

    def partial_fit(self, batch: LabelBatch) -> UpdateResult:
        """Learn from labels, each exactly once: rows with ids up to the cursor are skipped.

        The result does not depend on how labels are split into batches.

        Args:
            batch: The labels.

        Returns:
            What became of each row. A row that is invalid is refused and counted.

        Raises:
            ValueError: Shapes do not match, or ids are not ascending. Nothing is learned then.
        """
        n = len(batch.ids)
        self._check_batch(batch, n)
        index_of = {m: j for j, m in enumerate(self.models)}
        arms = np.array([index_of.get(m, -1) for m in batch.models], np.intp)
        weights = np.ones(n) if batch.weights is None else np.asarray(batch.weights, float)
        scores = np.asarray(batch.scores, float)
        fresh = np.asarray(batch.ids) > self.cursor
        valid = _valid_rows(batch, scores, weights) & (arms >= 0)
        used = np.flatnonzero(fresh & valid)
        counted = np.zeros(n)
        for i in used.tolist():
            weight, time_s = float(weights[i]), float(batch.times_s[i])
            counted[i] = self.limiter.admit(batch.sources[i], weight, time_s)
        if len(used):
            x = design(batch.signals[used], batch.vectors[used], self.mean, self.std)
            rows = np.concatenate([np.ones((len(used), 1)), x], axis=1)
            for j in np.unique(arms[used]).tolist():
                of_arm = arms[used] == j
                self._add(j, rows[of_arm], scores[used][of_arm], counted[used][of_arm])
            if batch.replaced is not None and batch.replaced_weights is not None:
                # What the limits admitted of the old label is not stored; the part that they admit
                # of the new one is taken for it. So a source that is over its limit cannot remove
                # what other sources taught.
                admitted_part = np.divide(counted, weights, out=np.ones(n), where=weights > 0.0)
                old_weights = batch.replaced_weights * admitted_part
                self._subtract_replaced(batch.replaced[used], old_weights[used], arms[used], rows)
        if n:
            self.cursor = max(self.cursor, int(batch.ids[-1]))
        return UpdateResult(
            learned=int((counted > 0).sum()),
            known=int((~fresh).sum()),
            refused=int((fresh & ~valid).sum()),
            limited=float((weights[used] - counted[used]).sum()),
            counted=counted,
        )

    def _add(self, j: int, rows: FloatArray, y: FloatArray, w: FloatArray) -> None:
        """Add labels of model j, (n, p + 1), oldest first.

        Only the weight that counts makes older labels fade: a flood of labels that the limits
        remove does not erase what was learned.
        """
        stats = self.statistics
        later = w.sum() - np.cumsum(w)
        faded = w * self.forget**later
        keep = self.forget ** float(w.sum())
        weighted = rows * faded[:, None]
        gram = stats.gram[j] * keep + weighted.T @ rows
        stats.gram[j] = (gram + gram.T) / 2.0  # exactly symmetric, because half of it is saved
        stats.moment[j] = stats.moment[j] * keep + weighted.T @ y
        stats.square[j] = stats.square[j] * keep + float(faded @ (y * y))
        stats.weight[j] = stats.weight[j] * keep + float(faded.sum())

    def _subtract_replaced(
        self, scores: FloatArray, weights: FloatArray, arms: NDArray[np.intp], rows: FloatArray
    ) -> None:
        """Subtract replaced labels by their former weights.

        They have faded a little since they were added, so at most what a model has is subtracted.
        """
        stats = self.statistics
        for i in np.flatnonzero(~np.isnan(scores)).tolist():
            j = int(arms[i])
            w = min(float(weights[i]), float(stats.weight[j]))
            if w <= 0.0:
                continue
            stats.gram[j] -= w * np.outer(rows[i], rows[i])
            stats.moment[j] -= w * scores[i] * rows[i]
            stats.square[j] = max(0.0, stats.square[j] - w * scores[i] ** 2)
            stats.weight[j] -= w

    def posterior(self) -> Posterior:
        """The posterior given all labels; exactly the warm start if there are none."""
        return fit_posterior(self.statistics, self.prior, len(self.mean))

    def with_models(self, models: Sequence[str], prior: Prior) -> OnlineRegression:
        """A copy for other models.

        Args:
            models: The new models. Models in both keep their labels, new ones start from the prior.
            prior: The warm start of the new models.

        Returns:
            The copy.

        Raises:
            ValueError: Shapes do not match.
        """
        result = OnlineRegression(
            models, self.mean, self.std, self.n_dimensions,
            prior=prior, forget=self.forget, limits=self.limiter.limits,
        )  # fmt: skip
        index_of = {m: j for j, m in enumerate(self.models)}
        old, new = self.statistics, result.statistics
        for j, model in enumerate(models):
            i = index_of.get(model)
            if i is not None:
                new.gram[j], new.moment[j] = old.gram[i], old.moment[i]
                new.square[j], new.weight[j] = old.square[i], old.weight[i]
        result.cursor = self.cursor
        result.limiter = self.limiter.copy()
        return result

    def state(self) -> bytes:
        """Everything, the cursor included. The same state gives the same bytes."""
        stats = self.statistics
        rows, columns = np.triu_indices(stats.gram.shape[1])
        header = _StateHeader(
            self.models, self.n_dimensions, self.forget, self.cursor, self.limiter.state()
        )
        return pack_state(
            SCHEMA,
            header,
            {
                "mean": self.mean,
                "deviation": self.std,
                "prior_weights": self.prior.weights,
                "prior_intercept": self.prior.intercept,
                "prior_labels": self.prior.labels,
                "gram": stats.gram[:, rows, columns],  # symmetric: the upper half
                "moment": stats.moment,
                "square": stats.square,
                "weight": stats.weight,
            },
        )

    @classmethod
    def from_state(cls, raw: bytes) -> OnlineRegression:
        """Restore a state. Raises ArtifactError if it is damaged or of another schema."""
        header, arrays = unpack_state(raw, SCHEMA, _StateHeader)
        try:
            prior = Prior(
                arrays["prior_weights"], arrays["prior_intercept"], arrays["prior_labels"]
            )
            result = cls(
                header.models, arrays["mean"], arrays["deviation"], header.n_dimensions,
                prior=prior, forget=header.forget,
            )  # fmt: skip
            stats = result.statistics
            rows, columns = np.triu_indices(stats.gram.shape[1])
            if arrays["gram"].shape != (len(header.models), len(rows)):
                raise ValueError(f"gram {arrays['gram'].shape}")
            for name in ("moment", "square", "weight"):
                if arrays[name].shape != getattr(stats, name).shape:
                    raise ValueError(f"{name} {arrays[name].shape}")
            stats.gram[:, rows, columns] = arrays["gram"]
            stats.gram[:, columns, rows] = arrays["gram"]
            stats.moment, stats.square = arrays["moment"], arrays["square"]
            stats.weight = arrays["weight"]
            result.limiter = SourceLimiter.from_state(header.limiter)
        except (KeyError, ValueError) as error:
            raise mismatch_error(SCHEMA, str(error)) from None
        result.cursor = header.cursor
        return result

    def _check_batch(self, batch: LabelBatch, n: int) -> None:
        for name, array, width in (
            ("signals", batch.signals, len(self.mean)),
            ("vectors", batch.vectors, self.n_dimensions),
        ):
            if array.shape != (n, width):
                raise ValueError(f"batch.{name}: expected {(n, width)}, got {array.shape}")
        columns: tuple[tuple[str, Sequence[str] | FloatArray | None], ...] = (
            ("models", batch.models),
            ("scores", batch.scores),
            ("sources", batch.sources),
            ("times_s", batch.times_s),
            ("weights", batch.weights),
            ("replaced", batch.replaced),
            ("replaced_weights", batch.replaced_weights),
        )
        for name, column in columns:
            if column is not None and len(column) != n:
                raise ValueError(f"batch.{name}: expected {n}, got {len(column)}")
        if n > 1 and not (np.diff(batch.ids) > 0).all():
            raise ValueError("batch.ids: expected ascending, each once")


def _valid_rows(batch: LabelBatch, scores: FloatArray, weights: FloatArray) -> NDArray[np.bool_]:
    """(n,) whether each row is in range and finite. Comparisons with NaN are false."""
    valid = (scores >= 0.0) & (scores <= 1.0) & (weights >= 0.0) & (weights <= 1.0)
    valid &= np.isfinite(batch.signals).all(axis=1) & np.isfinite(batch.vectors).all(axis=1)
    return np.asarray(valid & np.isfinite(batch.times_s))


def _check_prior(prior: Prior, p: int, k: int) -> None:
    if prior.weights.shape != (p, k):
        raise ValueError(f"prior.weights: expected {(p, k)}, got {prior.weights.shape}")
    for name, array in (("intercept", prior.intercept), ("labels", prior.labels)):
        if array.shape != (k,) or not np.isfinite(array).all():
            raise ValueError(f"prior.{name}: expected {(k,)}, finite, got {array.shape}")
    if not (prior.labels > 0).all():
        raise ValueError("prior.labels: expected above 0")


class _StateHeader(msgspec.Struct, frozen=True):
    models: tuple[str, ...]
    n_dimensions: int
    forget: float
    cursor: int
    limiter: msgspec.Raw = msgspec.field(name="ration")

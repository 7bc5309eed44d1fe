"""A new model beside the trained ones: one column from its own labels, nothing else changed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice import features
from suffice.artifacts import artifact as artifacts
from suffice.artifacts.artifact import Artifact
from suffice.artifacts.estimators import ConstantEstimator, LinearEstimator
from suffice.errors import ArtifactError, TableError, UsageError
from suffice.lab.data.costs import outcome_costs
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.predictors import linear
from suffice.lab.predictors.base import Batch, extract_table
from suffice.lab.predictors.bayes import PSEUDO_LABELS
from suffice.lab.train.train import key_hashes
from suffice.learning.regression import VECTOR_SCALE
from suffice.names import match_model
from suffice.policies import priors


def add_models(
    old: Artifact, table: Table, *, models: Sequence[str] | None = None, progress: bool = False
) -> Artifact:
    """`old` with a column for each model of `table` that it lacks (or for those of `models`).

    A new column is the reference's plus a gap learned from the new model's labels, against the
    reference's own score of the same query where the table has it, else against what the artifact
    expects of it. With few labels the gap stays near its mean and grows with the ask's length.
    Raises TableError, UsageError, ArtifactError.
    """
    artifacts.check_versions(
        old.card, features.SCHEMA, features.embedding_version(), "the artifact"
    )
    known = old.card.models
    new = [m for m in table.models if match_model(m, known) is None]
    if models is not None:
        unknown = [m for m in models if m not in table.models]
        if unknown:
            raise UsageError(f"--models: the table has no model {unknown[0]!r}.")
        new = [m for m in new if m in models]
    if not new:
        raise TableError(
            "The table holds no model that the artifact lacks.",
            path=table.name,
            column="model",
            remedy=f"It knows {', '.join(known)}.",
        )
    if not isinstance(old.estimator, LinearEstimator | ConstantEstimator):
        raise ArtifactError(
            f"A model cannot be added to an artifact of the kind {old.estimator.kind!r}.",
            remedy="Train it again with all models: suffice train.",
        )
    scored = np.flatnonzero((~np.isnan(table.select_models(new).score)).any(axis=1))
    if not len(scored):
        raise TableError(
            f"There is no score of {new[0]!r}.",
            path=table.name,
            column="score",
            remedy="Collect some: suffice collect. Without labels a configured `quality` places it.",
        )
    table = table.take(scored)
    x = extract_table(table, progress)
    for name in new:
        old = _joined(old, table, x, name)
    notes = f"{', '.join(new)} added from {len(scored)} queries of {table.name}"
    card = msgspec.structs.replace(
        old.card,
        labels=old.card.labels + int((~np.isnan(table.select_models(new).score)).sum()),
        notes=(*old.card.notes, notes),
    )
    keys = np.union1d(old.training_keys, key_hashes(table))
    grown = msgspec.structs.replace(old, card=card, training_keys=keys)
    return artifacts.unpack(artifacts.pack(grown))


def _joined(old: Artifact, table: Table, x: Batch, name: str) -> Artifact:
    column = table.models.index(name)
    score = table.score[:, column]
    rows = ~np.isnan(score)
    anchor = old.card.models.index(old.card.reference)
    expected = old.estimator.predict(x.signals, x.vectors)[0][:, anchor]
    own = next((m for m in table.models if match_model(m, (old.card.reference,)) == 0), None)
    beside = expected if own is None else table.score[:, table.models.index(own)]
    gap = score - np.where(np.isnan(beside), expected, beside)
    usd, _, _ = outcome_costs(table)
    mean_usd = float(np.nanmean(usd[:, column])) if (~np.isnan(usd[:, column])).any() else np.nan
    tokens = None if table.output_tokens is None else table.output_tokens[:, column]
    # Few labels pull the gap towards none, as they pull every mean.
    weight = rows.sum() / (rows.sum() + PSEUDO_LABELS)
    mean_gap = float(gap[rows].mean() * weight)
    estimator = old.estimator
    if isinstance(estimator, ConstantEstimator):
        quality = float(estimator.quality[anchor] + mean_gap)
        spent = np.nan if tokens is None else float(np.nanmean(tokens))
        made: LinearEstimator | ConstantEstimator = ConstantEstimator(
            (name,), np.array([quality]), np.array([mean_usd]), np.array([spent])
        )
    else:
        assert isinstance(estimator, LinearEstimator)  # the caller refuses other kinds
        made = _column(estimator, anchor, x.take(rows), gap[rows], mean_gap, name, mean_usd)
        if estimator.has_tokens:
            made = _with_tokens(made, estimator, anchor, x.take(rows), tokens, rows)
    more = msgspec.structs.replace(old, estimator=made, **_sampled(old, made, anchor))
    return artifacts.with_models(old, more)


def _column(
    e: LinearEstimator, anchor: int, x: Batch, gap: FloatArray, mean: float, name: str, usd: float
) -> LinearEstimator:
    slope = priors.length_slope(mean)
    w, b = linear.fit_gap_head(x, gap, mean, slope)
    s = len(e.mean)
    return LinearEstimator(
        (name,),
        e.mean,
        e.std,
        e.clip,
        e.signals[:, [anchor]] + w[:s, None],
        e.vectors[:, [anchor]] + w[s:, None] * VECTOR_SCALE,
        e.intercept[[anchor]] + b,
        np.array([usd]),
    )


def _with_tokens(
    made: LinearEstimator,
    e: LinearEstimator,
    anchor: int,
    x: Batch,
    tokens: FloatArray | None,
    rows: NDArray[np.bool_],
) -> LinearEstimator:
    """The new model's token head: from its labels, else the anchor's."""
    k = len(e.models)
    signals, vectors = e.signals[:, [anchor - k]], e.vectors[:, [anchor - k]]
    intercept = e.intercept[[anchor - k]]
    if tokens is not None and (tokens[rows] > 0).sum() >= 10:
        w, b = linear.fit_log_heads(x, np.where(tokens[rows] > 0, tokens[rows], np.nan)[:, None])
        s = len(e.mean)
        signals, vectors = w[:s], w[s:] * VECTOR_SCALE
        intercept = np.asarray(b)
    return msgspec.structs.replace(
        made,
        signals=np.concatenate([made.signals, signals], axis=1),
        vectors=np.concatenate([made.vectors, vectors], axis=1),
        intercept=np.append(made.intercept, intercept),
        has_tokens=True,
    )


def _sampled(
    old: Artifact, made: LinearEstimator | ConstantEstimator, anchor: int
) -> dict[str, FloatArray]:
    """What the new column would have said of the artifact's sample. The sample's texts are not
    kept, so the anchor's predictions, moved by the mean gap on it, stand in for them."""
    m = len(old.sample_input)
    if isinstance(made, ConstantEstimator):
        quality = np.full(m, made.quality[0])
        tokens = np.full(m, made.tokens[0])
    else:
        e = old.estimator
        assert isinstance(e, LinearEstimator)
        shift = float(made.intercept[0] - e.intercept[anchor])
        slope = float(made.signals[0, 0] - e.signals[0, anchor])
        quality = old.sample_quality[:, anchor] + shift + slope * old.sample_length
        tokens = old.sample_tokens[:, anchor]
    return {
        "sample_quality": quality[:, None],
        "sample_cost": np.full((m, 1), made.cost[0]),
        "sample_tokens": tokens[:, None],
    }

"""Adds models to a trained artifact: one column each from its own labels, nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from suffice import features
from suffice.artifacts import artifact as artifacts
from suffice.artifacts.artifact import Artifact
from suffice.artifacts.estimators import ConstantEstimator, LinearEstimator
from suffice.errors import ArtifactError, TableError, UsageError
from suffice.lab.data.costs import outcome_costs
from suffice.lab.data.keys import key_hashes
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.predictors.base import Batch, extract_table
from suffice.lab.predictors.bayes import PSEUDO_LABELS
from suffice.lab.predictors.linear import fit_gap_head, fit_log_heads
from suffice.lab.stats import effective_weights
from suffice.learning.regression import VECTOR_SCALE
from suffice.names import match_model
from suffice.policies import priors

MIN_TOKEN_LABELS = 10


def add_models(
    artifact: Artifact,
    table: Table,
    *,
    models: Sequence[str] | None = None,
    progress: bool = False,
) -> Artifact:
    """Add a column for each model of a table that the artifact lacks.

    A new column is that of the reference plus a gap learned from the new model's labels, against the
    reference's score of the same query if the table has it, else against what the artifact predicts.
    With few labels the gap is near its mean and grows with the length of the query.

    Args:
        artifact: Linear or constant.
        table: With labels of the new models.
        models: Only these of the new models; None: all.
        progress: Show a bar on standard error.

    Returns:
        The larger artifact.

    Raises:
        TableError: If the table has no new model, or no score of one.
        UsageError: If a named model is unknown.
        ArtifactError: If the artifact cannot be extended.
    """
    artifacts.check_versions(
        artifact.card, features.SCHEMA, features.embedding_version(), "the artifact"
    )
    new = _new_models(artifact, table, models)
    if not isinstance(artifact.estimator, LinearEstimator | ConstantEstimator):
        raise ArtifactError(
            f"A model cannot be added to an artifact of the kind {artifact.estimator.kind!r}.",
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
    x, usd = extract_table(table, progress), outcome_costs(table).usd
    larger = artifact
    for name in new:
        larger = _add_column(larger, table, x, usd[:, table.models.index(name)], name)
    note = f"{', '.join(new)} added from {len(scored)} queries of {table.name}"
    labels = int((~np.isnan(table.select_models(new).score)).sum())
    card = msgspec.structs.replace(
        larger.card, labels=larger.card.labels + labels, notes=(*larger.card.notes, note)
    )
    keys = np.union1d(larger.training_keys, key_hashes(table))
    larger = msgspec.structs.replace(larger, card=card, training_keys=keys)
    return artifacts.unpack(artifacts.pack(larger))


def _new_models(artifact: Artifact, table: Table, models: Sequence[str] | None) -> list[str]:
    known = artifact.card.models
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
    return new


@dataclass(frozen=True)
class _NewModel:
    """A model to add.

    Attributes:
        name: Of the model.
        x: Features of its n labelled queries.
        gap: (n,) its score less that of the reference.
        mean_gap: Of them, shrunk towards none.
        usd: Its mean cost, NaN if unknown.
        tokens: (n,) output tokens, NaN if unknown; None if the table has none.
        weight: (n,) how many labels each query counts as; None: one each.
    """

    name: str
    x: Batch
    gap: FloatArray
    mean_gap: float
    usd: float
    tokens: FloatArray | None
    weight: FloatArray | None


def _add_column(artifact: Artifact, table: Table, x: Batch, usd: FloatArray, name: str) -> Artifact:
    estimator = artifact.estimator
    reference = artifact.card.models.index(artifact.card.reference)
    model = _describe(artifact, table, x, usd, name)
    column: LinearEstimator | ConstantEstimator
    if isinstance(estimator, ConstantEstimator):
        quality = float(estimator.quality[reference] + model.mean_gap)
        tokens = np.nan if model.tokens is None else float(np.nanmean(model.tokens))
        column = ConstantEstimator(
            (name,), np.array([quality]), np.array([model.usd]), np.array([tokens])
        )
    else:
        assert isinstance(estimator, LinearEstimator)  # add_models refuses other kinds
        column = _linear_column(estimator, reference, model)
        if estimator.has_tokens:
            column = _with_token_head(column, estimator, reference, model)
    samples = _predicted_samples(artifact, column, reference)
    return artifacts.with_models(
        artifact, msgspec.structs.replace(artifact, estimator=column, **samples)
    )


def _describe(artifact: Artifact, table: Table, x: Batch, usd: FloatArray, name: str) -> _NewModel:
    column = table.models.index(name)
    score = table.score[:, column]
    rows = ~np.isnan(score)
    reference = artifact.card.reference
    predicted = artifact.estimator.predict(x.signals, x.vectors)[0]
    predicted = predicted[:, artifact.card.models.index(reference)]
    same = next((m for m in table.models if match_model(m, (reference,)) == 0), None)
    baseline = predicted if same is None else table.score[:, table.models.index(same)]
    gap = (score - np.where(np.isnan(baseline), predicted, baseline))[rows]
    weight = None if table.sampling_weight is None else table.sampling_weight[rows]
    weight = effective_weights(weight)
    labels = len(gap) if weight is None else float(weight.sum())
    # Few labels shrink the gap towards none, as they shrink every mean.
    mean_gap = float(np.average(gap, weights=weight) * (labels / (labels + PSEUDO_LABELS)))
    return _NewModel(
        name=name,
        x=x.take(rows),
        gap=gap,
        mean_gap=mean_gap,
        usd=float(np.nanmean(usd)) if (~np.isnan(usd)).any() else np.nan,
        tokens=None if table.output_tokens is None else table.output_tokens[rows, column],
        weight=weight,
    )


def _linear_column(estimator: LinearEstimator, reference: int, model: _NewModel) -> LinearEstimator:
    slope = priors.length_slope(model.mean_gap)
    weights, intercept = fit_gap_head(model.x, model.gap, model.mean_gap, slope, model.weight)
    n_signals = len(estimator.mean)
    return LinearEstimator(
        (model.name,),
        estimator.mean,
        estimator.std,
        estimator.clip,
        estimator.signals[:, [reference]] + weights[:n_signals, None],
        estimator.vectors[:, [reference]] + weights[n_signals:, None] * VECTOR_SCALE,
        estimator.intercept[[reference]] + intercept,
        np.array([model.usd]),
    )


def _with_token_head(
    column: LinearEstimator, estimator: LinearEstimator, reference: int, model: _NewModel
) -> LinearEstimator:
    """The new column with a head for its tokens: from its labels, else that of the reference."""
    head = reference - len(estimator.models)
    signals, vectors = estimator.signals[:, [head]], estimator.vectors[:, [head]]
    intercept = estimator.intercept[[head]]
    if model.tokens is not None and (model.tokens > 0).sum() >= MIN_TOKEN_LABELS:
        positive = np.where(model.tokens > 0, model.tokens, np.nan)[:, None]
        weights, intercept = fit_log_heads(model.x, positive, model.weight)
        n_signals = len(estimator.mean)
        signals, vectors = weights[:n_signals], weights[n_signals:] * VECTOR_SCALE
    return msgspec.structs.replace(
        column,
        signals=np.concatenate([column.signals, signals], axis=1),
        vectors=np.concatenate([column.vectors, vectors], axis=1),
        intercept=np.append(column.intercept, intercept),
        has_tokens=True,
    )


def _predicted_samples(
    artifact: Artifact, column: LinearEstimator | ConstantEstimator, reference: int
) -> dict[str, FloatArray]:
    """What the new column predicts for the artifact's sample.

    The artifact does not hold the sample's texts. The reference's predictions, moved by the gap's
    intercept and slope on length, replace them.

    Returns:
        Quality, cost and tokens, (m, 1) each.
    """
    m = len(artifact.sample_input)
    if isinstance(column, ConstantEstimator):
        quality = np.full(m, column.quality[0])
        tokens = np.full(m, column.tokens[0])
    else:
        estimator = artifact.estimator
        assert isinstance(estimator, LinearEstimator)  # add_models refuses other kinds
        shift = float(column.intercept[0] - estimator.intercept[reference])
        slope = float(column.signals[0, 0] - estimator.signals[0, reference])
        quality = artifact.sample_quality[:, reference] + shift + slope * artifact.sample_length
        tokens = artifact.sample_tokens[:, reference]
    return {
        "sample_quality": quality[:, None],
        "sample_cost": np.full((m, 1), column.cost[0]),
        "sample_tokens": tokens[:, None],
    }

"""Fits policies on labelled outcomes and makes the artifact that serving loads.

The learner is chosen by nested cross-validation. A learner is chosen only if its gain over the zero
router on unseen queries is above zero with confidence; otherwise the artifact is a constant.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice import features
from suffice.artifacts import artifact as artifacts
from suffice.artifacts import estimators
from suffice.artifacts.artifact import Artifact, Card
from suffice.errors import UsageError
from suffice.lab.data.keys import key_hashes
from suffice.lab.data.splits import connected_groups, group_kfold
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.evaluate.frontier import Gain, area_gain
from suffice.lab.evaluate.problem import EvalSet, build_eval_set
from suffice.lab.predictors.base import Batch, Predictor, extract_table, track
from suffice.lab.predictors.linear import MIN_MULTI_MODEL_LABELS, fit_log_heads
from suffice.lab.predictors.registry import NO_LABELS, make_predictor, plugin_names
from suffice.lab.stats import ClusterBootstrap, effective_weights
from suffice.learning.regression import VECTOR_SCALE

OUTER_FOLDS, INNER_FOLDS = 5, 3
MIN_COMPARABLE_QUERIES = 60  # complete queries below which cross-validation compares nothing
SAMPLE_QUERIES = 1024  # training queries whose predictions the artifact stores
CONFIDENCE = 0.9  # one-sided, that the learner's gain is above zero
DRAWS = 400
CANDIDATES = ("trained", "ridge", "knn", "cluster")
MIN_TOKEN_LABELS = 10
NESTED = "nested"

GainInterval = tuple[float, tuple[float, float] | None]


@dataclass(frozen=True)
class TrainingResult:
    """How the learner was chosen.

    Attributes:
        chosen: Name of the learner.
        reason: Why it was chosen.
        gains: Learner -> its gain over the zero router on unseen queries, with its 95 % interval.
        nested: The same for the learner that the inner folds choose, which is the gain that the
            chosen learner may be credited with.
        notes: For the user.
    """

    chosen: str
    reason: str
    gains: dict[str, GainInterval]
    nested: GainInterval | None
    notes: tuple[str, ...]


def train(
    table: Table,
    *,
    models: Sequence[str] | None = None,
    policy: str | None = None,
    seed: int = 0,
    licence: str = "unknown",
    date: str | None = None,
    progress: bool = False,
) -> tuple[Artifact, TrainingResult]:
    """Train an artifact on a labelled table.

    Args:
        table: Outcomes of at least two models.
        models: To train on; None: those that share enough scored queries.
        policy: One learner by name; None: choose by nested cross-validation.
        seed: Of folds, bootstrap and sample.
        licence: Of the labels, for the card.
        date: ISO date, for the card; None: today.
        progress: Show bars on standard error.

    Returns:
        The artifact, and how its learner was chosen.

    Raises:
        TableError: If there is one model, or the models do not overlap.
        UsageError: If a model or the policy is unknown, or the policy cannot be saved.
    """
    if policy in NO_LABELS:
        raise UsageError(
            f"The policy {policy!r} learns nothing.", remedy="It needs no artifact: just name it."
        )
    if policy is not None:
        make_predictor(policy)  # refuses an unknown name before an hour of work
    eval_set = build_eval_set(table, models)
    data = TrainingData.of_eval_set(eval_set, progress)
    names = [policy] if policy is not None else [*CANDIDATES, *plugin_names()]
    result = _choose(data, eval_set, names, policy, seed, progress)
    return _make_artifact(data, result, seed, licence, date or dt.date.today().isoformat()), result


@dataclass(frozen=True)
class TrainingData:
    """Every labelled query as numbers.

    Attributes:
        table: Queries with at least one score.
        x: Their features.
        price: (k,) mean cost of each model.
        cost: (n, k) as known, NaN if unknown; None unless every model has some cost.
        paid: (n, k) as known, else the price.
        cost_unit: Of price and paid.
        complete: Rows with every score: only these are scored, all are learned from.
    """

    table: Table
    x: Batch
    price: FloatArray
    cost: FloatArray | None
    paid: FloatArray
    cost_unit: str
    complete: NDArray[np.intp]

    @classmethod
    def of_eval_set(cls, eval_set: EvalSet, progress: bool) -> TrainingData:
        """Compute the features of the labelled queries."""
        labelled = np.flatnonzero((~np.isnan(eval_set.table.score)).any(axis=1))
        table, usd = eval_set.table.take(labelled), eval_set.cost_usd[labelled]
        price = np.broadcast_to(eval_set.mean_cost, usd.shape)
        costed = bool((~np.isnan(usd)).any(axis=0).all())
        paid = np.where(np.isnan(usd), price, usd) if costed else price
        return cls(
            table=table,
            x=extract_table(table, progress),
            price=eval_set.mean_cost,
            cost=usd if costed else None,
            paid=np.asarray(paid),
            cost_unit=eval_set.cost_unit,
            complete=np.flatnonzero(table.complete),
        )

    def weight(self, rows: NDArray[np.intp]) -> FloatArray | None:
        """(len(rows),) sampling weights; None: all equal."""
        weight = self.table.sampling_weight
        return None if weight is None else weight[rows]

    def fit(self, rows: NDArray[np.intp], name: str) -> Predictor:
        """Fit a learner on these rows."""
        return make_predictor(name).fit(
            self.x.take(rows),
            self.table.score[rows],
            None if self.cost is None else self.cost[rows],
            self.price,
            self.table.models,
            sample_weight=effective_weights(self.weight(rows)),
        )

    def gain(
        self, rows: NDArray[np.intp], predicted: _Predicted, bootstrap: ClusterBootstrap | None
    ) -> Gain:
        """Gain of predictions for these rows over the zero router."""
        return area_gain(
            predicted, self.table.score[rows], self.paid[rows], bootstrap, self.weight(rows)
        )


class _Predicted(NamedTuple):
    """Predictions (rows, k) of quality and cost."""

    quality: FloatArray
    cost: FloatArray

    def take(self, rows: NDArray[np.intp]) -> _Predicted:
        return _Predicted(self.quality[rows], self.cost[rows])


# ── choosing ─────────────────────────────────────────────────────────────────────────────────────


def _choose(
    data: TrainingData,
    eval_set: EvalSet,
    names: Sequence[str],
    requested: str | None,
    seed: int,
    progress: bool,
) -> TrainingResult:
    notes = list(eval_set.notes)
    n, k = len(data.complete), len(data.table.models)
    if n < MIN_COMPARABLE_QUERIES:
        notes.append(
            f"{n} queries with every score are too few to compare policies; about "
            f"{MIN_MULTI_MODEL_LABELS} suffice"
        )
        # Of a pair the linear head is never much worse than length, which serves without training.
        chosen = requested or ("trained" if k == 2 else "constant")
        return TrainingResult(chosen, "too few labels to compare", {}, None, tuple(notes))
    if requested is None and k >= 3 and n < MIN_MULTI_MODEL_LABELS:
        notes.append(
            f"below {MIN_MULTI_MODEL_LABELS} labelled queries three or more models get constants "
            "only: what else is learned from so few has been worse"
        )
    gains = _cross_validate(data, names, seed, progress)
    nested = gains.pop(NESTED)
    intervals = {m: (g.gain, g.interval()) for m, g in gains.items()}
    nested_interval = (nested.gain, nested.interval())
    if requested is not None:
        return TrainingResult(requested, "requested", intervals, None, tuple(notes))
    if nested.gain > 0 and nested.lower_bound(CONFIDENCE) > 0:
        chosen = max(names, key=lambda m: gains[m].gain)
        reason = (
            f"gains over random mixing of single models on unseen queries ({CONFIDENCE:.0%} sure)"
        )
    elif k == 2 and n < MIN_MULTI_MODEL_LABELS and gains["trained"].gain > 0:
        chosen = "trained"
        reason = "too few labels to be sure, and the linear head falls back on length"
    else:
        chosen, reason = "constant", "no learner was shown to be better than a constant"
    return TrainingResult(chosen, reason, intervals, nested_interval, tuple(notes))


def _cross_validate(
    data: TrainingData, names: Sequence[str], seed: int, progress: bool
) -> dict[str, Gain]:
    """Gain of each learner on unseen queries, and of the learner that inner folds choose."""
    groups = connected_groups(data.table)
    fold = group_kfold(groups, OUTER_FOLDS, seed)
    shape = data.table.score.shape
    predicted = {m: _Predicted(np.zeros(shape), np.zeros(shape)) for m in (*names, NESTED)}
    tasks = [(f, m) for f in range(OUTER_FOLDS) for m in (*names, NESTED)]
    for f, name in track(tasks, "cross-validating", progress):
        training, unseen = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        if name != NESTED:
            fitted = data.fit(training, name).predict(data.x.take(unseen))
        else:
            chosen = _choose_by_inner_folds(data, training, groups, names, seed + 1 + f)
            fitted = predicted[chosen].take(unseen)
        predicted[name].quality[unseen], predicted[name].cost[unseen] = fitted
    rows = data.complete
    bootstrap = ClusterBootstrap(data.table.clusters[rows], DRAWS, seed, data.weight(rows))
    return {m: data.gain(rows, p.take(rows), bootstrap) for m, p in predicted.items()}


def _choose_by_inner_folds(
    data: TrainingData,
    rows: NDArray[np.intp],
    groups: NDArray[np.intp],
    names: Sequence[str],
    seed: int,
) -> str:
    """The learner of the largest gain in cross-validation on `rows`."""
    if len(names) == 1:
        return names[0]
    fold = group_kfold(np.unique(groups[rows], return_inverse=True)[1], INNER_FOLDS, seed)
    complete = np.flatnonzero(np.isin(rows, data.complete))
    gains = {}
    for name in names:
        predicted = _Predicted(*np.zeros((2, *data.table.score[rows].shape)))
        for f in range(INNER_FOLDS):
            unseen = fold == f
            predicted.quality[unseen], predicted.cost[unseen] = data.fit(
                rows[~unseen], name
            ).predict(data.x.take(rows[unseen]))
        gains[name] = data.gain(rows[complete], predicted.take(complete), None).gain
    return max(names, key=gains.__getitem__)


# ── the artifact ─────────────────────────────────────────────────────────────────────────────────


def _make_artifact(
    data: TrainingData, result: TrainingResult, seed: int, licence: str, date: str
) -> Artifact:
    table, x = data.table, data.x
    fitted = data.fit(np.arange(len(table)), result.chosen)
    estimator = _with_token_heads(fitted.estimator(table.models), table, x)
    sample = _sample_rows(len(table), table.sampling_weight, seed)
    quality, cost = estimator.predict(x.signals[sample], x.vectors[sample])
    tokens = estimator.output_tokens(x.signals[sample], x.vectors[sample])
    if data.cost_unit != "usd":
        cost = np.full(cost.shape, np.nan)
    mean, std = features.feature_scaler()
    prompt_tokens = features.SIGNAL_NAMES.index("log_prompt_tokens")
    known = table.score[~np.isnan(table.score)]
    card = Card(
        kind=estimator.kind,
        models=table.models,
        features=features.SCHEMA,
        table=features.embedding_version(),
        reference=table.models[int(np.argmax(quality.mean(axis=0)))],
        trained_on=table.name,
        queries=len(table),
        labels=len(known),
        made=date,
        made_by=f"suffice {version('suffice')}",
        licence=licence,
        seed=seed,
        scores="right/wrong" if np.isin(known, (0.0, 1.0)).all() else "graded",
        figures=_card_figures(result),
        prices=_list_prices(table.models),
        notes=(*table.warnings, *result.notes),
    )
    artifact = Artifact(
        card=card,
        estimator=estimator,
        sample_quality=quality,
        sample_cost=cost,
        sample_tokens=np.full(cost.shape, np.nan) if tokens is None else tokens,
        sample_input=np.expm1(x.signals[sample, prompt_tokens].astype(float)),
        sample_length=((x.signals[sample, 0] - mean[0]) / std[0]).astype(float),
        training_keys=np.unique(key_hashes(table)),
    )
    return artifacts.unpack(artifacts.pack(artifact))  # as serving will see it, rounded


def _sample_rows(n: int, weight: FloatArray | None, seed: int) -> NDArray[np.intp]:
    """Training queries that represent the population."""
    rng = np.random.default_rng(seed)
    if weight is not None:
        return rng.choice(n, SAMPLE_QUERIES, p=weight / weight.sum())
    return (
        rng.permutation(n) if n <= SAMPLE_QUERIES else rng.choice(n, SAMPLE_QUERIES, replace=False)
    )


def _with_token_heads(
    estimator: estimators.Estimator, table: Table, x: Batch
) -> estimators.Estimator:
    """The estimator with heads for the log of output tokens, if the table has output tokens.

    With them the predicted cost of a query follows the catalog's prices as they change.

    Returns:
        The estimator with the heads, or as it is.
    """
    tokens = table.output_tokens
    if tokens is None:
        return estimator
    positive = np.where(tokens > 0, tokens, np.nan)
    if (np.isfinite(positive).sum(axis=0) < MIN_TOKEN_LABELS).any():
        return estimator
    weight = effective_weights(table.sampling_weight)
    if isinstance(estimator, estimators.ConstantEstimator):
        known = np.isfinite(positive) * (1.0 if weight is None else weight[:, None])
        return msgspec.structs.replace(
            estimator, tokens=(np.nan_to_num(positive) * known).sum(axis=0) / known.sum(axis=0)
        )
    if not isinstance(estimator, estimators.LinearEstimator):
        return estimator
    weights, intercept = fit_log_heads(x, positive, weight)
    n_signals = len(estimator.mean)
    return msgspec.structs.replace(
        estimator,
        signals=np.concatenate([estimator.signals, weights[:n_signals]], axis=1),
        vectors=np.concatenate([estimator.vectors, weights[n_signals:] * VECTOR_SCALE], axis=1),
        intercept=np.append(estimator.intercept, intercept),
        has_tokens=True,
    )


def _card_figures(result: TrainingResult) -> dict[str, object]:
    def figures(gain: GainInterval) -> dict[str, object]:
        return {"gain_over_zero_router": round(gain[0], 6), "ci": gain[1]}

    card: dict[str, object] = {"chosen": result.chosen, "why": result.reason}
    if result.nested is not None:
        card["nested"] = figures(result.nested)
    if result.gains:
        card["cross_validated"] = {m: figures(g) for m, g in result.gains.items()}
    return card


def _list_prices(models: Sequence[str]) -> dict[str, tuple[float, float]]:
    """List prices of the models at training, so that costs can follow them."""
    from suffice.catalog import builtin_models

    prices = {}
    for entry in builtin_models():
        usd_in, usd_out = entry.price.input_usd_per_mtok, entry.price.output_usd_per_mtok
        if usd_in is None or usd_out is None:
            continue
        for name in models:
            if name in (entry.name, entry.upstream):
                prices[name] = (usd_in, usd_out)
    return prices

"""What each policy predicts for the queries of an evaluation set.

A policy that learns never sees a label of a query that it is scored on: it is fitted on another table,
or cross-fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ArtifactError, TableError, UsageError
from suffice.lab.data.costs import outcome_costs
from suffice.lab.data.splits import group_kfold
from suffice.lab.data.table import FloatArray, RowIndex, Table
from suffice.lab.evaluate.problem import EvalSet
from suffice.lab.predictors.base import Batch, Predictor, extract_table, track
from suffice.lab.predictors.registry import (
    LEARNERS,
    NO_LABELS,
    is_artifact,
    learns,
    make_predictor,
)
from suffice.lab.stats import effective_weights
from suffice.names import match_model

FOLDS = 5


@dataclass(frozen=True)
class Predictions:
    """Predictions for the n queries of an evaluation set, or for some of them.

    Attributes:
        quality: (n, k).
        cost: (n, k).
        strong_score: (n,) of a pair; queries of a larger score go to the strong model first.
        fitted: How the policy was fitted, for the user.
        predictor: One that was fitted.
        rows: Queries (0 to n - 1) that `predictor` did not learn from.
    """

    quality: FloatArray
    cost: FloatArray
    strong_score: FloatArray | None
    fitted: str
    predictor: Predictor
    rows: NDArray[np.intp]

    def subset(self, rows: NDArray[np.bool_]) -> Predictions:
        """Only these queries."""
        score = self.strong_score
        return replace(
            self,
            quality=self.quality[rows],
            cost=self.cost[rows],
            strong_score=None if score is None else score[rows],
            rows=np.empty(0, np.intp),
        )


@dataclass(frozen=True)
class Labels:
    """Labels that predictors learn from, models in the order of the evaluation set.

    Attributes:
        score: (m, k), NaN if unknown.
        cost: (m, k), NaN if unknown; None if no cost is known.
        weight: (m,) how many queries of the population each row represents; None: all equal.
        benchmark: (m,) where each row comes from; None: unknown.
    """

    score: FloatArray
    cost: FloatArray | None
    weight: FloatArray | None
    benchmark: tuple[str | None, ...] | None

    def __len__(self) -> int:
        return len(self.score)

    def take(self, index: RowIndex) -> Labels:
        """Only these rows."""
        return Labels(
            self.score[index],
            None if self.cost is None else self.cost[index],
            None if self.weight is None else self.weight[index],
            None,
        )

    @classmethod
    def of_eval_set(cls, eval_set: EvalSet) -> Labels:
        """The labels of every query of the evaluation set's table."""
        table = eval_set.table
        return cls(table.score, eval_set.labelled_cost, table.sampling_weight, table.benchmark)


@dataclass(frozen=True)
class TrainingSet:
    """A table to fit on, without any query that is evaluated.

    Attributes:
        table: The queries.
        labels: Of the models of the evaluation set.
        notes: What was dropped, for the user.
    """

    table: Table
    labels: Labels
    notes: tuple[str, ...]

    @classmethod
    def of_table(cls, table: Table, eval_set: EvalSet) -> TrainingSet:
        """Drop evaluated queries and match the models.

        Args:
            table: To fit on.
            eval_set: That policies are scored on.

        Returns:
            The training set.

        Raises:
            UsageError: If every query is evaluated.
            TableError: If fewer than two models are in both tables.
        """
        table, notes = _drop_evaluated(table, eval_set)
        columns = [match_model(m, table.models) for m in eval_set.models]
        known = [table.models[c] for c in columns if c is not None]
        if len(known) < 2:
            raise TableError(
                "The models do not overlap: the table to fit on has "
                f"{', '.join(table.models[:6]) or 'no model'}; judged are "
                f"{', '.join(eval_set.models[:6])}.",
                path=table.name,
                column="model",
                remedy="Fit on outcomes of the same models.",
            )
        unknown = [m for m, c in zip(eval_set.models, columns, strict=True) if c is None]
        if unknown:
            notes.append(f"the table to fit on knows nothing of {', '.join(unknown[:6])}")
        usd = outcome_costs(table.select_models(known)).usd
        score = np.full((len(table), len(columns)), np.nan)
        cost = np.full_like(score, np.nan)
        for j, column in enumerate(columns):
            if column is not None:
                score[:, j] = table.score[:, column]
                cost[:, j] = usd[:, known.index(table.models[column])]
        priced = eval_set.cost_unit == "usd" and not np.isnan(cost).all()
        labels = Labels(score, cost if priced else None, table.sampling_weight, table.benchmark)
        return cls(table, labels, tuple(notes))


def _drop_evaluated(table: Table, eval_set: EvalSet) -> tuple[Table, list[str]]:
    notes = []
    evaluated = set(eval_set.table.keys)
    unseen = np.array([k not in evaluated for k in table.keys], dtype=bool)
    dropped = int((~unseen).sum())
    if dropped:
        notes.append(
            f"{dropped} of {len(table)} queries of the table to fit on are also in the table "
            "that is judged, and were dropped before fitting"
        )
    if not unseen.any():
        raise UsageError(
            "--fit-on: every query of that table is also in the table that is judged.",
            remedy="Leave --fit-on out: policies that learn are then cross-fitted.",
        )
    table = table.take(unseen)
    if table.group is not None and eval_set.table.group is not None:
        shared = set(table.group) & set(eval_set.table.group)
        if shared:
            notes.append(f"{len(shared)} groups are in both tables: the figures may flatter")
    return table, notes


class PredictionRunner:
    """Runs policies on the queries of an evaluation set. Features are computed once.

    Attributes:
        x: Features of the evaluated queries.
        seed: Of the folds.
    """

    def __init__(
        self,
        eval_set: EvalSet,
        training_set: TrainingSet | None,
        clusters: NDArray[np.intp],
        names: Sequence[str],
        seed: int,
        progress: bool,
    ) -> None:
        """Compute the features.

        Args:
            eval_set: That policies are scored on.
            training_set: To fit on; None: policies that learn are cross-fitted.
            clusters: (queries of the table,) numbers of what must not be split between folds.
            names: Of the policies that will be run.
            seed: Of the folds.
            progress: Show a bar on standard error.
        """
        self.eval_set = eval_set
        self.seed = seed
        self._training_set = training_set
        self._clusters = clusters
        # Length and prices need no embedding, which is half the time on a large table.
        vectors = any(n not in NO_LABELS for n in names)
        self._table_x = extract_table(eval_set.table, progress, vectors)
        self.x = self._table_x.take(eval_set.rows)
        self._training_x: Batch | None = None
        if training_set is not None and any(learns(n) for n in names):
            self._training_x = extract_table(training_set.table, progress, vectors)

    def run(self, name: str) -> Predictions:
        """Fit a policy without the labels of the queries that it is scored on, and predict.

        Returns:
            Predictions for every evaluated query.

        Raises:
            UsageError: If the policy is unknown or its predictions are invalid.
            TableError: If it cannot be cross-fitted.
        """
        if not learns(name):
            return self._run_without_labels(name, self.x)
        if self._training_set is not None and self._training_x is not None:
            labels = self._training_set.labels
            predictor = self._fit(name, self._training_x, labels)
            return self._predict(predictor, self.x, f"fitted on {len(labels):,} queries")
        return self.cross_fit(name)

    def run_all(self, names: Sequence[str], progress: bool) -> dict[str, Predictions]:
        """Run several policies."""
        return {n: self.run(n) for n in track(names, "running policies", progress)}

    def cross_fit(self, name: str) -> Predictions:
        """Predict each query by a fit on the folds that share no cluster with it.

        Returns:
            Predictions for every evaluated query.

        Raises:
            TableError: If all queries are in one cluster.
        """
        fold = group_kfold(self._clusters, FOLDS, self.seed)
        if fold.max() < 1:
            raise TableError(
                f"{name} cannot be cross-fitted: all queries share one prompt or group.",
                path=self.eval_set.table.name,
                remedy="Give labels of other queries with --fit-on.",
            )
        labels = Labels.of_eval_set(self.eval_set)
        fold_of_row = fold[self.eval_set.rows]
        fitted = f"cross-fitted, {int(fold.max()) + 1} folds"
        parts: list[Predictions] = []
        for f in np.unique(fold_of_row):
            inside = np.flatnonzero(fold_of_row == f)
            predictor = self._fit(name, self._table_x.take(fold != f), labels.take(fold != f))
            part = self._predict(predictor, self.x.take(inside), fitted)
            parts.append(replace(part, rows=inside))
        order = np.argsort(np.concatenate([p.rows for p in parts]), kind="stable")
        scores = [p.strong_score for p in parts if p.strong_score is not None]
        return replace(
            parts[0],
            quality=np.concatenate([p.quality for p in parts])[order],
            cost=np.concatenate([p.cost for p in parts])[order],
            strong_score=np.concatenate(scores)[order] if scores else None,
        )

    def leave_source_out(self, source: str) -> Callable[[str], Predictions]:
        """Predict the queries of one benchmark by policies fitted on all other benchmarks.

        Args:
            source: The benchmark.

        Returns:
            A function from the name of a policy to its predictions.
        """
        benchmark = self.eval_set.table.benchmark or ()
        inside = np.array([benchmark[i] == source for i in self.eval_set.rows], dtype=bool)
        if self._training_set is not None and self._training_x is not None:
            labels, x = self._training_set.labels, self._training_x
            sources = labels.benchmark or (None,) * len(labels)
            others = np.array([s != source for s in sources], dtype=bool)
        else:
            labels, x = Labels.of_eval_set(self.eval_set), self._table_x
            # A question that is in two benchmarks is dropped from both.
            shared = self._clusters[[b == source for b in benchmark]]
            others = ~np.isin(self._clusters, shared)
        labels, x, x_inside = labels.take(others), x.take(others), self.x.take(inside)

        def run(name: str) -> Predictions:
            if not learns(name):
                return self._run_without_labels(name, x_inside, fitted="no labels")
            fitted = f"fitted on {len(labels):,} queries of other benchmarks"
            return self._predict(self._fit(name, x, labels), x_inside, fitted)

        return run

    def _run_without_labels(self, name: str, x: Batch, fitted: str | None = None) -> Predictions:
        no_labels = Labels(np.empty((0, len(self.eval_set.models))), None, None, None)
        predictor = self._fit(name, self._table_x.take(np.empty(0, np.intp)), no_labels)
        return self._predict(
            predictor, x, fitted or ("artifact" if is_artifact(name) else "no labels")
        )

    def _fit(self, name: str, x: Batch, labels: Labels) -> Predictor:
        predictor = make_predictor(name)
        try:
            return predictor.fit(
                x,
                labels.score,
                labels.cost,
                self.eval_set.mean_cost,
                self.eval_set.models,
                sample_weight=effective_weights(labels.weight),
            )
        except (ArtifactError, UsageError, TableError):
            raise
        except ValueError as error:
            raise UsageError(f"--policy {name}: it could not be fitted: {error}.") from error

    def _predict(self, predictor: Predictor, x: Batch, fitted: str) -> Predictions:
        """Predict and check shapes and values."""
        quality, cost = predictor.predict(x)
        shape = (len(x), len(self.eval_set.models))
        _validate(predictor, "quality", quality, shape)
        _validate(predictor, "cost", cost, shape)
        strong_score = None
        if self.eval_set.pair is not None:
            strong_score = np.asarray(predictor.strong_score(x, *self.eval_set.pair), float)
            _validate(predictor, "strong_score", strong_score, shape[:1])
        return Predictions(
            np.asarray(quality, float),
            np.asarray(cost, float),
            strong_score,
            fitted,
            predictor,
            np.arange(len(x)),
        )


def _validate(predictor: Predictor, what: str, values: FloatArray, shape: tuple[int, ...]) -> None:
    if np.shape(values) != shape:
        raise UsageError(
            f"--policy {predictor.name}: its {what} has the shape {np.shape(values)}, "
            f"expected {shape}."
        )
    if np.isnan(values).any():
        raise UsageError(f"--policy {predictor.name}: its {what} holds values that are NaN.")


def policy_names(policies: Sequence[str], has_training_set: bool) -> list[str]:
    """Names of the policies to evaluate, each once, in the order requested.

    Args:
        policies: As requested, comma-separated or one by one.
        has_training_set: Whether there is a table to fit on; learners are then included by default.

    Returns:
        The names.
    """
    if not policies:
        return ["default", *LEARNERS] if has_training_set else ["default"]
    names = [name.strip() for policy in policies for name in policy.split(",")]
    return [n for n in dict.fromkeys(names) if n]

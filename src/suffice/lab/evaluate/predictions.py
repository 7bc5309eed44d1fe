"""What each policy says of the queries it is judged on, and how it came to say it.

A policy that learns never sees a label of a query it is judged on: it is fitted on another table,
or cross-fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ArtifactError, TableError, UsageError
from suffice.lab.data.costs import outcome_costs
from suffice.lab.data.splits import group_kfold
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.evaluate.problem import EvalSet
from suffice.lab.predictors.base import Batch, Predictor, extract_table, track
from suffice.lab.predictors.registry import BUILT_IN, make_predictor
from suffice.names import match_model

FOLDS = 5
NO_LABELS = ("default", "length")  # these look at prices and length only
LEARNED = ("trained", "knn", "cluster", "ridge", "constant")


@dataclass(frozen=True)
class Predictions:
    """quality, cost: (n, k) as predicted for the judged queries. rank: (n,) who should rather go to
    the strong model, of a pair. fitted: how, in words. predictor: one that was fitted, and the
    judged queries (positions in 0..n-1) it may be asked about again."""

    quality: FloatArray
    cost: FloatArray
    rank: FloatArray | None
    fitted: str
    predictor: Predictor
    rows: NDArray[np.intp]


def is_artifact(name: str) -> bool:
    return name not in BUILT_IN and (name.endswith(".npz") or Path(name).is_file())


def learns(name: str) -> bool:
    return name not in NO_LABELS and not is_artifact(name)


class TrainingSet:
    """Labels to learn from: a table without any query that is judged, models in the ground's order.

    table: as given; score and cost: (m, k), NaN where unknown. notes: what was dropped.
    """

    def __init__(self, table: Table, ground: EvalSet) -> None:
        judged = set(ground.table.keys)
        fresh = np.array([k not in judged for k in table.keys], dtype=bool)
        self.notes: list[str] = []
        dropped = int((~fresh).sum())
        if dropped:
            self.notes.append(
                f"{dropped} of {len(table)} queries of the table to fit on are also in the table "
                "that is judged, and were dropped before fitting"
            )
        if not fresh.any():
            raise UsageError(
                "--fit-on: every query of that table is also in the table that is judged.",
                remedy="Leave --fit-on out: policies that learn are then cross-fitted.",
            )
        table = table.take(fresh)
        if table.group is not None and ground.table.group is not None:
            shared = set(table.group) & set(ground.table.group)
            if shared:
                self.notes.append(
                    f"{len(shared)} groups stand in both tables: the figures may flatter"
                )
        columns = [match_model(m, table.models) for m in ground.models]
        known = [table.models[c] for c in columns if c is not None]
        if len(known) < 2:
            raise TableError(
                "The models do not overlap: the table to fit on has "
                f"{', '.join(table.models[:6]) or 'no model'}; judged are "
                f"{', '.join(ground.models[:6])}.",
                path=table.name,
                column="model",
                remedy="Fit on outcomes of the same models.",
            )
        if len(known) < len(ground.models):
            lost = [m for m, f in zip(ground.models, columns, strict=True) if f is None]
            self.notes.append(f"the table to fit on knows nothing of {', '.join(lost[:6])}")
        usd, _, _ = outcome_costs(table.select_models(known))
        self.score = np.full((len(table), len(columns)), np.nan)
        self.cost: FloatArray | None = np.full_like(self.score, np.nan)
        for j, column in enumerate(columns):
            if column is not None:
                self.score[:, j] = table.score[:, column]
                self.cost[:, j] = usd[:, known.index(table.models[column])]
        if ground.unit != "usd" or np.isnan(self.cost).all():
            self.cost = None
        self.table = table

    def rows(self, index: NDArray[np.bool_]) -> TrainingSet:
        part = object.__new__(TrainingSet)
        part.notes = []
        part.table = self.table.take(index)
        part.score = self.score[index]
        part.cost = None if self.cost is None else self.cost[index]
        return part


class PredictionRunner:
    """Asks policies about the judged queries; reads every query once.

    x: features of the ground's whole table. clusters: (n,) of it, for the folds.
    """

    def __init__(
        self,
        ground: EvalSet,
        fit: TrainingSet | None,
        clusters: NDArray[np.intp],
        names: Sequence[str],
        seed: int,
        progress: bool,
    ) -> None:
        self.ground = ground
        self.fit = fit
        self.seed = seed
        # Length and prices need no embedding, which is half the time on a large table.
        vectors = any(n not in NO_LABELS for n in names)
        self.x = extract_table(ground.table, progress, vectors)
        self.judged = self.x.take(ground.rows)
        self.clusters = clusters
        self.fit_x: Batch | None = None
        if fit is not None and any(learns(n) for n in names):
            self.fit_x = extract_table(fit.table, progress, vectors)

    def __call__(self, name: str) -> Predictions:
        if not learns(name):
            predictor = self._fitted(name, self._nothing(), np.empty((0, len(self.price))), None)
            how = "artifact" if is_artifact(name) else "no labels"
            return self._ask(predictor, how)
        if self.fit is not None:
            assert self.fit_x is not None
            predictor = self._fitted(name, self.fit_x, self.fit.score, self.fit.cost)
            return self._ask(predictor, f"fitted on {len(self.fit.score):,} queries")
        return self._crossed(name)

    @property
    def price(self) -> FloatArray:
        return self.ground.price

    def _nothing(self) -> Batch:
        return self.x.take(np.empty(0, np.intp))

    def _fitted(self, name: str, x: Batch, score: FloatArray, cost: FloatArray | None) -> Predictor:
        predictor = make_predictor(name)
        try:
            return predictor.fit(x, score, cost, self.price, self.ground.models)
        except (ArtifactError, UsageError, TableError):
            raise
        except ValueError as error:
            raise UsageError(f"--policy {name}: it could not be fitted: {error}.") from error

    def _ask(self, predictor: Predictor, how: str) -> Predictions:
        return Predictions(
            *_expected(predictor, self.judged, self.ground),
            how,
            predictor,
            np.arange(len(self.judged)),
        )

    def _crossed(self, name: str) -> Predictions:
        ground = self.ground
        fold = group_kfold(self.clusters, FOLDS, self.seed)
        n, k = ground.score.shape
        if fold.max() < 1:
            raise TableError(
                f"{name} cannot be cross-fitted: all queries share one prompt or group.",
                path=ground.table.name,
                remedy="Give labels of other queries with --fit-on.",
            )
        quality, cost = np.empty((n, k)), np.empty((n, k))
        rank = np.empty(n) if k == 2 else None
        usd = ground.table.cost_usd if ground.unit == "usd" else None
        out: Predictions | None = None
        for f in range(int(fold.max()) + 1):
            inside = fold[ground.rows] == f
            if not inside.any():
                continue
            train = fold != f
            predictor = self._fitted(
                name, self.x.take(train), ground.table.score[train],
                None if usd is None else usd[train],
            )  # fmt: skip
            q, c, r = _expected(predictor, self.judged.take(inside), ground)
            quality[inside], cost[inside] = q, c
            if rank is not None and r is not None:
                rank[inside] = r
            if out is None:
                how = f"cross-fitted, {int(fold.max()) + 1} folds"
                out = Predictions(quality, cost, rank, how, predictor, np.flatnonzero(inside))
        assert out is not None
        return out

    def without(self, source: str) -> Callable[[str], Predictions]:
        """Forecasts for the judged queries of one benchmark by policies that learned from all other
        benchmarks, of the table to fit on where there is one."""
        ground = self.ground
        names = ground.table.benchmark or ()
        here = np.array([names[i] == source for i in ground.rows], dtype=bool)
        if self.fit is not None and self.fit_x is not None:
            marks = self.fit.table.benchmark or (None,) * len(self.fit.table)
            away = np.array([m != source for m in marks], dtype=bool)
            x, score = self.fit_x.take(away), self.fit.score[away]
            cost = None if self.fit.cost is None else self.fit.cost[away]
        else:
            # A question that stands in two benchmarks is not seen in either.
            own = {int(c) for c in self.clusters[[m == source for m in names]]}
            away = np.array([int(c) not in own for c in self.clusters], dtype=bool)
            x, score = self.x.take(away), ground.table.score[away]
            usd = ground.table.cost_usd
            cost = None if usd is None or ground.unit != "usd" else usd[away]
        judged = self.judged.take(here)

        def ask(name: str) -> Predictions:
            if learns(name):
                predictor = self._fitted(name, x, score, cost)
                how = f"fitted on {len(score):,} queries of other benchmarks"
            else:
                width = score.shape[1]
                predictor = self._fitted(name, self._nothing(), np.empty((0, width)), None)
                how = "no labels"
            parts = _expected(predictor, judged, ground)
            return Predictions(*parts, how, predictor, np.arange(len(judged)))

        return ask


def _expected(
    predictor: Predictor, x: Batch, ground: EvalSet
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    quality, cost = predictor.predict(x)
    shape = (len(x), len(ground.models))
    rank = None
    if ground.strong is not None and ground.weak is not None:
        rank = np.asarray(predictor.strong_score(x, ground.strong, ground.weak), float)
    for what, a, expected in (
        ("quality", quality, shape), ("cost", cost, shape), ("rank", rank, shape[:1]),
    ):  # fmt: skip
        if a is None:
            continue
        if np.shape(a) != expected:
            raise UsageError(
                f"--policy {predictor.name}: its {what} has the shape {np.shape(a)}, "
                f"expected {expected}."
            )
        if np.isnan(a).any():
            raise UsageError(f"--policy {predictor.name}: its {what} holds values that are NaN.")
    return np.asarray(quality, float), np.asarray(cost, float), rank


def policy_names(policies: Sequence[str], fit: bool) -> list[str]:
    """Policies to judge beside the baselines, each once, in the order asked for."""
    if not policies:
        return ["default", *LEARNED] if fit else ["default"]
    names = [p.strip() for given in policies for p in given.split(",")]
    return [n for n in dict.fromkeys(names) if n]


def predict_all(
    ask: Callable[[str], Predictions], names: Sequence[str], progress: bool
) -> dict[str, Predictions]:
    return {n: ask(n) for n in track(names, "asking policies", progress)}


def some(forecast: Predictions, rows: NDArray[np.bool_]) -> Predictions:
    """Only these of the judged queries."""
    return replace(
        forecast,
        quality=forecast.quality[rows],
        cost=forecast.cost[rows],
        rank=None if forecast.rank is None else forecast.rank[rows],
        rows=np.empty(0, np.intp),
    )

"""`suffice eval`: scores policies on recorded outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from suffice.errors import UsageError
from suffice.lab.data.costs import Prices
from suffice.lab.data.keys import count_trained_on
from suffice.lab.data.splits import connected_groups
from suffice.lab.data.table import Table
from suffice.lab.evaluate.frontier import best_single
from suffice.lab.evaluate.predictions import (
    PredictionRunner,
    Predictions,
    TrainingSet,
    policy_names,
)
from suffice.lab.evaluate.problem import EvalSet, build_eval_set
from suffice.lab.evaluate.result import (
    BASELINES,
    EvaluationResult,
    PartPolicyResult,
    PartResult,
    PolicyResult,
)
from suffice.lab.evaluate.robustness import flip_rates, overhead_us
from suffice.lab.evaluate.scorecard import Scorecard
from suffice.lab.predictors.base import track
from suffice.lab.predictors.registry import learns

MIN_PART_QUERIES = 20  # parts of fewer queries are not scored
PART_DRAWS = 300  # bootstrap resamples of a part, at most

GENERAL_NOTES = (
    "random mixes the single models of the zero router's hull by a coin; its hull is picked on the "
    "queries it is judged on, as every policy's is, so that it also gains a little: a gain that is "
    "not larger shows nothing",
    "zero_router and best are picked on these very queries: they are what hindsight would have "
    "chosen without looking at a single prompt",
    "oracle knows every outcome before it chooses; on right/wrong scores it also profits from lucky "
    "answers, so that no real policy comes near it",
)
PAIR_NOTE = (
    "APGR and CPT follow RouteLLM (thresholds at the edges of ten equal-count bins of the score); "
    "CPT reads the running maximum of the quality recovered, where RouteLLM's code interpolates it "
    "raw"
)


def evaluate(
    table: Table,
    policies: Sequence[str] = (),
    *,
    models: Sequence[str] | None = None,
    fit_on: Table | None = None,
    prices: Prices | None = None,
    by: Sequence[str] = (),
    leave_one_source_out: bool = False,
    draws: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> EvaluationResult:
    """Evaluate policies on a table.

    Args:
        table: Outcomes of at least two models.
        policies: Names of predictors, entry points, or paths of artifacts. None given: the default
            policy, and with `fit_on` those that learn too.
        models: To compare; None: those that share enough scored queries.
        fit_on: Table to fit on; None: policies that learn are cross-fitted.
        prices: Of the user, for models without costs in the table.
        by: "benchmark", "category": also score each of their values.
        leave_one_source_out: Also score each benchmark by policies fitted on the others.
        draws: Bootstrap resamples.
        seed: Of folds, random mixing and bootstrap.
        progress: Show bars on standard error.

    Returns:
        The figures of every policy and baseline.

    Raises:
        UsageError: If an argument is wrong.
        TableError: If nothing can be compared.
        ArtifactError: If an artifact cannot be read.
    """
    _validate(table, by, leave_one_source_out)
    eval_set = build_eval_set(table, models, fit_on, prices)
    training_set = None if fit_on is None else TrainingSet.of_table(fit_on, eval_set)
    names = [n for n in policy_names(policies, training_set is not None) if n not in BASELINES]
    names = ["length", *names]
    table_clusters = connected_groups(eval_set.table)
    runner = PredictionRunner(eval_set, training_set, table_clusters, names, seed, progress)
    predictions = runner.run_all(names, progress)
    clusters = table_clusters[eval_set.rows]
    scorecard = Scorecard(eval_set, clusters, draws, seed)
    results = scorecard.score_all(predictions, progress)
    for name in names:
        trade_off = results[name]["operating_point"]["trade_off"]
        results[name]["flip_rate"] = flip_rates(predictions[name], runner, trade_off)
        results[name]["overhead_us"] = overhead_us(predictions[name], eval_set)
    result = _assemble(table, eval_set, scorecard, results, draws, seed)
    result["warnings"] += _training_warnings(predictions, eval_set)
    result["notes"] += _notes(eval_set, training_set, names)
    parts = _Parts(eval_set, clusters, draws, seed, progress)
    if by:
        result["by"] = {column: parts.by_label(column, predictions) for column in by}
    if leave_one_source_out:
        result["leave_one_source_out"] = parts.leave_sources_out(runner, names)
    return result


def _validate(table: Table, by: Sequence[str], leave_one_source_out: bool) -> None:
    columns = {"benchmark": table.benchmark, "category": table.category}
    for column in by:
        if column not in columns:
            raise UsageError(f"--by: {column!r} is not benchmark or category.")
        if columns[column] is None:
            raise UsageError(
                f"--by {column}: the table has no {column}.",
                remedy=f"Add a column {column!r} to the queries.",
            )
    if leave_one_source_out and len({b for b in table.benchmark or () if b}) < 2:
        raise UsageError(
            "--leave-one-source-out: the table names fewer than two benchmarks.",
            remedy="Add a column 'benchmark' to the queries.",
        )


def _assemble(
    table: Table, eval_set: EvalSet, scorecard: Scorecard, results: dict[str, PolicyResult],
    draws: int, seed: int,
) -> EvaluationResult:  # fmt: skip
    return {
        "table": table.name,
        "n_queries": len(eval_set.rows),
        "models": scorecard.model_means(),
        "cost_unit": eval_set.cost_unit,
        "policies": results,
        "n_queries_in_table": len(table),
        "n_clusters": scorecard.bootstrap.n_clusters,
        "strong": None if eval_set.strong is None else eval_set.models[eval_set.strong],
        "weak": None if eval_set.weak is None else eval_set.models[eval_set.weak],
        "reference": eval_set.models[best_single(scorecard.singles)],
        "intervals": f"95 %, basic bootstrap over clusters of queries, {draws} draws",
        "seed": seed,
        "warnings": list(table.warnings),
        "notes": list(eval_set.notes),
    }


def _training_warnings(predictions: Mapping[str, Predictions], eval_set: EvalSet) -> list[str]:
    """Warn of artifacts that were trained on evaluated queries: they store hashes of the prompts."""
    warnings = []
    for name, p in predictions.items():
        count = count_trained_on(eval_set.table.take(eval_set.rows), p.predictor.training_keys_)
        if count:
            warnings.append(
                f"{name} was trained on {count} of the {len(eval_set.rows)} queries judged here: its "
                "figures flatter"
            )
    return warnings


def _notes(eval_set: EvalSet, training_set: TrainingSet | None, names: Sequence[str]) -> list[str]:
    notes = list(training_set.notes) if training_set is not None else []
    if training_set is None and any(learns(n) for n in names):
        notes.append(
            "policies that learn are cross-fitted: each query is judged by a fit on the folds that "
            "share no prompt and no group with it"
        )
    return [*notes, *GENERAL_NOTES, *((PAIR_NOTE,) if eval_set.strong is not None else ())]


class _Parts:
    """Scores policies on parts of the evaluation set."""

    def __init__(
        self, eval_set: EvalSet, clusters: NDArray[np.intp], draws: int, seed: int, progress: bool
    ) -> None:
        self.eval_set = eval_set
        self.clusters = clusters
        self.draws = min(draws, PART_DRAWS)
        self.seed = seed
        self.progress = progress

    def by_label(
        self, column: str, predictions: Mapping[str, Predictions]
    ) -> dict[str, PartResult]:
        """Score the queries of each benchmark or category separately."""
        table = self.eval_set.table
        labels = self._labels(table.benchmark if column == "benchmark" else table.category)
        results: dict[str, PartResult] = {}
        for value in track(_values(labels), f"by {column}", self.progress):
            rows = labels == value
            parts = {n: p.subset(rows) for n, p in predictions.items()}
            results[value] = self._score(rows, parts)
        return results

    def leave_sources_out(
        self, runner: PredictionRunner, names: Sequence[str]
    ) -> dict[str, PartResult]:
        """Score each benchmark by policies that were fitted on the others."""
        labels = self._labels(self.eval_set.table.benchmark)
        results: dict[str, PartResult] = {}
        for source in track(_values(labels), "leaving one source out", self.progress):
            rows = labels == source
            parts = {}
            if rows.sum() >= MIN_PART_QUERIES:
                run = runner.leave_source_out(source)
                parts = {n: run(n) for n in names}
            results[source] = self._score(rows, parts)
        return results

    def _labels(self, column: Sequence[str | None] | None) -> NDArray[np.object_]:
        values = column or ()
        return np.array([values[i] or "" for i in self.eval_set.rows], dtype=object)

    def _score(self, rows: NDArray[np.bool_], predictions: Mapping[str, Predictions]) -> PartResult:
        if rows.sum() < MIN_PART_QUERIES:
            return {"n_queries": int(rows.sum()), "policies": None}
        scorecard = Scorecard(self.eval_set, self.clusters, self.draws, self.seed, rows)
        return {
            "n_queries": int(rows.sum()),
            "models": scorecard.model_means(),
            "policies": {n: _part_of(p) for n, p in scorecard.score_all(predictions).items()},
        }


def _values(labels: NDArray[np.object_]) -> list[str]:
    return [v for v in sorted(set(labels.tolist())) if v]


def _part_of(p: PolicyResult) -> PartPolicyResult:
    return {
        "area": p["area"],
        "area_ci": p["area_ci"],
        "gain_over_zero_router": p["gain_over_zero_router"],
        "gain_ci": p["gain_ci"],
        "qnc": p["qnc"],
        "apgr": p["apgr"],
        "apgr_ci": p["apgr_ci"],
        "cpt50": p["cpt50"],
        "cpt80": p["cpt80"],
        "fitted": p["fitted"],
    }

"""`suffice eval`: policies against what models really made of the queries.

The result is one JSON object, the public surface of the command; keys are added, never renamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffice.errors import UsageError
from suffice.lab.data.costs import Prices
from suffice.lab.data.splits import connected_groups
from suffice.lab.data.table import Table
from suffice.lab.evaluate import frontier
from suffice.lab.evaluate.predictions import (
    PredictionRunner,
    Predictions,
    TrainingSet,
    learns,
    policy_names,
    predict_all,
    some,
)
from suffice.lab.evaluate.problem import EvalSet, build_eval_set
from suffice.lab.evaluate.robustness import flip_rates, overhead_us
from suffice.lab.evaluate.scorecard import BASELINES, Scorecard
from suffice.lab.predictors.base import track

_SMALLEST = 20  # queries of a benchmark below which nothing is said of it

GENERAL_NOTES = (
    "random mixes the single models of the zero router's hull by a coin; its hull is picked on the "
    "queries it is judged on, as every policy's is, so that it also gains a little: a gain no "
    "larger than its is none",
    "zero_router and best are picked on these very queries: they are what hindsight would have "
    "chosen without looking at a single prompt",
    "oracle knows every outcome before it chooses; on right/wrong scores it also profits from lucky "
    "answers, so that nothing real comes near it",
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
) -> dict[str, Any]:
    """Judges policies on a table.

    policies: names of `lab.predictors`, entry points or paths of artifacts; none: the default, and
    with `fit_on` those that learn too. by: "benchmark", "category". draws: of the bootstrap.
    Raises UsageError, TableError, ArtifactError.
    """
    for column in by:
        if column not in ("benchmark", "category"):
            raise UsageError(f"--by: {column!r} is not benchmark or category.")
        if getattr(table, column) is None:
            raise UsageError(
                f"--by {column}: the table has no {column}.",
                remedy=f"Add a column {column!r} to the queries.",
            )
    if leave_one_source_out and len({b for b in table.benchmark or () if b}) < 2:
        raise UsageError(
            "--leave-one-source-out: the table names fewer than two benchmarks.",
            remedy="Add a column 'benchmark' to the queries.",
        )
    ground = build_eval_set(table, models, fit_on, prices)
    fit = None if fit_on is None else TrainingSet(fit_on, ground)
    names = [n for n in policy_names(policies, fit is not None) if n not in BASELINES]
    clusters = connected_groups(ground.table)
    ask = PredictionRunner(ground, fit, clusters, ["length", *names], seed, progress)
    said = predict_all(ask, ["length", *names], progress)
    judged = Scorecard(ground.score, ground.cost, ground, clusters[ground.rows], draws, seed)
    result = _head(table, ground, fit, judged, names, draws, seed)
    result["warnings"] += _learned_before(said, ground)
    result["policies"] = judged.all(said, progress)
    for name in ("length", *names):
        f, p = said[name], result["policies"][name]
        p["flip_rate"] = flip_rates(f, ground, ask, p["operating_point"])
        p["overhead_us"] = overhead_us(f, ground)
    if by:
        result["by"] = {c: _parts(c, ground, said, clusters, draws, seed, progress) for c in by}
    if leave_one_source_out:
        result["leave_one_source_out"] = _left_out(
            ask, ground, names, clusters, draws, seed, progress
        )
    return result


def _learned_before(said: Mapping[str, Predictions], ground: EvalSet) -> list[str]:
    """An artifact remembers, as hashes, the prompts that it learned from."""
    out = []
    for name, f in said.items():
        keys = getattr(f.predictor, "training_keys_", None)
        if keys is None:
            continue
        from suffice.lab.train.train import key_hashes

        count = int(np.isin(key_hashes(ground.table)[ground.rows], keys).sum())
        if count:
            out.append(
                f"{name} was trained on {count} of the {len(ground.rows)} queries judged here: its "
                "figures flatter"
            )
    return out


def _head(
    table: Table, ground: EvalSet, fit: TrainingSet | None, judged: Scorecard, names: Sequence[str],
    draws: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    singles = ground.singles
    notes = [*ground.notes, *(fit.notes if fit else ())]
    if fit is None and any(learns(n) for n in names):
        notes.append(
            "policies that learn are cross-fitted: each query is judged by a fit on the folds that "
            "share no prompt and no group with it"
        )
    notes += [*GENERAL_NOTES, *((PAIR_NOTE,) if ground.strong is not None else ())]
    at = frontier.best_single(singles)
    return {
        "table": table.name,
        "n_queries": len(ground.rows),
        "models": {
            m: {"quality": float(q), "cost": float(c)}
            for m, (c, q) in zip(ground.models, singles.tolist(), strict=True)
        },
        "cost_unit": ground.unit,
        "policies": {},
        "n_queries_in_table": len(table),
        "n_clusters": judged.redraws.n_clusters,
        "strong": None if ground.strong is None else ground.models[ground.strong],
        "weak": None if ground.weak is None else ground.models[ground.weak],
        "reference": ground.models[at],
        "intervals": f"95 %, basic bootstrap over clusters of queries, {draws} draws",
        "seed": seed,
        "warnings": list(table.warnings),
        "notes": notes,
    }


# ── parts of a table ─────────────────────────────────────────────────────────────────────────────


def _parts(
    column: str, ground: EvalSet, said: Mapping[str, Predictions], clusters: NDArray[np.intp],
    draws: int, seed: int, progress: bool,
) -> dict[str, Any]:  # fmt: skip
    labels = getattr(ground.table, column)
    names = np.array([labels[i] or "" for i in ground.rows], dtype=object)
    out: dict[str, Any] = {}
    values = [v for v in sorted(set(names)) if v]
    for value in track(values, f"by {column}", progress):
        rows = names == value
        if rows.sum() < _SMALLEST:
            out[value] = {"n_queries": int(rows.sum()), "policies": None}
            continue
        parts = {n: some(f, rows) for n, f in said.items()}
        out[value] = _part(rows, ground, parts, clusters, draws, seed)
    return out


def _part(
    rows: NDArray[np.bool_], ground: EvalSet, said: Mapping[str, Predictions],
    clusters: NDArray[np.intp], draws: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    court = Scorecard(
        ground.score[rows], ground.cost[rows], ground, clusters[ground.rows][rows],
        min(draws, 300), seed,
    )  # fmt: skip
    keys = (
        "area", "area_ci", "gain_over_zero_router", "gain_ci", "qnc", "apgr", "apgr_ci", "cpt50",
        "cpt80", "fitted",
    )  # fmt: skip
    return {
        "n_queries": int(rows.sum()),
        "models": {
            m: {"quality": float(q), "cost": float(c)}
            for m, (c, q) in zip(ground.models, court.singles.tolist(), strict=True)
        },
        "policies": {n: {k: p[k] for k in keys} for n, p in court.all(said).items()},
    }


def _left_out(
    ask: PredictionRunner, ground: EvalSet, names: Sequence[str], clusters: NDArray[np.intp],
    draws: int, seed: int, progress: bool,
) -> dict[str, Any]:  # fmt: skip
    marks = ground.table.benchmark or ()
    here = np.array([marks[i] or "" for i in ground.rows], dtype=object)
    out: dict[str, Any] = {}
    values = [v for v in sorted(set(here)) if v]
    for source in track(values, "leaving one source out", progress):
        rows = here == source
        if rows.sum() < _SMALLEST:
            out[source] = {"n_queries": int(rows.sum()), "policies": None}
            continue
        said = predict_all(ask.without(source), ["length", *names], False)
        out[source] = _part(rows, ground, said, clusters, draws, seed)
    return out


__all__ = ["BASELINES", "evaluate"]

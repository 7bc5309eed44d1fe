"""What an evaluation stands on: which models, which queries, what they cost, which is the stronger.

Choices made here are made without looking at any policy, and each is said in a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from suffice.errors import TableError, UsageError, nearest
from suffice.lab.data.costs import (
    TYPICAL_OUTPUT_TOKENS,
    Prices,
    has_own_costs,
    outcome_costs,
)
from suffice.lab.data.table import FloatArray, Table
from suffice.names import match_model

CostUnit = Literal["usd", "strong_share"]


@dataclass(frozen=True)
class EvalSet:
    """table: every query, the chosen models only. rows: (n,) those of its queries on which every
    chosen model has a score; score and cost: (n, k) of them, without NaN. price: (k,) mean cost.
    strong, weak: columns of a pair, else None."""

    table: Table
    rows: NDArray[np.intp]
    score: FloatArray
    cost: FloatArray
    unit: CostUnit
    price: FloatArray
    strong: int | None
    weak: int | None
    notes: tuple[str, ...]

    @property
    def models(self) -> tuple[str, ...]:
        return self.table.models

    @property
    def singles(self) -> FloatArray:
        """(k, 2) mean cost and quality of each model."""
        return np.stack([self.cost.mean(axis=0), self.score.mean(axis=0)], axis=1)


def build_eval_set(
    table: Table,
    models: Sequence[str] | None = None,
    fit: Table | None = None,
    prices: Prices | None = None,
) -> EvalSet:
    """Raises UsageError for unknown models, TableError where nothing can be compared."""
    notes: list[str] = []
    if models is not None:
        table = table.select_models(_named(models, table))
    if len(table.models) < 2:
        raise TableError(
            f"There is one model, {table.models[0]!r}: routing needs at least two."
            if table.models
            else "There is no model in the table.",
            path=table.name,
            column="model",
            remedy="Add outcomes of another model on the same queries (suffice collect).",
        )
    cost, costed, how = outcome_costs(table, prices)
    keep = list(range(len(table.models)))
    if models is None:
        keep = _overlapping(table)
        if len(keep) > 2 and not costed[keep].all():
            known = [j for j in keep if costed[j]]
            if len(known) >= 2:
                left = [table.models[j] for j in keep if not costed[j]]
                notes.append(f"left out, since no cost of them is known: {_list(left)}")
                keep = known
        if len(keep) < len(table.models):
            left = [m for j, m in enumerate(table.models) if j not in keep and costed[j]]
            if left:
                notes.append(
                    f"left out, since too few queries have scores of all models: {_list(left)}; "
                    "--models chooses others"
                )
    if len(keep) > 2 and not costed[keep].all():
        missing = [table.models[j] for j in keep if not costed[j]]
        raise TableError(
            f"No cost is known for {_list(missing)}.",
            path=table.name,
            column="cost_usd",
            remedy=(
                "Add cost_usd to the outcomes, give prices with --prices FILE.json, or compare two "
                "models with --models a,b: a pair is costed by its share of strong calls."
            ),
        )
    names = [table.models[j] for j in keep]
    table = table.select_models(names)
    cost = cost[:, keep]
    rows = np.flatnonzero(table.complete)
    if not len(rows):
        raise TableError(
            f"The models do not overlap: no query has scores of all of {_list(names)}.",
            path=table.name,
            column="score",
            remedy="Choose models that answered the same queries with --models.",
        )
    if len(rows) < 2:
        raise TableError(
            "Only one query has scores of every model: there is nothing to average.",
            path=table.name,
            remedy="Add queries; a few hundred make an interval worth reading.",
        )
    if len(rows) < len(table):
        notes.append(
            f"{len(table) - len(rows)} of {len(table)} queries lack a score of some model and are "
            "left out of every figure"
        )
    if len(rows) < 100:
        notes.append(f"{len(rows)} queries are few: read the intervals, not the figures")
    score = table.score[rows]
    strong = weak = None
    if len(names) == 2:
        strong, source = _stronger(names, score, fit)
        weak = 1 - strong
        notes.append(f"of the pair, {names[strong]} is the strong model, by mean score in {source}")
        if score[:, strong].mean() <= score[:, weak].mean():
            notes.append(f"but {names[weak]} is at least as good here: pair metrics say little")
    unit: CostUnit = "usd"
    if (
        len(names) == 2
        and not has_own_costs(table).all()
        and (prices is None or not costed[keep].all())
    ):
        unit = "strong_share"
        cost = np.zeros(table.score.shape)
        cost[:, strong] = 1.0
        notes.append(
            "the table knows no cost of both: a query costs 1 where the strong model is called, else "
            "0 (--prices FILE.json gives dollars)"
        )
    else:
        cost, filled = _filled(cost)
        priced = [f"{m} {how[m]}" for m in names if m in how]
        if priced:
            notes.append(
                "costs are list prices, USD per million tokens in/out, "
                f"with {TYPICAL_OUTPUT_TOKENS:.0f} output tokens where the table knows none: "
                + "; ".join(priced)
            )
        if filled:
            notes.append(f"{filled} missing costs are taken as the model's mean cost")
    return EvalSet(table, rows, score, cost[rows], unit, cost.mean(axis=0), strong, weak, (*notes,))


def _list(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _named(wanted: Sequence[str], table: Table) -> list[str]:
    out = []
    for name in wanted:
        column = match_model(name, table.models)
        if column is None:
            close = nearest(name, table.models) or list(table.models[:5])
            raise UsageError(
                f"--models: the table has no model {name!r}.",
                remedy=f"Nearest: {', '.join(close)}.",
            )
        out.append(table.models[column])
    if len(set(out)) < len(out):
        raise UsageError("--models names a model twice.", remedy="Name each once.")
    if len(out) < 2:
        raise UsageError(
            f"--models: {repr(out[0]) if out else 'no model'} alone leaves nothing to route.",
            remedy="Name at least two.",
        )
    return out


def _overlapping(table: Table) -> list[int]:
    """Columns worth comparing: all of them where at least half of the scored queries have every
    score; else the set that leaves most queries times (models - 1) to compare on."""
    seen = ~np.isnan(table.score)
    seen = seen[seen.any(axis=1)]
    everything = list(range(seen.shape[1]))
    if seen.all(axis=1).mean() >= 0.5:
        return everything
    candidates = [everything]
    patterns, counts = np.unique(seen, axis=0, return_counts=True)
    for i in np.argsort(-counts)[:200]:
        candidates.append(np.flatnonzero(patterns[i]).tolist())
    left = everything
    while len(left) > 2:
        # Drop the model whose absence completes most queries; of equals, the one least scored.
        missing = (~seen[:, left]).sum(axis=1)
        alone = (~seen[missing == 1][:, left]).sum(axis=0)
        worst = max(range(len(left)), key=lambda j: (alone[j], -seen[:, left[j]].sum()))
        left = [m for j, m in enumerate(left) if j != worst]
        candidates.append(left)
    good = [c for c in candidates if len(c) >= 2]
    return max(good, key=lambda c: int(seen[:, c].all(axis=1).sum()) * (len(c) - 1))


def _stronger(names: Sequence[str], score: FloatArray, fit: Table | None) -> tuple[int, str]:
    if fit is not None:
        columns = [match_model(n, fit.models) for n in names]
        if None not in columns:
            both = fit.select_models([fit.models[c] for c in columns if c is not None])
            means = both.score[both.complete]
            if len(means):
                m = means.mean(axis=0)
                return int(np.argmax(m)), "the table it is fitted on"
    # Which of two is the stronger only orients the metric: no policy learns from it.
    return int(np.argmax(score.mean(axis=0))), "this table (which only orients the metric)"


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────


def _filled(cost: FloatArray) -> tuple[FloatArray, int]:
    hole = np.isnan(cost)
    if not hole.any():
        return cost, 0
    mean = np.nanmean(cost, axis=0)
    return np.asarray(np.where(hole, mean, cost)), int(hole.sum())

"""The evaluation set: which models and queries are compared, what they cost, which model is strong.

It is built in four steps: `choose_models`, `price_outcomes`, `complete_rows`, `orient_pair`. None of
them looks at a policy, and each choice is stated in a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from suffice.errors import TableError, UsageError, nearest
from suffice.lab.data.costs import (
    TYPICAL_OUTPUT_TOKENS,
    OutcomeCosts,
    Prices,
    has_own_costs,
    outcome_costs,
)
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.stats import weighted_mean
from suffice.names import match_model

CostUnit = Literal["usd", "strong_share"]
_FEW_QUERIES = 100
_MAX_PATTERNS = 200  # sets of scored models that are tried, the most frequent first


@dataclass(frozen=True)
class EvalSet:
    """What an evaluation compares.

    Attributes:
        table: Every query, the chosen models only.
        rows: (n,) the queries of the table on which every chosen model has a score.
        score: (n, k) on those rows, no NaN.
        cost: (n, k) in the unit of `cost_unit`, no NaN.
        cost_usd: (queries of the table, k) USD as known or priced, NaN if unknown.
        cost_unit: "usd", or "strong_share" if a query costs 1 with the strong model and else 0.
        mean_cost: (k,) over all queries of the table.
        strong: Column of the stronger model of a pair, else None.
        weak: Column of the weaker model of a pair, else None.
        weight: (n,) how many queries of the population each row represents; None: all equal.
        notes: What was chosen, for the user.
    """

    table: Table
    rows: NDArray[np.intp]
    score: FloatArray
    cost: FloatArray
    cost_usd: FloatArray
    cost_unit: CostUnit
    mean_cost: FloatArray
    strong: int | None
    weak: int | None
    weight: FloatArray | None
    notes: tuple[str, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """(k,) names."""
        return self.table.models

    @property
    def pair(self) -> tuple[int, int] | None:
        """(strong, weak) columns of a pair of models, else None."""
        return None if self.strong is None or self.weak is None else (self.strong, self.weak)

    @property
    def labelled_cost(self) -> FloatArray | None:
        """(queries of the table, k) USD that predictors may learn from; None if there is none."""
        return self.table.cost_usd if self.cost_unit == "usd" else None


def build_eval_set(
    table: Table,
    models: Sequence[str] | None = None,
    fit_table: Table | None = None,
    prices: Prices | None = None,
) -> EvalSet:
    """Build the evaluation set of a table.

    Args:
        table: Outcomes of at least two models.
        models: To compare. None: those that share enough scored queries.
        fit_table: The table that policies are fitted on, if there is one.
        prices: Of the user, for models without costs in the table.

    Returns:
        The evaluation set.

    Raises:
        UsageError: If a model is unknown.
        TableError: If nothing can be compared.
    """
    notes: list[str] = []
    table, costs = choose_models(table, models, prices, notes)
    rows = complete_rows(table, notes)
    strong, weak = orient_pair(table, rows, fit_table, notes)
    priced = price_outcomes(table, costs, strong, prices, notes)
    return EvalSet(
        table=table,
        rows=rows,
        score=table.score[rows],
        cost=priced.cost[rows],
        cost_usd=costs.usd,
        cost_unit=priced.unit,
        mean_cost=weighted_mean(priced.cost, table.sampling_weight),
        strong=strong,
        weak=weak,
        weight=None if table.sampling_weight is None else table.sampling_weight[rows],
        notes=(*notes,),
    )


# ── which models ─────────────────────────────────────────────────────────────────────────────────


def choose_models(
    table: Table, models: Sequence[str] | None, prices: Prices | None, notes: list[str]
) -> tuple[Table, OutcomeCosts]:
    """Choose the models to compare.

    Returns:
        The table with only these models, and their costs.

    Raises:
        UsageError: If a named model is unknown.
        TableError: If there are not two models, or the costs of three or more are unknown.
    """
    if models is not None:
        table = table.select_models(_match_names(models, table))
    if len(table.models) < 2:
        raise TableError(
            f"There is one model, {table.models[0]!r}: routing needs at least two."
            if table.models
            else "There is no model in the table.",
            path=table.name,
            column="model",
            remedy="Add outcomes of another model on the same queries (suffice collect).",
        )
    costs = outcome_costs(table, prices)
    columns = list(range(len(table.models)))
    if models is None:
        columns = _comparable_columns(table, costs.known, notes)
    if len(columns) > 2 and not costs.known[columns].all():
        unknown = [table.models[j] for j in columns if not costs.known[j]]
        raise TableError(
            f"No cost is known for {_list_names(unknown)}.",
            path=table.name,
            column="cost_usd",
            remedy=(
                "Add cost_usd to the outcomes, give prices with --prices FILE.json, or compare two "
                "models with --models a,b: a pair is costed by its share of strong calls."
            ),
        )
    names = [table.models[j] for j in columns]
    list_prices = {m: costs.list_prices[m] for m in names if m in costs.list_prices}
    costs = OutcomeCosts(costs.usd[:, columns], costs.known[columns], list_prices)
    return table.select_models(names), costs


def _match_names(wanted: Sequence[str], table: Table) -> list[str]:
    names = []
    for name in wanted:
        column = match_model(name, table.models)
        if column is None:
            close = nearest(name, table.models) or list(table.models[:5])
            raise UsageError(
                f"--models: the table has no model {name!r}.",
                remedy=f"Nearest: {', '.join(close)}.",
            )
        names.append(table.models[column])
    if len(set(names)) < len(names):
        raise UsageError("--models names a model twice.", remedy="Name each once.")
    if len(names) < 2:
        raise UsageError(
            f"--models: {repr(names[0]) if names else 'no model'} alone leaves nothing to route.",
            remedy="Name at least two.",
        )
    return names


def _comparable_columns(table: Table, known: NDArray[np.bool_], notes: list[str]) -> list[int]:
    """Columns that share enough scored queries; of three or more, those of known cost."""
    columns = _overlapping_columns(table)
    if len(columns) > 2 and not known[columns].all():
        with_cost = [j for j in columns if known[j]]
        if len(with_cost) >= 2:
            dropped = [table.models[j] for j in columns if not known[j]]
            notes.append(f"left out, since no cost of them is known: {_list_names(dropped)}")
            columns = with_cost
    dropped = [m for j, m in enumerate(table.models) if j not in columns and known[j]]
    if dropped:
        notes.append(
            f"left out, since too few queries have scores of all models: {_list_names(dropped)}; "
            "--models chooses others"
        )
    return columns


def _overlapping_columns(table: Table) -> list[int]:
    """Columns with enough complete queries.

    Returns:
        All columns if at least half of the scored queries have every score, else the set with the
        largest product of complete queries and (models - 1).
    """
    scored = ~np.isnan(table.score)
    scored = scored[scored.any(axis=1)]
    columns = list(range(scored.shape[1]))
    if scored.all(axis=1).mean() >= 0.5:
        return columns
    candidates = [columns]
    patterns, counts = np.unique(scored, axis=0, return_counts=True)
    for i in np.argsort(-counts)[:_MAX_PATTERNS]:
        candidates.append(np.flatnonzero(patterns[i]).tolist())
    while len(columns) > 2:
        # Drop the model whose absence completes most queries; of equals, the one least scored.
        part = scored[:, columns]
        completed = (~part[(~part).sum(axis=1) == 1]).sum(axis=0)
        drop = max(range(len(columns)), key=lambda j: (completed[j], -part[:, j].sum()))
        columns = [c for j, c in enumerate(columns) if j != drop]
        candidates.append(columns)
    candidates = [c for c in candidates if len(c) >= 2]
    return max(candidates, key=lambda c: int(scored[:, c].all(axis=1).sum()) * (len(c) - 1))


def _list_names(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


# ── which queries ────────────────────────────────────────────────────────────────────────────────


def complete_rows(table: Table, notes: list[str]) -> NDArray[np.intp]:
    """Find the queries on which every model has a score.

    Returns:
        (n,) their rows.

    Raises:
        TableError: If there are fewer than two.
    """
    rows = np.flatnonzero(table.complete)
    if not len(rows):
        raise TableError(
            "The models do not overlap: no query has scores of all of "
            f"{_list_names(table.models)}.",
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
    if len(rows) < _FEW_QUERIES:
        notes.append(f"{len(rows)} queries are few: read the intervals, not the figures")
    if table.sampling_weight is not None:
        notes.append(
            "means and intervals are weighted by sampling_weight: they estimate the population that "
            "the queries were sampled from"
        )
    return rows


# ── which is strong ──────────────────────────────────────────────────────────────────────────────


def orient_pair(
    table: Table, rows: NDArray[np.intp], fit_table: Table | None, notes: list[str]
) -> tuple[int | None, int | None]:
    """Find the strong and the weak model of a pair.

    Returns:
        (strong, weak) columns; (None, None) if there are more than two models.
    """
    if len(table.models) != 2:
        return None, None
    weight = None if table.sampling_weight is None else table.sampling_weight[rows]
    means = weighted_mean(table.score[rows], weight)
    # Which of the two is stronger only orients the metrics: no policy learns from it.
    strong, source = int(np.argmax(means)), "this table (which only orients the metric)"
    fit_means = _fit_table_means(table.models, fit_table)
    if fit_means is not None:
        strong, source = int(np.argmax(fit_means)), "the table it is fitted on"
    weak = 1 - strong
    strong_name, weak_name = table.models[strong], table.models[weak]
    notes.append(f"of the pair, {strong_name} is the strong model, by mean score in {source}")
    if means[strong] <= means[weak]:
        notes.append(f"but {weak_name} is at least as good here: pair metrics say little")
    return strong, weak


def _fit_table_means(models: Sequence[str], fit_table: Table | None) -> FloatArray | None:
    """(k,) mean scores in the table that policies are fitted on, None if it cannot compare them."""
    if fit_table is None:
        return None
    columns = [match_model(m, fit_table.models) for m in models]
    names = [fit_table.models[c] for c in columns if c is not None]
    if len(names) < len(columns):
        return None
    part = fit_table.select_models(names)
    part = part.take(part.complete)
    return weighted_mean(part.score, part.sampling_weight) if len(part) else None


# ── what it costs ────────────────────────────────────────────────────────────────────────────────


class PricedOutcomes(NamedTuple):
    """Costs without NaN."""

    cost: FloatArray
    """(queries of the table, k)."""
    unit: CostUnit


def price_outcomes(
    table: Table,
    costs: OutcomeCosts,
    strong: int | None,
    prices: Prices | None,
    notes: list[str],
) -> PricedOutcomes:
    """Decide the unit of cost and fill in missing costs.

    A pair without costs in the table is costed by its share of strong calls.

    Returns:
        The costs without NaN, and their unit.
    """
    unpriced = not has_own_costs(table).all() and (prices is None or not costs.known.all())
    if strong is not None and unpriced:
        notes.append(
            "the table knows no cost of both: a query costs 1 if the strong model is called, else "
            "0 (--prices FILE.json gives dollars)"
        )
        cost = np.zeros(table.score.shape)
        cost[:, strong] = 1.0
        return PricedOutcomes(cost, "strong_share")
    if costs.list_prices:
        priced = "; ".join(f"{m} {price}" for m, price in costs.list_prices.items())
        notes.append(
            "costs are list prices, USD per million tokens in/out, "
            f"with {TYPICAL_OUTPUT_TOKENS:.0f} output tokens if the table has none: {priced}"
        )
    missing = np.isnan(costs.usd)
    if missing.any():
        notes.append(f"{int(missing.sum())} missing costs are taken as the model's mean cost")
    return PricedOutcomes(_impute_costs(costs.usd, table.sampling_weight), "usd")


def _impute_costs(usd: FloatArray, weight: FloatArray | None) -> FloatArray:
    """Costs (n, k) with the model's mean cost instead of NaN."""
    missing = np.isnan(usd)
    if not missing.any():
        return usd
    if weight is None:
        mean = np.nanmean(usd, axis=0)
    else:
        known = ~missing * weight[:, None]
        mean = (np.nan_to_num(usd) * known).sum(axis=0) / known.sum(axis=0)
    return np.asarray(np.where(missing, mean, usd))

"""What an evaluation stands on: which models, which queries, what they cost, which is the stronger.

Choices made here are made without looking at any policy, and each is said in a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice.errors import TableError, UsageError, nearest
from suffice.lab.data.table import FloatArray, Table
from suffice.names import match_model
from suffice.types import Model

TYPICAL_OUTPUT_TOKENS = 300.0  # assumed where a table knows no output tokens of a model
CostUnit = Literal["usd", "strong_share"]
Prices = Mapping[str, tuple[float, float]]  # USD per million input and output tokens


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


def stand(
    table: Table,
    models: Sequence[str] | None = None,
    fit: Table | None = None,
    prices: Prices | None = None,
) -> EvalSet:
    """Raises UsageError for unknown models, TableError where nothing can be compared."""
    notes: list[str] = []
    if models is not None:
        table = table.only(_named(models, table))
    if len(table.models) < 2:
        raise TableError(
            f"There is one model, {table.models[0]!r}: routing needs at least two."
            if table.models
            else "There is no model in the table.",
            path=table.name,
            column="model",
            remedy="Add outcomes of another model on the same queries (suffice collect).",
        )
    cost, costed, how = costs(table, prices)
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
    table = table.only(names)
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
    if len(names) == 2 and not _paid(table).all() and (prices is None or not costed[keep].all()):
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
            both = fit.only([fit.models[c] for c in columns if c is not None])
            means = both.score[both.complete]
            if len(means):
                m = means.mean(axis=0)
                return int(np.argmax(m)), "the table it is fitted on"
    # Which of two is the stronger only orients the metric: no policy learns from it.
    return int(np.argmax(score.mean(axis=0))), "this table (which only orients the metric)"


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────


def costs(
    table: Table, prices: Prices | None = None
) -> tuple[FloatArray, NDArray[np.bool_], dict[str, str]]:
    """(USD of each cell (n, k), NaN where unknown; which models have a known cost (k,); price
    and source of each model whose cost does not come from the table)."""
    n, k = table.score.shape
    cost = np.full((n, k), np.nan) if table.cost_usd is None else table.cost_usd.copy()
    notes: dict[str, str] = {}
    bare = [j for j in range(k) if np.isnan(cost[:, j]).all()]
    typed: FloatArray | None = None
    for j in bare:
        name = table.models[j]
        found = _price(name, prices)
        if found is None:
            continue
        if typed is None:
            typed = _input_tokens(table)
        tokens_in = _known(table.input_tokens, j)
        tokens_in = typed if tokens_in is None else tokens_in
        tokens_out = _known(table.output_tokens, j)
        if tokens_out is None:
            tokens_out = np.full(n, TYPICAL_OUTPUT_TOKENS)
        (usd_in, usd_out), source = found
        cost[:, j] = (tokens_in * usd_in + tokens_out * usd_out) / 1e6
        notes[name] = f"{usd_in:g}/{usd_out:g} ({source})"
    return cost, np.asarray(~np.isnan(cost).all(axis=0)), notes


def _paid(table: Table) -> NDArray[np.bool_]:
    """(k,) whether the table itself holds costs of each model."""
    if table.cost_usd is None:
        return np.zeros(len(table.models), bool)
    return np.asarray(~np.isnan(table.cost_usd).all(axis=0))


def _known(tokens: FloatArray | None, column: int) -> FloatArray | None:
    """(n,) tokens of a model: as the table has them, its mean where a cell is empty; None where it
    has none."""
    if tokens is None or np.isnan(tokens[:, column]).all():
        return None
    t = tokens[:, column]
    return np.asarray(np.where(np.isnan(t), np.nanmean(t), t))


def _input_tokens(table: Table) -> FloatArray:
    from suffice.features.signals import estimate_tokens

    return np.array([sum(estimate_tokens(m.text) for m in c) for c in table.messages])


def _price(name: str, prices: Prices | None) -> tuple[tuple[float, float], str] | None:
    """((USD per million input, output tokens), source) from the user's file, then the catalog."""
    if prices is not None:
        priced = list(prices)
        column = match_model(name, priced)
        if column is not None:
            return prices[priced[column]], "--prices"
    for model in _catalogued(name):
        p = model.price
        if p.input_usd_per_mtok is not None and p.output_usd_per_mtok is not None:
            where = f"{model.provider}, {p.source}"
            return (p.input_usd_per_mtok, p.output_usd_per_mtok), where
    return None


# Who sells open-weight models, asked in this order where a name says no provider.
_SELLERS = (
    "openai", "anthropic", "google", "mistral", "deepseek", "x-ai", "cohere", "together",
    "fireworks", "groq", "novita", "openrouter",
)  # fmt: skip


def _catalogued(name: str) -> Iterator[Model]:
    from suffice.catalog import builtin_models, lookup

    tail = name.rsplit("/", 1)[-1]
    for model in builtin_models():
        if model.name == name or model.upstream.lower() == tail.lower():
            yield model
    if "/" in name:
        found = lookup(*name.split("/", 1))
        if found is not None:
            yield found
    for seller in _SELLERS:
        for asked in dict.fromkeys((name, tail)):
            found = lookup(seller, asked)
            if found is not None:
                yield found


def _filled(cost: FloatArray) -> tuple[FloatArray, int]:
    hole = np.isnan(cost)
    if not hole.any():
        return cost, 0
    mean = np.nanmean(cost, axis=0)
    return np.asarray(np.where(hole, mean, cost)), int(hole.sum())


class _PriceRow(msgspec.Struct):
    input_usd_per_mtok: float
    output_usd_per_mtok: float


def read_prices(path: Path) -> dict[str, tuple[float, float]]:
    """{"model": {"input_usd_per_mtok": .., "output_usd_per_mtok": ..}} from a JSON file, also under
    a top-level "models". Raises UsageError."""
    try:
        raw = msgspec.json.decode(path.read_bytes())
        if isinstance(raw, dict) and isinstance(raw.get("models"), dict):
            raw = raw["models"]
        rows = msgspec.convert(raw, dict[str, _PriceRow])
    except OSError as error:
        raise UsageError(f"--prices {path}: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--prices {path}: {error}.",
            remedy='Expected {"model": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}}.',
        ) from None
    bad = [m for m, r in rows.items() if min(r.input_usd_per_mtok, r.output_usd_per_mtok) < 0]
    if bad:
        raise UsageError(f"--prices {path}: the price of {bad[0]!r} is negative.")
    return {m: (r.input_usd_per_mtok, r.output_usd_per_mtok) for m, r in rows.items()}

"""Fits policies on labelled outcomes, chooses among them by nested cross-validation, and makes the
artifact that serving loads.

'No better than a constant' is a possible outcome: a learner is chosen only where what it gains over
the zero router on queries it has not seen is above zero with confidence.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from suffice import features
from suffice.artifacts import artifact as artifacts
from suffice.artifacts import estimators
from suffice.artifacts.artifact import Artifact, Card
from suffice.errors import UsageError
from suffice.lab import stats
from suffice.lab.data.costs import outcome_costs
from suffice.lab.data.splits import connected_groups, group_kfold
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.evaluate.frontier import area_gain
from suffice.lab.evaluate.problem import EvalSet, build_eval_set
from suffice.lab.predictors import linear, registry
from suffice.lab.predictors.base import Batch, Predictor, extract_table, track
from suffice.learning.regression import VECTOR_SCALE

OUTER, INNER = 5, 3
MIN_COMPARABLE_QUERIES = (
    60  # complete queries below which nothing can be compared by cross-validation
)
SAMPLE_QUERIES = 1024  # training queries whose predictions the artifact keeps
CONFIDENCE = 0.9  # one-sided, that the learner's gain is above zero
DRAWS = 400
LEARNERS = ("trained", "ridge", "knn", "cluster")


@dataclass(frozen=True)
class TrainingResult:
    """What training came to. gains: name -> (gain over the zero router on unseen queries, its 95 %
    interval or None). nested: the same for 'whatever the inner folds choose', which is what the
    chosen one may be credited with."""

    chosen: str
    why: str
    gains: dict[str, tuple[float, tuple[float, float] | None]]
    nested: tuple[float, tuple[float, float] | None] | None
    notes: tuple[str, ...]


def train(
    table: Table,
    *,
    models: Sequence[str] | None = None,
    policy: str | None = None,
    seed: int = 0,
    licence: str = "unknown",
    made: str | None = None,
    progress: bool = False,
) -> tuple[Artifact, TrainingResult]:
    """An artifact from a labelled table.

    policy: one learner by name, None = choose by nested cross-validation. made: ISO date. Raises
    TableError (one model, no overlap, ...) or UsageError (unknown model or policy).
    """
    ground = build_eval_set(table, models)
    table = ground.table
    table = table.take(np.flatnonzero((~np.isnan(table.score)).any(axis=1)))
    x = extract_table(table, progress)
    fit = _TrainingData(table, x, ground)
    if policy in ("default", "length"):
        raise UsageError(
            f"The policy {policy!r} learns nothing.", remedy="It needs no artifact: just name it."
        )
    if policy is not None:
        names = [policy]
        registry.make_predictor(policy)  # an unknown name is refused before an hour of work
    else:
        names = [*LEARNERS, *_offered()]
    outcome = _choose(fit, ground, names, policy, seed, progress)
    return _make(fit, outcome, seed, licence, made), outcome


def key_hashes(table: Table) -> NDArray[np.uint64]:
    """uint64 (n,): hashes of the normalised prompts, to tell later what was learned from."""
    raw = b"".join(blake2b(k.encode(), digest_size=8).digest() for k in table.keys)
    return np.frombuffer(raw, "<u8")


class _TrainingData:
    """A labelled table as numbers, and fitting on part of it. `complete`: rows on which every model
    has a score: only they can be judged, all can be learned from."""

    def __init__(self, table: Table, x: Batch, ground: EvalSet) -> None:
        self.table = table
        self.x = x
        self.models = table.models
        self.price = ground.price
        self.unit = ground.unit
        known, costed, _ = outcome_costs(table)
        self.cost = known if costed.all() else None
        self.complete = np.flatnonzero(table.complete)
        fill = np.broadcast_to(self.price, table.score.shape)
        paid = fill if self.cost is None else np.where(np.isnan(self.cost), fill, self.cost)
        self.paid = np.asarray(paid)

    def on(self, rows: NDArray[np.intp], name: str) -> Predictor:
        cost = None if self.cost is None else self.cost[rows]
        return registry.make_predictor(name).fit(
            self.x.take(rows), self.table.score[rows], cost, self.price, self.models
        )


def _offered() -> list[str]:
    from importlib.metadata import entry_points

    return [
        e.name
        for e in entry_points(group=artifacts.ENTRY_POINTS)
        if e.name not in registry.BUILT_IN
    ]


# ── choosing ─────────────────────────────────────────────────────────────────────────────────────


def _choose(
    fit: _TrainingData,
    ground: EvalSet,
    names: Sequence[str],
    asked: str | None,
    seed: int,
    progress: bool,
) -> TrainingResult:
    notes = list(ground.notes)
    n, k = len(fit.complete), len(fit.models)
    if n < MIN_COMPARABLE_QUERIES:
        notes.append(
            f"{n} queries with every score are too few to compare policies; about "
            f"{linear.MIN_MULTI_MODEL_LABELS} tell"
        )
        # Of a pair the safe head is never much worse than length, which is what serves anyway.
        chosen = asked or ("trained" if k == 2 else "constant")
        return TrainingResult(chosen, "too few labels to compare", {}, None, tuple(notes))
    if asked is None and k >= 3 and n < linear.MIN_MULTI_MODEL_LABELS:
        notes.append(
            f"below {linear.MIN_MULTI_MODEL_LABELS} labelled queries three or more models "
            "get constants only: what else is learned from so few has been worse"
        )
    cluster = connected_groups(fit.table)
    outer = group_kfold(cluster, OUTER, seed)
    held: dict[str, tuple[FloatArray, FloatArray]] = {
        m: (np.zeros(fit.table.score.shape), np.zeros(fit.table.score.shape))
        for m in (*names, "nested")
    }
    tasks = [(f, m) for f in range(OUTER) for m in (*names, "nested")]
    for f, name in track(tasks, "cross-validating", progress):
        rest, out = np.flatnonzero(outer != f), np.flatnonzero(outer == f)
        pick = name if name != "nested" else _inner(fit, rest, cluster, names, seed + 1 + f)
        q, c = held[name]
        if name == "nested" and pick in held:
            q[out], c[out] = held[pick][0][out], held[pick][1][out]
        else:
            q[out], c[out] = fit.on(rest, pick).predict(fit.x.take(out))
    rows = fit.complete
    score, paid = fit.table.score[rows], fit.paid[rows]
    redraws = stats.ClusterBootstrap(fit.table.clusters[rows], DRAWS, seed)
    gains = {m: area_gain(q[rows], c[rows], score, paid, redraws) for m, (q, c) in held.items()}
    nested = gains.pop("nested")
    best = max(names, key=lambda m: gains[m].gain)
    told = {m: (g.gain, g.interval()) for m, g in gains.items()}
    whole = (nested.gain, nested.interval())
    if asked is not None:
        return TrainingResult(asked, "asked for", told, None, tuple(notes))
    lower = nested.lower(CONFIDENCE)
    if nested.gain > 0 and lower > 0:
        why = f"gains over random mixing of single models on unseen queries ({CONFIDENCE:.0%} sure)"
        return TrainingResult(best, why, told, whole, tuple(notes))
    if k == 2 and n < linear.MIN_MULTI_MODEL_LABELS and gains["trained"].gain > 0:
        why = "too few labels to be sure, and the safe head falls back on length"
        return TrainingResult("trained", why, told, whole, tuple(notes))
    why = "no learner was shown to be better than a constant"
    return TrainingResult("constant", why, told, whole, tuple(notes))


def _inner(
    fit: _TrainingData,
    rows: NDArray[np.intp],
    cluster: NDArray[np.intp],
    names: Sequence[str],
    seed: int,
) -> str:
    """Which of `names` inner cross-validation on `rows` prefers."""
    if len(names) == 1:
        return names[0]
    part = group_kfold(np.unique(cluster[rows], return_inverse=True)[1], INNER, seed)
    judged = np.isin(rows, fit.complete)
    score, paid = fit.table.score[rows], fit.paid[rows]
    best, most = names[0], -np.inf
    for name in names:
        q, c = np.zeros(score.shape), np.zeros(score.shape)
        for f in range(INNER):
            q[part == f], c[part == f] = fit.on(rows[part != f], name).predict(
                fit.x.take(rows[part == f])
            )
        gain = area_gain(q[judged], c[judged], score[judged], paid[judged], None).gain
        if gain > most:
            best, most = name, gain
    return best


# ── the artifact ─────────────────────────────────────────────────────────────────────────────────


def _make(
    fit: _TrainingData, outcome: TrainingResult, seed: int, licence: str, made: str | None
) -> Artifact:
    table, x = fit.table, fit.x
    everything = np.arange(len(table))
    fitted: Any = fit.on(everything, outcome.chosen)
    if not hasattr(fitted, "estimator"):
        raise UsageError(
            f"The policy {outcome.chosen!r} cannot be saved: it has no `estimator(models)`.",
            remedy="See suffice.policies.estimators.Estimator.",
        )
    estimator = _with_tokens(fitted.estimator(table.models), table, x)
    sample = _sample(len(table), seed)
    quality, cost = estimator.predict(x.signals[sample], x.vectors[sample])
    tokens = estimator.output_tokens(x.signals[sample], x.vectors[sample])
    if fit.unit != "usd":
        cost = np.full(cost.shape, np.nan)
    mean, deviation = features.feature_scaler()
    prompt = features.SIGNAL_NAMES.index("log_prompt_tokens")
    known = table.score[~np.isnan(table.score)]
    card = Card(
        kind=estimator.kind,
        models=table.models,
        features=features.SCHEMA,
        table=features.embedding_version(),
        reference=table.models[int(np.argmax(quality.mean(axis=0)))],
        trained_on=table.name,
        queries=len(table),
        labels=int((~np.isnan(table.score)).sum()),
        made=made or dt.date.today().isoformat(),
        made_by=f"suffice {_version()}",
        licence=licence,
        seed=seed,
        scores="right/wrong" if np.isin(known, (0.0, 1.0)).all() else "graded",
        figures=_figures(outcome),
        prices=_prices(table.models),
        notes=(*table.warnings, *outcome.notes),
    )
    made_of = Artifact(
        card=card,
        estimator=estimator,
        sample_quality=quality,
        sample_cost=cost,
        sample_tokens=np.full(cost.shape, np.nan) if tokens is None else tokens,
        sample_input=np.expm1(x.signals[sample, prompt].astype(float)),
        sample_length=((x.signals[sample, 0] - mean[0]) / deviation[0]).astype(float),
        training_keys=np.unique(key_hashes(table)),
    )
    return artifacts.unpack(artifacts.pack(made_of))


def _sample(n: int, seed: int) -> NDArray[np.intp]:
    if n <= SAMPLE_QUERIES:
        return np.random.default_rng(seed).permutation(n)
    return np.random.default_rng(seed).choice(n, SAMPLE_QUERIES, replace=False)


def _with_tokens(e: estimators.Estimator, table: Table, x: Batch) -> estimators.Estimator:
    """The estimator with heads for the log of output tokens, where the table has them: with them
    the cost of a query follows the catalog's prices as they change."""
    tokens = table.output_tokens
    if tokens is None:
        return e
    positive = np.where(tokens > 0, tokens, np.nan)
    if (np.isfinite(positive).sum(axis=0) < 10).any():
        return e
    if isinstance(e, estimators.ConstantEstimator):
        return msgspec.structs.replace(e, tokens=np.nanmean(positive, axis=0))
    if not isinstance(e, estimators.LinearEstimator):
        return e
    weights, intercept = linear.fit_log_heads(x, positive)
    s = len(e.mean)
    return msgspec.structs.replace(
        e,
        signals=np.concatenate([e.signals, weights[:s]], axis=1),
        vectors=np.concatenate([e.vectors, weights[s:] * VECTOR_SCALE], axis=1),
        intercept=np.append(e.intercept, intercept),
        has_tokens=True,
    )


def _figures(outcome: TrainingResult) -> dict[str, Any]:
    def plain(g: tuple[float, tuple[float, float] | None]) -> dict[str, Any]:
        return {"gain_over_zero_router": round(g[0], 6), "ci": g[1]}

    out: dict[str, Any] = {"chosen": outcome.chosen, "why": outcome.why}
    if outcome.nested is not None:
        out["nested"] = plain(outcome.nested)
    if outcome.gains:
        out["cross_validated"] = {m: plain(g) for m, g in outcome.gains.items()}
    return out


def _prices(models: Sequence[str]) -> dict[str, tuple[float, float]]:
    """List prices of the models at training, so that costs can follow them."""
    from suffice.catalog import builtin_models

    out = {}
    for m in builtin_models():
        p = m.price
        if p.input_usd_per_mtok is None or p.output_usd_per_mtok is None:
            continue
        for name in models:
            if name in (m.name, m.upstream):
                out[name] = (p.input_usd_per_mtok, p.output_usd_per_mtok)
    return out


def _version() -> str:
    from importlib.metadata import version

    return version("suffice")

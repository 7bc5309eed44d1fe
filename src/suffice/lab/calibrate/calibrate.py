"""From a labelled table and a policy that never saw its labels to a certificate, or to why not.

Nothing is chosen by a calibration label: the reference and the cheap models come from the artifact
or from prices, the exchange rate among several cheap ones from the artifact's own predictions, the
thresholds from scores. Labels only decide where the walk of `certify` stops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffice import features
from suffice.artifacts import certificate as certificates
from suffice.artifacts.certificate import Certificate
from suffice.errors import TableError, UsageError
from suffice.lab.calibrate.risk_control import (
    Kind,
    RiskControlResult,
    fixed_sequence_test,
    quantile_thresholds,
)
from suffice.lab.data.costs import Prices
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.evaluate.predictions import NO_LABELS, is_artifact
from suffice.lab.evaluate.problem import EvalSet, build_eval_set
from suffice.lab.predictors import registry
from suffice.lab.predictors.base import extract_table
from suffice.lab.train.train import key_hashes
from suffice.names import match_model
from suffice.policies import priors

RATES = 40  # exchange rates that are looked at
# Notes on the ground of an evaluation that are not about what is certified.
_NOT_OURS = ("of the pair,", "but ", "left out of every figure", "are few:", "missing costs")


@dataclass(frozen=True)
class Calibration:
    """certificate: None = it cannot be certified, and `verdict.reason` says why. costs: mean USD a
    query with the reference alone and under the certificate, None where costs are unknown. net:
    mean quality served less that of the reference, on the same rows."""

    certificate: Certificate | None
    verdict: RiskControlResult
    reference: str
    cheap: tuple[str, ...]
    costs: tuple[float, float] | None
    net: float | None
    notes: tuple[str, ...]


def calibrate(
    table: Table,
    policy: str,
    *,
    max_loss: float,
    confidence: float,
    made: str,
    models: Sequence[str] | None = None,
    reference: str | None = None,
    prices: Prices | None = None,
    list_prices: Mapping[str, tuple[float, float] | None] | None = None,
    progress: bool = False,
) -> Calibration:
    """Calibrates `policy` ("default", "length" or the path of an artifact) on a labelled table.

    made: ISO date. models: only these. reference: which of them is held to, None = the artifact's,
    or the dearest. prices: what models cost where the table does not say. list_prices: USD per
    million tokens in and out that the certificate is bound to. Raises UsageError, TableError,
    ArtifactError.
    """
    _check(max_loss, confidence)
    predictor: Any = _predictor(policy)
    trained = policy not in NO_LABELS
    notes: list[str] = []
    table = _unseen(table, predictor, policy, notes)
    if trained and models is None:
        models = _known(table, predictor, policy)
    ground = build_eval_set(table, models, prices=prices)
    notes += [n for n in ground.notes if not any(w in n for w in _NOT_OURS)]
    usd = ground.unit == "usd"
    price = ground.price if usd else np.full(len(ground.models), np.nan)
    ref = _reference(ground, predictor, policy, reference, usd)
    cheap = _cheap(ground, ref, trained, usd, notes)
    columns = [ref, *cheap]
    names = tuple(ground.models[j] for j in columns)

    part = ground.table.select_models(names)
    cost = price[columns]
    if trained:
        part = part.take(~np.isnan(part.score[:, 0]))
    x = extract_table(part, progress, vectors=trained)
    none = np.zeros((0, len(names)))
    predictor.fit(x.take(np.zeros(0, np.intp)), none, None, cost, names)
    rate = 0.0
    thresholds: FloatArray | None = None
    if trained:
        sample = _sample(predictor, names)
        rate = choose_exchange_rate(sample, cost, max_loss)
        thresholds = quantile_thresholds(quality_gaps(sample, cost, rate)[1])
        quality = predictor.predict(x)[0]
        place, score = quality_gaps(quality, cost, rate)
    else:
        place, score = np.zeros(len(part), np.intp), predictor.strong_score(x, 0, 1)

    alternative = part.score[np.arange(len(part)), place + 1]
    rows = np.flatnonzero(~np.isnan(alternative) & ~np.isnan(part.score[:, 0]))
    if not len(rows):
        raise TableError(
            f"No query has a score of both {names[0]} and the model that would serve instead.",
            path=table.name,
            column="score",
            remedy="Collect labels of both on the same queries: suffice collect.",
        )
    if len(rows) < len(table):
        notes.append(
            f"{len(table) - len(rows)} of {len(table)} queries lack a score of {names[0]} or of "
            "what would serve instead, and are left out"
        )
    loss = np.maximum(0.0, part.score[rows, 0] - alternative[rows])
    groups = None if part.group is None else part.clusters[rows]
    kind = _kind(part, predictor)
    verdict = fixed_sequence_test(
        loss,
        score[rows],
        max_loss=max_loss,
        confidence=confidence,
        kind=kind,
        groups=groups,
        thresholds=thresholds,
    )
    grouped = groups is not None and verdict.n < len(rows)
    if grouped:
        notes.append(
            f"{len(rows)} queries in {verdict.n} groups: groups are what is drawn, and each counts "
            "once, however many queries it has"
        )
    if policy == "length":
        notes.append("length is a baseline of the lab: the policy that serves is default")
    if verdict.threshold is None:
        return Calibration(None, verdict, names[0], names[1:], None, None, (*notes,))
    goes = score[rows] <= verdict.threshold
    net = float(np.where(goes, alternative[rows] - part.score[rows, 0], 0.0).mean())
    costs = None
    if usd:
        costs = (float(cost[0]), float(np.where(goes, cost[place[rows] + 1], cost[0]).mean()))
    bound = list_prices or {}
    told = Certificate(
        policy=policy,
        policy_version=(
            predictor.version_ if trained else priors.prior_version(policy, features.SCHEMA)
        ),
        score="gap" if trained else "rank",
        reference=names[0],
        cheap=names[1:],
        cost_usd=tuple(float(c) if usd else 0.0 for c in cost[1:]),
        exchange_rate=rate,
        threshold=verdict.threshold,
        max_loss=max_loss,
        confidence=confidence,
        method=verdict.method,
        kind=kind,
        unit="groups" if grouped else "queries",
        n=verdict.n,
        losses=verdict.losses,
        upper_bound=verdict.upper_bound,
        cheap_share=verdict.cheap_share,
        prices={n: bound.get(n) for n in names},
        made=made,
        table=table.name,
    )
    return Calibration(
        certificates.with_digest(told), verdict, names[0], names[1:], costs, net, (*notes,)
    )


def quality_gaps(
    quality: FloatArray, cost: FloatArray, rate: float
) -> tuple[NDArray[np.intp], FloatArray]:
    """((n,) place of the alternative among the cheap, (n,) score), as `Certificate.pick` says, for
    predicted qualities (n, 1 + cheap) and costs (1 + cheap,), the reference first."""
    penalty = 0.0 if rate == 0.0 else rate * cost[1:]
    place = np.argmax(quality[:, 1:] - penalty, axis=1)
    return place, quality[:, 0] - quality[np.arange(len(quality)), place + 1]


def choose_exchange_rate(quality: FloatArray, cost: FloatArray, max_loss: float) -> float:
    """The quality worth a dollar at which the alternatives are predicted to save most within
    `max_loss`; 0 where there is one. quality: (m, 1 + cheap) predicted, of training queries.

    A query is predicted to lose p (1 - q), as if the reference being right (p) and the alternative
    being right (q) were independent.
    """
    if quality.shape[1] <= 2:
        return 0.0
    apart = np.abs(np.subtract.outer(cost[1:], cost[1:]))
    apart = apart[apart > 0]
    if not len(apart):
        return 0.0
    rates = [0.0, *np.geomspace(1e-3 / apart.max(), 1e2 / apart.min(), RATES)]
    p = np.clip(quality, 0.0, 1.0)
    best, most = 0.0, -np.inf
    for rate in rates:
        place, score = quality_gaps(quality, cost, rate)
        lost = p[:, 0] * (1.0 - p[np.arange(len(p)), place + 1])
        order = np.argsort(score, kind="stable")
        within = np.cumsum(lost[order]) / len(p) <= max_loss
        saved = float((cost[0] - cost[place[order] + 1])[within].sum())
        if saved > most * (1 + 1e-9) + 1e-12:
            best, most = float(rate), saved
    return best


# ── who is compared ──────────────────────────────────────────────────────────────────────────────


def _check(max_loss: float, confidence: float) -> None:
    if not 0.0 < max_loss < 1.0:
        raise UsageError(
            f"--max-loss: expected above 0 and below 1, got {max_loss:g}.",
            remedy="0.05 allows 5 points of quality on average.",
        )
    if not 0.5 <= confidence < 1.0:
        raise UsageError(
            f"--confidence: expected 0.5 to below 1, got {confidence:g}.", remedy="0.9 is usual."
        )


def _predictor(policy: str) -> Any:
    if policy in NO_LABELS or is_artifact(policy):
        return registry.make_predictor(policy)
    if policy in registry.BUILT_IN:
        raise UsageError(
            f"--policy {policy}: it learns from labels, and calibration labels fit nothing.",
            remedy="Train it on other labels first (suffice train), then give the artifact's path.",
        )
    known = registry.make_predictor(policy)  # raises UsageError for a name that nobody offers
    raise UsageError(
        f"--policy {known.name}: only an artifact, default or length can be calibrated.",
        remedy="Train it first: suffice train --policy.",
    )


def _unseen(table: Table, predictor: Any, policy: str, notes: list[str]) -> Table:
    """The table without queries that the artifact was trained on."""
    keys = getattr(predictor, "training_keys_", None)
    if keys is None or not len(keys):
        return table
    fresh = ~np.isin(key_hashes(table), keys)
    dropped = int((~fresh).sum())
    if not fresh.any():
        raise UsageError(
            f"{policy} was trained on every query of this table: its labels certify nothing.",
            remedy="Calibrate on labels it has not seen: hold some back, or collect more.",
        )
    if dropped:
        notes.append(
            f"{dropped} of {len(table)} queries were dropped: {policy} was trained on them"
        )
    return table.take(fresh)


def _known(table: Table, predictor: Any, policy: str) -> list[str]:
    trained: tuple[str, ...] = predictor.artifact.card.models
    both = [m for m in table.models if match_model(m, trained) is not None]
    if len(both) < 2:
        raise UsageError(
            f"{policy} was trained on {_some(trained)}; the table has {_some(table.models)}: fewer "
            "than two in common.",
            remedy="Calibrate on outcomes of the models it was trained on.",
        )
    return both


def _reference(ground: EvalSet, predictor: Any, policy: str, asked: str | None, usd: bool) -> int:
    names = ground.models
    if asked is not None:
        column = match_model(asked, names)
        if column is None:
            raise UsageError(
                f"--reference: {asked!r} is not among {_some(names)}.",
                remedy="Name one of them.",
            )
        return column
    if policy not in NO_LABELS:
        card = predictor.artifact.card
        means = predictor.artifact.sample_quality.mean(axis=0)
        order = sorted(range(len(card.models)), key=lambda j: (j != _at(card), -means[j]))
        for j in order:
            at = [i for i, n in enumerate(names) if match_model(n, card.models) == j]
            if at:
                return at[0]
    if usd and (ground.price == ground.price.max()).sum() == 1:
        return int(np.argmax(ground.price))
    raise UsageError(
        "Which model is the reference? The table's costs do not tell, and its scores may not: they "
        "are the calibration labels.",
        remedy=f"Give --reference, one of {_some(names)}.",
    )


def _some(names: Sequence[str], most: int = 8) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _at(card: Any) -> int:
    return int(card.models.index(card.reference))


def _cheap(ground: EvalSet, ref: int, trained: bool, usd: bool, notes: list[str]) -> list[int]:
    """Columns that may serve instead: those that cost less than the reference; without predictions
    to choose by, only the cheapest."""
    others = [j for j in range(len(ground.models)) if j != ref]
    if not usd:
        return others
    price = ground.price
    cheap = [j for j in others if price[j] < price[ref]]
    if not cheap:
        raise UsageError(
            f"No model costs less than the reference, {ground.models[ref]}.",
            remedy="Choose others with --models, or another --reference.",
        )
    left = [ground.models[j] for j in others if j not in cheap]
    if left:
        notes.append(f"left out, since they cost no less than the reference: {', '.join(left)}")
    if not trained and len(cheap) > 1:
        least = min(cheap, key=lambda j: price[j])
        notes.append(
            f"with no labels to tell which cheap model suits a query, only the cheapest is "
            f"certified: {ground.models[least]}; --models names another pair"
        )
        return [least]
    return cheap


def _sample(predictor: Any, names: Sequence[str]) -> FloatArray:
    """(m, k) what the artifact expected of a sample of its training queries, columns as named."""
    artifact = predictor.artifact
    columns = [match_model(n, artifact.card.models) for n in names]
    return np.asarray(artifact.sample_quality[:, columns], float)


def _kind(table: Table, predictor: Any) -> Kind:
    """Right/wrong only where every score is 0 or 1, here and where the artifact learned."""
    known = table.score[~np.isnan(table.score)]
    artifact = getattr(predictor, "artifact", None)
    graded = artifact is not None and artifact.card.scores == "graded"
    return "binary" if not graded and bool(np.isin(known, (0.0, 1.0)).all()) else "graded"

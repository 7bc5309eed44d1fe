"""Calibrates a policy on labels that it never saw: a certificate, or the reason why there is none.

No calibration label makes a choice. The reference and the cheap models come from the artifact or from
prices, the exchange rate among several cheap models from the artifact's predictions, the thresholds
from scores. Labels only decide where the fixed-sequence test ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suffice import features
from suffice.artifacts import certificate as certificates
from suffice.artifacts.certificate import Certificate
from suffice.errors import TableError, UsageError
from suffice.lab.calibrate.exchange_rate import choose_exchange_rate, quality_gaps
from suffice.lab.calibrate.risk_control import (
    Kind,
    RiskControlResult,
    fixed_sequence_test,
    quantile_thresholds,
)
from suffice.lab.calibrate.roles import Roles, assign_roles
from suffice.lab.data.costs import Prices
from suffice.lab.data.keys import trained_on
from suffice.lab.data.table import FloatArray, Table
from suffice.lab.evaluate.problem import EvalSet, build_eval_set
from suffice.lab.predictors.base import Batch, Predictor, extract_table
from suffice.lab.predictors.registry import BUILT_IN, NO_LABELS, is_artifact, make_predictor
from suffice.lab.predictors.saved import SavedPredictor
from suffice.lab.stats import weighted_mean
from suffice.names import match_model
from suffice.policies import priors

# Notes of an evaluation set that do not concern a certificate.
_OTHER_NOTES = (
    "of the pair,", "but ", "left out of every figure", "are few:", "missing costs", "sampling_weight",
)  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """Result of a calibration.

    Attributes:
        certificate: None if nothing can be certified; `result.reason` says why.
        result: Of the fixed-sequence test.
        reference: The model that quality is compared to.
        cheap: Models that may answer instead.
        costs: Mean USD per query with the reference alone and under the certificate; None if unknown.
        net_quality_change: Mean quality under the certificate less that of the reference, on the same
            queries.
        notes: For the user.
    """

    certificate: Certificate | None
    result: RiskControlResult
    reference: str
    cheap: tuple[str, ...]
    costs: tuple[float, float] | None
    net_quality_change: float | None
    notes: tuple[str, ...]


def calibrate(
    table: Table,
    policy: str,
    *,
    max_loss: float,
    confidence: float,
    date: str,
    models: Sequence[str] | None = None,
    reference: str | None = None,
    prices: Prices | None = None,
    list_prices: Mapping[str, tuple[float, float] | None] | None = None,
    progress: bool = False,
) -> Calibration:
    """Calibrate a policy on a labelled table.

    Args:
        table: Labels that the policy was not trained on.
        policy: "default", "length" or the path of an artifact.
        max_loss: Mean quality that may be lost against the reference.
        confidence: Probability that the bound holds.
        date: ISO date, for the certificate.
        models: Only these models; None: all that share enough scored queries.
        reference: The model that quality is compared to; None: the artifact's, or the most expensive.
        prices: Of the user, for models without costs in the table.
        list_prices: USD per million tokens in and out that the certificate is bound to.
        progress: Show a bar on standard error.

    Returns:
        A certificate, or the reason why there is none.

    Raises:
        UsageError: If an argument is wrong.
        TableError: If nothing can be compared.
        ArtifactError: If the artifact cannot be read.
    """
    _validate(max_loss, confidence)
    predictor = _make_predictor(policy)
    notes: list[str] = []
    table = _drop_trained_on(table, predictor, notes)
    saved = predictor if isinstance(predictor, SavedPredictor) else None
    if saved is not None and models is None:
        models = _models_of_artifact(table, saved)
    eval_set = build_eval_set(table, models, prices=prices)
    notes += [n for n in eval_set.notes if not any(w in n for w in _OTHER_NOTES)]
    roles = assign_roles(eval_set, saved, reference, notes)
    scores = _score_queries(eval_set, roles, predictor, max_loss, progress)
    rows = _labelled_rows(table, scores, notes)
    result = fixed_sequence_test(
        np.maximum(0.0, scores.reference_quality - scores.alternative_quality)[rows],
        scores.score[rows],
        max_loss=max_loss,
        confidence=confidence,
        kind=_kind(scores.table, saved),
        groups=None if table.group is None else scores.table.clusters[rows],
        thresholds=scores.thresholds,
    )
    grouped = table.group is not None and result.n < len(rows)
    notes += _sample_notes(table, policy, len(rows), result.n if grouped else None)
    if result.threshold is None:
        return Calibration(None, result, roles.reference, roles.cheap, None, None, (*notes,))
    terms = _Terms(max_loss, confidence, date, table.name, list_prices or {})
    certificate = _make_certificate(policy, saved, roles, scores, result, grouped, terms)
    costs, net = _effects(scores, roles, rows, result.threshold)
    return Calibration(certificate, result, roles.reference, roles.cheap, costs, net, (*notes,))


@dataclass(frozen=True)
class _Terms:
    """What a certificate states without computing it."""

    max_loss: float
    confidence: float
    date: str
    table: str
    list_prices: Mapping[str, tuple[float, float] | None]


def _make_certificate(
    policy: str,
    saved: SavedPredictor | None,
    roles: Roles,
    scores: _Scores,
    result: RiskControlResult,
    grouped: bool,
    terms: _Terms,
) -> Certificate:
    assert result.threshold is not None
    certificate = Certificate(
        policy=policy,
        policy_version=saved.version_ if saved else priors.prior_version(policy, features.SCHEMA),
        score="gap" if saved else "rank",
        reference=roles.reference,
        cheap=roles.cheap,
        cost_usd=tuple(float(c) if roles.priced else 0.0 for c in roles.cost[1:]),
        exchange_rate=scores.exchange_rate,
        threshold=result.threshold,
        max_loss=terms.max_loss,
        confidence=terms.confidence,
        method=result.method,
        kind=result.kind,
        unit="groups" if grouped else "queries",
        n=result.n,
        losses=result.losses,
        upper_bound=result.upper_bound,
        cheap_share=result.cheap_share,
        prices={n: terms.list_prices.get(n) for n in roles.names},
        made=terms.date,
        table=terms.table,
    )
    return certificates.with_digest(certificate)


# ── scores ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Scores:
    """What is compared on each query.

    Attributes:
        table: Queries, columns as in `Roles.names`.
        alternative: (n,) place among the cheap models of the one that would answer.
        score: (n,) the cheap model answers queries of low score.
        thresholds: To test, ascending; None: every distinct score.
        exchange_rate: Quality worth one USD.
    """

    table: Table
    alternative: NDArray[np.intp]
    score: FloatArray
    thresholds: FloatArray | None
    exchange_rate: float

    @property
    def reference_quality(self) -> FloatArray:
        """(n,) score of the reference, NaN if unknown."""
        return self.table.score[:, 0]

    @property
    def alternative_quality(self) -> FloatArray:
        """(n,) score of the alternative, NaN if unknown."""
        return self.table.score[np.arange(len(self.table)), self.alternative + 1]


def _score_queries(
    eval_set: EvalSet, roles: Roles, predictor: Predictor, max_loss: float, progress: bool
) -> _Scores:
    table = eval_set.table.select_models(roles.names)
    saved = predictor if isinstance(predictor, SavedPredictor) else None
    if saved is not None:
        table = table.take(~np.isnan(table.score[:, 0]))
    x = extract_table(table, progress, vectors=saved is not None)
    _fit_without_labels(predictor, x, roles)
    if saved is None:
        first = np.zeros(len(table), np.intp)
        return _Scores(table, first, predictor.strong_score(x, 0, 1), None, 0.0)
    card = saved.artifact.card
    columns = [c for c in (match_model(n, card.models) for n in roles.names) if c is not None]
    sample = np.asarray(saved.artifact.sample_quality[:, columns], float)
    rate = choose_exchange_rate(sample, roles.cost, max_loss)
    thresholds = quantile_thresholds(quality_gaps(sample, roles.cost, rate)[1])
    quality = predictor.predict(x)[0]
    alternative, score = quality_gaps(quality, roles.cost, rate)
    return _Scores(table, alternative, score, thresholds, rate)


def _fit_without_labels(predictor: Predictor, x: Batch, roles: Roles) -> None:
    no_labels = np.zeros((0, len(roles.names)))
    predictor.fit(x.take(np.zeros(0, np.intp)), no_labels, None, roles.cost, roles.names)


def _effects(
    scores: _Scores, roles: Roles, rows: NDArray[np.intp], threshold: float
) -> tuple[tuple[float, float] | None, float]:
    """(mean USD before and after, net change of quality) at a threshold."""
    cheap = scores.score[rows] <= threshold
    weight = scores.table.sampling_weight
    weight = None if weight is None else weight[rows]
    change = (scores.alternative_quality - scores.reference_quality)[rows]
    net = float(weighted_mean(np.where(cheap, change, 0.0), weight))
    if not roles.priced:
        return None, net
    cost = np.where(cheap, roles.cost[scores.alternative[rows] + 1], roles.cost[0])
    return (float(roles.cost[0]), float(weighted_mean(cost, weight))), net


# ── what is calibrated ───────────────────────────────────────────────────────────────────────────


def _validate(max_loss: float, confidence: float) -> None:
    if not 0.0 < max_loss < 1.0:
        raise UsageError(
            f"--max-loss: expected above 0 and below 1, got {max_loss:g}.",
            remedy="0.05 allows 5 points of quality on average.",
        )
    if not 0.5 <= confidence < 1.0:
        raise UsageError(
            f"--confidence: expected 0.5 to below 1, got {confidence:g}.", remedy="0.9 is usual."
        )


def _make_predictor(policy: str) -> Predictor:
    if policy in NO_LABELS or is_artifact(policy):
        return make_predictor(policy)
    if policy in BUILT_IN:
        raise UsageError(
            f"--policy {policy}: it learns from labels, and calibration labels fit nothing.",
            remedy="Train it on other labels first (suffice train), then give the artifact's path.",
        )
    plugin = make_predictor(policy)  # raises UsageError for an unknown name
    raise UsageError(
        f"--policy {plugin.name}: only an artifact, default or length can be calibrated.",
        remedy="Train it first: suffice train --policy.",
    )


def _drop_trained_on(table: Table, predictor: Predictor, notes: list[str]) -> Table:
    """The table without queries that the artifact was trained on."""
    known = trained_on(table, predictor.training_keys_)
    if len(table) and known.all():
        raise UsageError(
            f"{predictor.name} was trained on every query of this table: its labels certify nothing.",
            remedy="Calibrate on labels it has not seen: hold some back, or collect more.",
        )
    if known.any():
        notes.append(
            f"{int(known.sum())} of {len(table)} queries were dropped: {predictor.name} was trained "
            "on them"
        )
    return table.take(~known)


def _models_of_artifact(table: Table, predictor: SavedPredictor) -> list[str]:
    trained = predictor.artifact.card.models
    both = [m for m in table.models if match_model(m, trained) is not None]
    if len(both) < 2:
        raise UsageError(
            f"{predictor.name} was trained on {', '.join(trained[:8])}; the table has "
            f"{', '.join(table.models[:8])}: fewer than two in common.",
            remedy="Calibrate on outcomes of the models it was trained on.",
        )
    return both


def _labelled_rows(table: Table, scores: _Scores, notes: list[str]) -> NDArray[np.intp]:
    """Queries with a score of the reference and of the alternative."""
    unknown = np.isnan(scores.alternative_quality) | np.isnan(scores.reference_quality)
    rows = np.flatnonzero(~unknown)
    reference = scores.table.models[0]
    if not len(rows):
        raise TableError(
            f"No query has a score of both {reference} and the model that would serve instead.",
            path=table.name,
            column="score",
            remedy="Collect labels of both on the same queries: suffice collect.",
        )
    if len(rows) < len(table):
        notes.append(
            f"{len(table) - len(rows)} of {len(table)} queries lack a score of {reference} or of "
            "the model that would serve instead, and are left out"
        )
    return rows


def _sample_notes(table: Table, policy: str, n_rows: int, n_groups: int | None) -> list[str]:
    notes = []
    if n_groups is not None:
        notes.append(
            f"{n_rows} queries in {n_groups} groups: groups are sampled, and each counts once, "
            "however many queries it has"
        )
    weight = table.sampling_weight
    if weight is not None and np.ptp(weight) > 1e-9 * weight.max():
        notes.append(
            "the table is a sample with unequal sampling_weight: the bound holds for queries sampled "
            "as the table was, not for all traffic; calibrate on a random sample"
        )
    if policy == "length":
        notes.append("length is a baseline of the lab: the policy that serves is default")
    return notes


def _kind(table: Table, saved: SavedPredictor | None) -> Kind:
    """Binary only if every score is 0 or 1, here and in the artifact's training table."""
    known = table.score[~np.isnan(table.score)]
    graded = saved is not None and saved.artifact.card.scores == "graded"
    return "binary" if not graded and bool(np.isin(known, (0.0, 1.0)).all()) else "graded"

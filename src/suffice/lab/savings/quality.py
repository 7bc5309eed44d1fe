"""Estimates the quality kept against the reference model, or states why that is not possible.

"What the reference alone would have scored" is the replay of a constant policy on the labelled
decisions: the same estimators, intervals and requirements as in `suffice.lab.ope`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, sqrt

import msgspec
import numpy as np
from msgspec.structs import replace

from suffice.lab.data.table import FloatArray
from suffice.lab.ope import estimators
from suffice.lab.ope.estimators import EstimatorTerms, LoggedData
from suffice.lab.ope.intervals import Estimate, estimate_policy_values, widen
from suffice.lab.ope.logged_choices import logged_data
from suffice.lab.ope.reward_model import predict_scores
from suffice.lab.ope.verdict import (
    MIN_ESS,
    MIN_SESSIONS,
    MIN_SUPPORT,
    Evidence,
    measure_evidence,
)
from suffice.lab.savings.requests import RequestArrays
from suffice.lab.savings.traffic import RouteTraffic

MIN_LABELS = 30  # of one model, below which its mean score is not stated
_Z = 1.959964  # of a two-sided 95 % interval

Interval = tuple[float, float]


class ModelScore(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of the requests that one model answered; `mean` is `None` below `needed` labels."""

    requests: int
    labelled: int
    mean: float | None = None
    mean_ci: Interval | None = None
    needed: int | None = None


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """The quality of a route against its reference model, from explicit feedback.

    Attributes:
        reference: The reference model.
        is_estimated: Whether an estimate is stated (JSON key `said`).
        summary: The estimate, or why there is none (JSON key `why`).
        labelled, labelled_share: Labelled decisions, and their share of all.
        effective: What the labels are worth as labels of the reference alone.
        support: Share of labelled decisions that could have chosen the reference.
        explored: Share of free choices that were random.
        sessions: Sessions with a label.
        labels_needed: About how many; `None` if no number would do or there are enough.
        happened: Mean score.
        always_reference, always_reference_ci: Doubly robust estimate of the reference alone.
        snips, snips_ci: The same by self-normalised weights.
        kept, kept_ci: happened / always_reference.
        lost, lost_ci: always_reference - happened.
        predicted_kept: By the policy's own predictions; not a measurement.
        basis: What those rest on (prior, trained, certified) -> decisions.
        models: Model -> scores of what it answered.
        warnings: What may bias the figures.
    """

    reference: str
    is_estimated: bool = msgspec.field(name="said", default=False)
    summary: str = msgspec.field(name="why", default="")
    labelled: int
    labelled_share: float
    effective: float
    support: float
    explored: float
    sessions: int
    labels_needed: int | None = None
    happened: float | None = None
    always_reference: float | None = None
    always_reference_ci: Interval | None = None
    snips: float | None = None
    snips_ci: Interval | None = None
    kept: float | None = None
    kept_ci: Interval | None = None
    lost: float | None = None
    lost_ci: Interval | None = None
    predicted_kept: float | None = None
    basis: Mapping[str, int] = {}
    models: Mapping[str, ModelScore] = {}
    warnings: tuple[str, ...] = ()


def estimate_quality(route: RouteTraffic, requests: RequestArrays, reference: str) -> Quality:
    """Return a route's quality against `reference`; an estimate only if its labels suffice.

    Args:
        route: What the route's policy decided.
        requests: Its requests, `route.requests.arrays()`.
        reference: Name of the reference model.
    """
    totals = route.candidates.get(reference)
    support = totals.samplable / max(1, route.weighable) if totals is not None else 0.0
    # The inverse of the mean worth of a label as a label of the reference.
    weight = totals.inverse_propensity / totals.samplable if totals is not None else None
    models = _scores_by_model(route, requests)
    quality = Quality(
        reference=reference,
        labelled=route.labelled,
        labelled_share=route.labelled / route.decisions if route.decisions else 0.0,
        effective=0.0,
        support=support,
        explored=route.random_choices / route.free_choices if route.free_choices else 0.0,
        sessions=0,
        predicted_kept=_predicted_kept(requests, route.models.get(reference)),
        basis=dict(route.basis),
        models=models,
        warnings=_warnings(models),
    )
    if not route.turns:
        evidence = Evidence(ess=0.0, support=support, sessions=0)
        return _insufficient_evidence(quality, evidence, weight, explored=route.random_choices > 0)
    turns = list(route.turns)
    pool = list(dict.fromkeys([reference, *(m for t in turns for m in t.propensities)]))
    log = logged_data(turns, pool)
    action_dist = np.tile(np.eye(len(pool))[0], (len(log), 1))
    evidence = measure_evidence(log, action_dist)
    quality = replace(
        quality,
        effective=evidence.ess,
        support=evidence.support,
        sessions=evidence.sessions,
    )
    if evidence.shortfall is not None:
        return _insufficient_evidence(quality, evidence, weight, explored=route.random_choices > 0)
    return _with_estimates(quality, log, action_dist, predict_scores(turns, log))


def _insufficient_evidence(
    quality: Quality, evidence: Evidence, weight: float | None, *, explored: bool
) -> Quality:
    """Return why there is no estimate, and about how many labels would change that.

    A label of a decision that chooses the reference with probability p is worth p labels of it.

    Args:
        quality: Without summary.
        evidence: Of the labelled decisions.
        weight: Mean 1 / p; `None` if no decision could have chosen the reference.
        explored: Whether any choice was random.
    """
    labels = f"{quality.labelled:,} label" + ("" if quality.labelled == 1 else "s")
    needed = None
    if evidence.support < MIN_SUPPORT or weight is None:
        summary = (
            f"Inconclusive, from {labels}: only {evidence.support:.0%} of decisions could have gone "
            f"to {quality.reference}, and its score on the others was never observed"
        )
        if not explored:
            summary += " (no choice was random: the route does not explore)"
        summary += (
            ". More labels alone would not help; exploring a few per cent of traffic would (at "
            f"least {MIN_SUPPORT:.0%} is needed)."
        )
    elif evidence.ess < MIN_ESS:
        needed = ceil(MIN_ESS * weight)
        summary = (
            f"Too few labels: {labels}, worth {evidence.ess:.0f} labels of {quality.reference} "
            f"alone; about {max(needed, quality.labelled + 1):,} are needed "
            f"({MIN_ESS:.0f} of that model)."
        )
    else:
        summary = (
            f"Too few labels: {labels} from {evidence.sessions} sessions; {MIN_SESSIONS} sessions "
            "are needed."
        )
    return replace(quality, summary=summary, labels_needed=needed)


def _with_estimates(
    quality: Quality, log: LoggedData, action_dist: FloatArray, q_hat: FloatArray
) -> Quality:
    on_policy = estimators.on_policy_value(log)
    dr = estimators.doubly_robust(log, action_dist, q_hat)
    # Both are means over the same labelled decisions, so their ratio is a ratio of two sums.
    kept_terms = EstimatorTerms(on_policy.numerator, dr.numerator)
    estimates = estimate_policy_values(
        {"dr": dr, "snips": estimators.snips(log, action_dist), "kept": kept_terms}, log
    )
    missing = 1.0 - quality.support
    reference, snips = (widen(estimates[name], missing) for name in ("dr", "snips"))
    kept_value, low, high = _widen_ratio(estimates["kept"], reference.value, missing)
    summary = (
        f"{kept_value:.1%} of the quality of {quality.reference} was kept (95 %: {low:.1%} to "
        f"{high:.1%}), from {quality.labelled:,} labels on {quality.labelled_share:.0%} of decisions"
    )
    if len(log) != quality.labelled:
        summary += f", of which {len(log):,} could be used"
    return replace(
        quality,
        is_estimated=True,
        summary=f"{summary}.",
        happened=on_policy.value,
        always_reference=reference.value,
        always_reference_ci=(reference.low, reference.high),
        snips=snips.value,
        snips_ci=(snips.low, snips.high),
        kept=kept_value,
        kept_ci=(low, high),
        lost=reference.difference,
        lost_ci=(reference.difference_low, reference.difference_high),
    )


def _widen_ratio(ratio: Estimate, reference: float, missing: float) -> tuple[float, float, float]:
    """Return (kept, low, high), wider by the unobserved share of the reference's score."""
    if missing <= 0.0 or reference <= missing:
        return ratio.value, ratio.low, ratio.high
    low = ratio.low * reference / (reference + missing)
    return ratio.value, low, ratio.high * reference / (reference - missing)


def _predicted_kept(r: RequestArrays, reference: int | None) -> float | None:
    """Return the predicted quality of what answered over that of the reference."""
    if reference is None:
        return None
    answered = r.of_answering_model(r.predicted_quality)
    pair = (r.model == reference) & ~np.isnan(r.predicted_quality)
    pair &= ~np.isnan(answered[r.request])
    total = float(r.predicted_quality[pair].sum())
    return float(answered[r.request[pair]].sum()) / total if total > 0 else None


# ── scores of what each model answered ───────────────────────────────────────────────────────────


def _scores_by_model(route: RouteTraffic, r: RequestArrays) -> dict[str, ModelScore]:
    scores = {}
    for model, requests in route.answers.most_common():
        rows = (r.answered == route.models.get(model, -2)) & ~np.isnan(r.score)
        n = np.bincount(r.group[rows]).astype(float)
        labelled = int(rows.sum())
        if labelled < MIN_LABELS or np.count_nonzero(n) < 2:
            scores[model] = ModelScore(requests=requests, labelled=labelled, needed=MIN_LABELS)
        else:
            mean, interval = mean_score(n, np.bincount(r.group[rows], r.score[rows]).astype(float))
            scores[model] = ModelScore(
                requests=requests, labelled=labelled, mean=mean, mean_ci=interval
            )
    return scores


def mean_score(count: FloatArray, total: FloatArray) -> tuple[float, Interval]:
    """Return the mean score with its 95 % interval over sessions.

    Wilson's interval (Wilson 1927, "Probable inference, the law of succession, and statistical
    inference") for the effective sample size: the number of scores over the design effect.

    Args:
        count: (g,) number of scores of each session.
        total: (g,) sum of its scores in [0, 1].
    """
    count, total = count[count > 0], total[count > 0]
    size, g = float(count.sum()), len(count)
    mean = float(total.sum()) / size
    variance = mean * (1 - mean) / size
    if variance > 0:
        clustered = float(((total - mean * count) ** 2).sum()) / size**2 * g / (g - 1)
        size /= max(1.0, clustered / variance)
    else:
        size = min(size, g)  # all scores are equal: only sessions may differ
    z = _Z * _Z / size
    centre = (mean + z / 2) / (1 + z)
    half = _Z * sqrt(max(0.0, mean * (1 - mean)) / size + z / (4 * size)) / (1 + z)
    # At 0 and 1 the mean may be outside by rounding.
    return mean, (max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))


def _warnings(models: Mapping[str, ModelScore]) -> tuple[str, ...]:
    if not models:
        return ()
    requests = [m.requests for m in models.values()]
    action = np.repeat(np.arange(len(requests)), requests)
    labelled = np.concatenate([np.arange(m.requests) < m.labelled for m in models.values()])
    if not estimators.labels_missing_not_at_random(action, labelled, len(requests)):
        return ()
    return (
        "The share of labelled answers differs between models by more than chance, so the labelled "
        "answers are not a fair sample and mean scores are biased.",
    )
